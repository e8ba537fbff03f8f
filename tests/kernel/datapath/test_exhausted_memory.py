"""No memory for a redirect: TCP takes over before send() fails or the receiver's group suffers.

For the whole node there is one net.ipv4.tcp_mem, so this runs in build/vm/run's machine only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from accel.core.model import Role
from accel.core.plan import ContainerEntry, SetContainer
from accel.datapath.layout import Hop, Way
from accel.datapath.loading import Constants
from tests.kernel.datapath.bed import (
    PROXY_UID,
    Actor,
    Bed,
    Network,
    attached,
    eventually,
    exchange,
    fill,
    read,
    some_bytes,
)

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not Path("/guest/command").exists(), reason="starves the node: in build/vm/run only"
    ),
]

TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")
SPARE_BYTES = 2 << 20
PIECE = 16_384


@pytest.fixture
def trusting(network: Network) -> Iterator[Bed]:
    charged = tuple(map(int, os.uname().release.split(".")[:2])) > (5, 10)
    with attached(network, Constants(charges_rmem=charged)) as bed:
        bed.trust()
        yield bed


@pytest.fixture
def tcp_mem() -> Iterator[Path]:
    ours = TCP_MEM.read_text()
    yield TCP_MEM
    TCP_MEM.write_text(ours)


@dataclass(frozen=True)
class Confined:
    """A sidecar in a memory cgroup of its own."""

    actor: Actor

    def limit(self, spare: int | None) -> None:
        """Allow so many bytes more than are used, or as many as one likes."""
        used = int((self.actor.cgroup / "memory.current").read_text())
        limit = "max" if spare is None else str(used + spare)
        (self.actor.cgroup / "memory.max").write_text(limit)

    @property
    def events(self) -> dict[str, int]:
        lines = (self.actor.cgroup / "memory.events").read_text().splitlines()
        return {name: int(count) for name, count in map(str.split, lines)}


@pytest.fixture
def confined(trusting: Bed) -> Iterator[Confined]:
    group = trusting.network.cgroup
    for above in (group.parent, group):
        (above / "cgroup.subtree_control").write_text("+memory")
    actor = Actor(trusting.a.netns, group / "confined", PROXY_UID)
    try:
        actor.wait_ready()
        entry = ContainerEntry(trusting.a.inode, Role.SIDECAR)
        assert trusting.datapath.apply([SetContainer(actor.cgroup_id, entry)]) == ()
        yield Confined(actor)
        trusting.close_sockets()
    finally:
        actor.close()
        actor.cgroup.rmdir()


def test_full_memory_cgroup_of_the_receiver(trusting: Bed, confined: Confined) -> None:
    """By redirect the sender would meet ENOMEM, and the receiver's processes the OOM killer."""
    bed = trusting
    data = some_bytes(30 * PIECE, 70)
    with bed.a.app.listen() as listener:
        # The active end is charged to who made it; an accepted one to who accepts.
        pairs = [bed.connect(confined.actor, listener) for _ in range(40)]
    for client, server in pairs:
        exchange(client, server)
    confined.limit(SPARE_BYTES)
    sent = [fill(server, data, PIECE) for _, server in pairs]

    assert bed.tcp_reasons()["no_memory"] > 0
    assert bed.redirected(Hop.SIDECAR_APP, Way.RESPONSE) > len(pairs)
    assert (confined.events["oom"], confined.events["oom_kill"]) == (0, 0)
    confined.limit(None)
    for (client, _), count in zip(pairs, sent, strict=True):
        assert read(client, count) == data[:count]


def test_memory_of_tcp_exhausted(trusting: Bed, tcp_mem: Path) -> None:
    bed = trusting
    data = some_bytes(100 * PIECE, 71)
    pairs = [bed.pair(bed.a.app, bed.a.sidecar) for _ in range(10)]
    plain = bed.pair(bed.network.stray, bed.network.stray)
    for pair in pairs:
        exchange(*pair)
    redirected = bed.redirected()
    assert redirected == len(pairs)

    # Under pressure, which the kernel notes when it next allocates; then nothing is left.
    tcp_mem.write_text("1 2 1000000")
    fill(plain[0], data, PIECE)
    for pair in pairs:
        exchange(*pair)
    tcp_mem.write_text("1 2 3")
    sent = [fill(client, data, PIECE) for client, _ in pairs]
    assert bed.redirected() == redirected
    assert bed.tcp_reasons()["no_memory"] >= len(pairs)

    tcp_mem.write_text("100000 200000 400000")
    for (_, server), count in zip(pairs, sent, strict=True):
        assert read(server, count) == data[:count]

    def redirected_again() -> bool:
        for pair in pairs:
            exchange(*pair)
        return bed.redirected() > redirected

    eventually(redirected_again)

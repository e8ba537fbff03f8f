"""No memory for a redirect: TCP takes over before send() fails or the receiver's group suffers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from accel.core.model import Role
from accel.core.plan import ContainerEntry, SetContainer
from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import (
    PROXY_UID,
    Actor,
    Bed,
    eventually,
    exchange,
    fill,
    read,
    some_bytes,
    write,
)

pytestmark = pytest.mark.kernel

IN_GUEST = Path("/guest/command").exists()  # of build/vm/run
V1_MEMORY = Path("/sys/fs/cgroup/memory")
TCP_MEM = Path("/proc/sys/net/ipv4/tcp_mem")
SPARE_BYTES = 5 << 20  # of which the programs leave 4 MB alone
PIECE = 16_384
A_JIFFY_SECONDS = 0.02  # 0.01 at most, by CONFIG_HZ


@pytest.fixture
def trusting(bed: Bed) -> Bed:
    bed.trust()
    return bed


@pytest.fixture
def tcp_mem() -> Iterator[Path]:
    ours = TCP_MEM.read_text()
    yield TCP_MEM
    TCP_MEM.write_text(ours)


@dataclass(frozen=True)
class Confined:
    """A sidecar in a memory cgroup of its own: of v2, or where v1 has the memory of v1.

    Attributes:
        used, limit: The group's files, in bytes.
    """

    actor: Actor
    used: Path
    limit: Path

    def allow(self, spare: int) -> None:
        """So many bytes more than are used."""
        self.limit.write_text(str(int(self.used.read_text()) + spare))

    def count(self, event: str) -> int:
        """How often, of what v2 counts in memory.events; v1 kills for no socket."""
        if self.limit.name != "memory.max":
            return 0
        events = (self.limit.parent / "memory.events").read_text().split()
        return int(events[events.index(event) + 1])


@contextmanager
def _memory_cgroup(actor: Actor) -> Iterator[Confined]:
    group = actor.cgroup
    if IN_GUEST:  # elsewhere it is not ours to hand down
        for above in (group.parents[1], group.parent):
            (above / "cgroup.subtree_control").write_text("+memory")
    if (group / "memory.max").exists():
        yield Confined(actor, group / "memory.current", group / "memory.max")
        return
    if not (V1_MEMORY / "memory.kmem.tcp.limit_in_bytes").exists():
        pytest.skip("the memory controller is neither handed down by cgroup v2 nor mounted as v1")
    v1 = V1_MEMORY / group.parent.name
    v1.mkdir()
    try:
        tcp = [v1 / f"memory.kmem.tcp.{what}_in_bytes" for what in ("usage", "limit")]
        tcp[1].write_text(str(1 << 30))  # from now on it counts
        (v1 / "cgroup.procs").write_text(str(actor.pid))
        yield Confined(actor, *tcp)
    finally:
        (V1_MEMORY / "cgroup.procs").write_text(str(actor.pid))
        v1.rmdir()


@pytest.fixture
def confined(trusting: Bed) -> Iterator[Confined]:
    actor = Actor(trusting.a.netns, trusting.network.cgroup / "confined", PROXY_UID)
    try:
        actor.wait_ready()
        entry = ContainerEntry(trusting.a.inode, Role.SIDECAR)
        assert trusting.datapath.apply([SetContainer(actor.cgroup_id, entry)]) == ()
        with _memory_cgroup(actor) as confined:
            yield confined
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
    confined.allow(SPARE_BYTES)
    time.sleep(A_JIFFY_SECONDS)  # the programs ask once in each
    sent = [fill(server, data, PIECE) for _, server in pairs]

    assert bed.tcp_reasons()["no_memory"] > 0
    assert bed.redirected(Hop.SIDECAR_APP, Way.RESPONSE) > len(pairs)
    assert (confined.count("oom"), confined.count("oom_kill")) == (0, 0)
    confined.allow(1 << 30)
    for (client, _), count in zip(pairs, sent, strict=True):
        assert read(client, count) == data[:count]


def test_many_send_at_once_into_a_nearly_full_cgroup(trusting: Bed, confined: Confined) -> None:
    """Each asks, and is told that there is room, before any of them uses it up."""
    bed = trusting
    data = some_bytes(4 * PIECE, 72)
    with bed.a.app.listen() as listener:
        pairs = [bed.connect(confined.actor, listener) for _ in range(200)]
    for client, server in pairs:
        exchange(client, server)
    confined.allow(SPARE_BYTES)
    time.sleep(A_JIFFY_SECONDS)
    for _, server in pairs:
        assert server.send(b"!") == 1
    sent = [fill(server, data, PIECE) for _, server in pairs]  # ENOMEM would be raised

    assert bed.tcp_reasons()["no_memory"] > 0
    assert (confined.count("oom"), confined.count("oom_kill")) == (0, 0)
    confined.allow(1 << 30)
    for (client, _), count in zip(pairs, sent, strict=True):
        assert read(client, 1 + count) == b"!" + data[:count]


@pytest.mark.skipif(not IN_GUEST, reason="starves the whole node: in build/vm/run only")
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
        for client, server in pairs:
            write(client, b"again")  # a buffer that was moderated may still be full
            assert read(server, 5) == b"again"
        return bed.redirected() > redirected

    eventually(redirected_again)

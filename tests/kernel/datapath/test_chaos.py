"""Everything that may change changes at random while connections come, talk and go."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial

import pytest

from accel.core.plan import DropPod
from accel.datapath.loading import Constants
from tests.kernel.datapath.bed import (
    Actor,
    Bed,
    Network,
    Side,
    attached,
    begin,
    facts,
    read,
    read_to_end,
    skip_unless_trust_is_borne,
    some_bytes,
    write,
)

pytestmark = pytest.mark.kernel

SECONDS = 6
FLAGS: tuple[dict[str, bool], ...] = (
    {},
    {"enrol_apps": True},
    {"enrol_apps": True, "trust_apps": True},
)


@pytest.fixture(params=[False, True], ids=["two queues", "one queue"])
def either_bed(network: Network, request: pytest.FixtureRequest) -> Iterator[Bed]:
    if request.param:
        skip_unless_trust_is_borne()
    with attached(network, Constants(facts().charges_rmem, request.param)) as bed:
        yield bed


def _one_life(client: socket.socket, server: socket.socket, seed: int) -> None:
    """Questions and answers of any size, then one of several endings."""
    choices = random.Random(seed)
    for number in range(choices.randrange(6)):
        size = choices.choice((1, 300, 20_000, 100_000))
        data = some_bytes(size, seed + number)
        for one, other in ((client, server), (server, client)):
            sending = Side(partial(write, one, data))
            assert read(other, size) == data
            sending.join()
    match choices.randrange(4):
        case 0:
            client.send(b"last words")
            client.close()
            assert read_to_end(server) == b"last words"
        case 1:
            server.send(b"last words")
            server.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b"last words"
        case 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.send(b"dropped")


def _live(bed: Bed, active: Actor, passive: Actor, host: str, until: float, seed: int) -> None:
    choices = random.Random(seed)
    with passive.listen(host) as listener:
        while time.monotonic() < until:
            with active.socket() as client:
                begin(client, listener.getsockname()[:2], blocking=choices.random() < 0.3)
                with listener.accept()[0] as server:
                    for sock in (client, server):
                        sock.setblocking(False)
                    _one_life(client, server, choices.getrandbits(32))


def test_chaos(either_bed: Bed) -> None:
    """Bytes stay in order, each connection is forgotten, and no socket stays behind."""
    bed = either_bed
    until = time.monotonic() + SECONDS
    hops = (
        (bed.a.app, bed.a.sidecar, "127.0.0.1"),
        (bed.a.sidecar, bed.b.sidecar, bed.b.address),
        (bed.b.sidecar, bed.b.app, "127.0.0.1"),
        (bed.a.app, bed.a.app, "127.0.0.1"),
    )
    lives = [Side(partial(_live, bed, *hop, until, seed)) for seed, hop in enumerate(hops)]
    choices = random.Random(50)
    while any(life.running for life in lives):
        pod = choices.choice((bed.a, bed.b))
        match choices.randrange(6):
            case 0:
                bed.datapath.apply([DropPod(pod.inode)])
            case 1:
                bed.datapath.pause(choices.choice((None, pod.inode)))
            case 2:
                for scope in (None, bed.a.inode, bed.b.inode):
                    bed.datapath.resume(scope)
            case _:
                bed.mesh(pod, **choices.choice(FLAGS))
        bed.datapath.connections()
        time.sleep(choices.random() / 50)
    for life in lives:
        life.join()
    total = bed.datapath.statistics().total
    assert total.messages_redirected
    assert total.messages_tcp
    bed.assert_forgotten()


def test_reader_asleep_in_recv(bed: Bed) -> None:
    """A blocking sidecar: woken by redirected data, and by TCP's; never back from TCP."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    server.setblocking(True)

    def wake(data: bytes) -> None:
        reading = Side(lambda: server.recv(100))
        time.sleep(0.02)
        client.send(data)
        assert reading.join() == data

    for _ in range(5):
        wake(b"redirected")
    assert bed.redirected() == 5
    bed.datapath.pause()
    wake(b"by TCP")
    bed.datapath.resume()
    for _ in range(5):
        wake(b"by TCP for ever")
    assert bed.redirected() == 5
    assert bed.tcp_reasons() == {"off": 1, "settled": 5}

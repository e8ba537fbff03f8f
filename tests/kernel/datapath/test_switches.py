"""What may change while connections live: trust, pods, pause.  No byte is lost or swapped."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest

from accel.core.plan import DropPod
from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import Bed, Side, exchange, read, read_to_end, some_bytes, write

pytestmark = pytest.mark.kernel

STREAM_BYTES = 24 << 20


def _in_order(sender: socket.socket, receiver: socket.socket, *steps: Callable[[], None]) -> None:
    """Send a message before, between and after the steps; read all of them at the end."""
    messages = [b"message %d " % number for number in range(len(steps) + 1)]
    sender.send(messages[0])
    for step, message in zip(steps, messages[1:], strict=True):
        step()
        sender.send(message)
    assert read(receiver, sum(map(len, messages))) == b"".join(messages)


def test_untrusted_apps_stay_out_where_fionread_forbids(bed: Bed) -> None:
    """The default on a kernel of the regressed era: four of six directions are not for it."""
    with_app = [
        bed.pair(bed.a.app, bed.a.sidecar),
        bed.pair(bed.b.sidecar, bed.b.app),
        bed.pair(bed.b.sidecar, bed.b.app, bed.b.address),
    ]
    for client, server in with_app:
        exchange(client, server)
        assert bed.reason(client) == "fionread"
    assert bed.enrolled() == 0

    client, server = bed.pair(bed.a.sidecar, bed.b.sidecar, bed.b.address)
    exchange(client, server)
    assert [bed.redirected(Hop.SIDECAR_SIDECAR, way) for way in Way] == [1, 1]
    assert bed.enrolled() == 2
    assert bed.datapath.statistics().total.messages_redirected == 2


@pytest.mark.parametrize("hop", [Hop.APP_SIDECAR, Hop.SIDECAR_APP], ids=lambda hop: hop.label)
def test_nothing_is_redirected_into_an_untrusted_app(bed: Bed, hop: Hop) -> None:
    bed.mesh(bed.a, enrol_apps=True)
    ends = (bed.a.app, bed.a.sidecar)
    client, server = bed.pair(*(ends if hop is Hop.APP_SIDECAR else reversed(ends)))
    for _ in range(20):
        exchange(client, server)

    into_app = Way.RESPONSE if hop is Hop.APP_SIDECAR else Way.REQUEST
    statistics = bed.datapath.statistics()
    assert statistics.traffic[hop, into_app].messages_redirected == 0
    assert statistics.traffic[hop, into_app].messages_tcp_by_reason == {"untrusted": 20}
    assert statistics.traffic[hop, Way(1 - into_app)].messages_redirected == 20


def test_trust_given_and_taken_back(bed: Bed) -> None:
    bed.mesh(bed.a, enrol_apps=True, trust_apps=True)
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    _in_order(server, client)
    assert bed.redirected(way=Way.RESPONSE) == 1

    _in_order(
        server,
        client,
        lambda: bed.mesh(bed.a, enrol_apps=True),
        lambda: bed.mesh(bed.a, enrol_apps=True, trust_apps=True),
    )
    assert bed.redirected(way=Way.RESPONSE) == 2
    assert bed.tcp_reasons() == {"untrusted": 1, "in_tcp": 1}

    # Drained by now, into an app that does not sleep: back.
    exchange(server, client)
    assert bed.redirected(way=Way.RESPONSE) == 3


def test_blocking_app_never_comes_back_from_tcp(bed: Bed) -> None:
    """Its reader may be asleep in tcp_recvmsg(), where redirected bytes do not wake it."""
    bed.trust()
    client, server = bed.pair(bed.a.sidecar, bed.a.app)
    server.setblocking(True)
    _in_order(client, server, lambda: bed.datapath.pause(), lambda: bed.datapath.resume())
    for _ in range(3):
        exchange(server, client)
    assert bed.redirected(Hop.SIDECAR_APP) == 1
    assert bed.tcp_reasons() == {"off": 1, "settled": 4}


def test_dropped_pod_goes_by_tcp(bed: Bed) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    _in_order(
        client,
        server,
        lambda: _check(bed.datapath.apply([DropPod(bed.a.inode)]) == ()),
        lambda: bed.mesh(bed.a, trust_apps=True),
    )
    assert bed.tcp_reasons() == {"withdrawn": 1, "in_tcp": 1}

    # Drained by now, into a sidecar that does not sleep: back.
    exchange(client, server)
    assert bed.redirected() == 2

    bed.datapath.apply([DropPod(bed.a.inode)])
    later, _ = bed.pair(bed.a.app, bed.a.sidecar)
    assert bed.record(later) is None


def _check(condition: bool) -> None:
    assert condition


@pytest.mark.parametrize("scope", ["node", "active pod", "passive pod", "other pod"])
def test_pause_and_resume(bed: Bed, scope: str) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.sidecar, bed.b.sidecar, bed.b.address)
    scopes = {"node": None, "active pod": bed.a.inode, "passive pod": bed.b.inode}
    netns = scopes.get(scope, bed.network.stray_inode)
    _in_order(
        client,
        server,
        lambda: bed.datapath.pause(netns),
        lambda: bed.datapath.resume(netns),
    )
    expected = {
        "node": {"off": 1, "in_tcp": 1},
        "active pod": {"paused": 1, "in_tcp": 1},
        "passive pod": {"paused": 1, "in_tcp": 1},
        "other pod": {},
    }
    assert bed.tcp_reasons() == expected[scope]
    before = bed.redirected(Hop.SIDECAR_SIDECAR)
    exchange(client, server)
    assert bed.redirected(Hop.SIDECAR_SIDECAR) == before + 1


def test_pause_and_resume_under_load(bed: Bed) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    there, back = some_bytes(STREAM_BYTES, 1), some_bytes(STREAM_BYTES, 2)

    def send(sock: socket.socket, data: bytes, seed: int) -> None:
        sizes = random.Random(seed)
        at = 0
        while at < len(data):
            size = sizes.choice((1, 100, 1000, 5000, 20_000))
            write(sock, data[at : at + size])
            at += size
        sock.shutdown(socket.SHUT_WR)

    writers = [
        Side(lambda: send(client, there, 3)),
        Side(lambda: send(server, back, 4)),
    ]
    readers = [Side(lambda: read_to_end(server)), Side(lambda: read_to_end(client))]
    choices = random.Random(5)
    while any(writer.running for writer in writers):
        netns = choices.choice((None, bed.a.inode))
        bed.datapath.pause(netns)
        bed.datapath.resume(netns)
    for writer in writers:
        writer.join()
    assert readers[0].join() == there
    assert readers[1].join() == back
    total = bed.datapath.statistics().total
    assert total.messages_redirected
    assert total.messages_tcp
    assert total.bytes_redirected + total.bytes_tcp == 2 * STREAM_BYTES

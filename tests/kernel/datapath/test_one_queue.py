"""A trusted app reads redirected bytes and TCP's from one queue, as it reads plain TCP."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial

import pytest

from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import (
    PATIENCE_SECONDS,
    Bed,
    Network,
    Pair,
    Side,
    attached,
    eventually,
    exchange,
    fill,
    fionread,
    read,
    read_to_end,
    skip_unless_trust_is_borne,
    some_bytes,
    wait_for,
    write,
)

pytestmark = pytest.mark.kernel

WAYS = ("into the passive end", "into the active end")


@pytest.fixture
def bed(network: Network) -> Iterator[Bed]:
    skip_unless_trust_is_borne()
    with attached(network) as bed:
        bed.trust()
        yield bed


def _into_app(bed: Bed, way: str) -> Pair:
    """The sidecar's end, and the app's, of a new connection."""
    if way == WAYS[0]:
        return bed.pair(bed.a.sidecar, bed.a.app)
    app, sidecar = bed.pair(bed.a.app, bed.a.sidecar)
    return sidecar, app


def _arrived(app: socket.socket, size: int) -> None:
    eventually(lambda: fionread(app) == size)


@pytest.mark.parametrize("way", WAYS)
def test_fionread_counts_both(bed: Bed, way: str) -> None:
    sidecar, app = _into_app(bed, way)
    sidecar.send(bytes(50))
    _arrived(app, 50)
    bed.datapath.pause()
    sidecar.send(bytes(50))
    _arrived(app, 100)
    bed.datapath.resume()
    sidecar.send(bytes(50))
    _arrived(app, 150)
    assert len(app.recv(70)) == 70
    assert fionread(app) == 80
    assert len(app.recv(1000)) == 80
    assert fionread(app) == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", [(100, 100), (60_000, 40_000)])
def test_an_edge_triggered_reader_may_stop_at_a_short_read(
    bed: Bed, way: str, sizes: tuple[int, int]
) -> None:
    """As epoll(7) allows, and as nginx, Netty and tokio do."""
    sidecar, app = _into_app(bed, way)
    _reads_all_stopping_short(bed, sidecar, app, some_bytes(sum(sizes), 60), sizes[0])


def _reads_all_stopping_short(
    bed: Bed, sender: socket.socket, reader: socket.socket, data: bytes, redirected: int
) -> None:
    """So many bytes by redirect, the rest by TCP, all there before the reader looks."""
    with select.epoll() as poll:
        poll.register(reader, select.EPOLLIN | select.EPOLLET)
        write(sender, data[:redirected])
        bed.datapath.pause()
        write(sender, data[redirected:])
        _arrived(reader, len(data))
        heard = bytearray()
        while len(heard) < len(data):
            assert poll.poll(10), f"asleep on the rest after {len(heard)} bytes"
            while len(piece := reader.recv(8192)) == 8192:
                heard += piece
            heard += piece
    assert heard == data
    bed.datapath.resume()


@pytest.mark.parametrize("way", WAYS)
def test_streams_of_both_kinds(bed: Bed, way: str) -> None:
    """Above the bound, paused and resumed: whole, in order, and the sender is paced."""
    for seed in range(10):
        sidecar, app = _into_app(bed, way)
        data = some_bytes(3 << 20, seed)

        def send(sock: socket.socket = sidecar, data: bytes = data) -> None:
            for number, at in enumerate(range(0, len(data), 70_001)):
                write(sock, data[at : at + 70_001])
                (bed.datapath.pause, bed.datapath.resume)[number % 2]()

        sending = Side(send)
        assert read(app, len(data)) == data
        sending.join()
        bed.datapath.resume()
    reasons = bed.tcp_reasons()
    assert reasons.get("queue_bytes", 0) + reasons.get("settled", 0) + reasons.get("off", 0)


@pytest.mark.parametrize("piece", [1, 100, 1000, 64 << 10])
def test_a_reader_that_sleeps_stops_the_sender(bed: Bed, piece: int) -> None:
    sidecar, app = _into_app(bed, WAYS[0])
    data = some_bytes(min(16 << 20, 300_000 * piece), 61)
    sent = 0
    while sent < len(data):
        try:
            sent += sidecar.send(data[sent : sent + piece])
        except BlockingIOError:
            break
    assert sent <= 8 << 20
    sending = Side(partial(write, sidecar, data[sent:]))
    assert read(app, len(data)) == data
    sending.join()


@pytest.mark.parametrize("way", WAYS)
def test_end_of_file_stays(bed: Bed, way: str) -> None:
    sidecar, app = _into_app(bed, way)
    sidecar.send(b"redirected, ")
    bed.datapath.pause()
    sidecar.send(b"by TCP")
    sidecar.shutdown(socket.SHUT_WR)
    assert read_to_end(app) == b"redirected, by TCP"
    assert [app.recv(1) for _ in range(5)] == [b""] * 5
    app.send(b"bye")
    assert read(sidecar, 3) == b"bye"


def test_a_reset_loses_nothing_that_waits(bed: Bed) -> None:
    sidecar, app = _into_app(bed, WAYS[0])
    sidecar.send(b"redirected, ")
    bed.datapath.pause()
    sidecar.send(b"by TCP")
    _arrived(app, 18)
    sidecar.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sidecar.close()
    wait_for(app, select.POLLHUP)
    assert app.recv(100) == b"redirected, by TCP"
    with pytest.raises(ConnectionResetError):
        app.recv(1)


def test_one_without_a_partner_leaves_once_it_has_read_all(bed: Bed) -> None:
    """What waits would be lost, and the kernel would warn at the next read."""
    app, server = bed.pair(bed.a.app, bed.b.helper, bed.b.address)
    server.send(b"banner")
    _arrived(app, 6)
    for _ in range(5):
        app.send(b"x")
        assert read(server, 1) == b"x"
    assert bed.datapath.statistics().evicted == 0
    assert read(app, 6) == b"banner"

    def left() -> bool:
        exchange(app, server)
        return bed.datapath.statistics().evicted == 1

    eventually(left)
    assert bed.reason(app) == "roles"
    exchange(app, server)
    assert fionread(app) == 0


def test_one_without_a_partner_does_not_leave_a_sleeping_reader(bed: Bed) -> None:
    """It would find EAGAIN instead of what comes next."""
    app, server = bed.pair(bed.a.app, bed.b.helper, bed.b.address, blocking=True)
    server.setblocking(False)
    for number in range(20):
        answer = b"answer %d" % number
        reading = Side(lambda: app.recv(100))
        time.sleep(0.01)  # until it sleeps; no matter if it does not yet
        app.send(b"question")
        assert read(server, 8) == b"question"
        server.send(answer)
        assert reading.join() == answer
    app.setblocking(False)

    def left() -> bool:
        exchange(app, server)
        return bed.datapath.statistics().evicted == 1

    eventually(left)


def test_a_client_that_blocks(bed: Bed) -> None:
    app, sidecar = bed.pair(bed.a.app, bed.a.sidecar, blocking=True)
    sidecar.setblocking(False)
    for number in range(20):
        reading = Side(lambda: app.recv(100))
        app.send(b"ping")
        assert read(sidecar, 4) == b"ping"
        answer = b"pong %d" % number
        sidecar.send(answer)
        assert reading.join() == answer
    assert bed.redirected() == 20
    assert bed.redirected(way=Way.RESPONSE)


@pytest.mark.parametrize("hop", [Hop.APP_SIDECAR, Hop.SIDECAR_SIDECAR, Hop.SIDECAR_APP])
def test_a_proxy_that_stops_short_has_one_queue_too(bed: Bed, hop: Hop) -> None:
    """As linkerd2-proxy, which is built on tokio."""
    for pod in (bed.a, bed.b):
        bed.mesh(pod, trust_apps=True, enrol_apps=True, stops_short=True)
    active, passive, host = {
        Hop.APP_SIDECAR: (bed.a.app, bed.a.sidecar, "127.0.0.1"),
        Hop.SIDECAR_SIDECAR: (bed.a.sidecar, bed.b.sidecar, bed.b.address),
        Hop.SIDECAR_APP: (bed.a.sidecar, bed.a.app, "127.0.0.1"),
    }[hop]
    for sender, reader in (ends := bed.pair(active, passive, host), ends[::-1]):
        _reads_all_stopping_short(bed, sender, reader, some_bytes(100_000, 62), 60_000)
    for way in Way:
        assert bed.redirected(hop, way)


def test_trust_holds_for_connections_made_from_then_on(bed: Bed) -> None:
    for pod in (bed.a, bed.b):
        bed.mesh(pod, enrol_apps=True)
    sidecar, app = _into_app(bed, WAYS[0])
    bed.trust()
    exchange(sidecar, app)
    assert bed.tcp_reasons() == {"two_queues": 1}
    before = bed.redirected(Hop.SIDECAR_APP)
    exchange(*_into_app(bed, WAYS[0]))
    assert bed.redirected(Hop.SIDECAR_APP) == before + 1
    assert bed.redirected(Hop.SIDECAR_APP, Way.RESPONSE)


def test_nothing_is_left(bed: Bed) -> None:
    for way in WAYS:
        for _ in range(20):
            sidecar, _ = _into_app(bed, way)
            sidecar.send(b"unread")
    bed.assert_forgotten()


def _in_flight(sock: socket.socket) -> int:
    """Segments, by TCP_INFO: none of a full socket's when its window is shut."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    segments: int = struct.unpack_from("I", info, 24)[0]
    return segments


def test_a_sender_whose_reader_is_gone_does_not_wait(bed: Bed) -> None:
    """The window was shut as the reader closed: no reset comes, and none to a probe."""
    sidecar, app = _into_app(bed, WAYS[0])
    data = bytes(64 << 10)
    sidecar.send(b"redirected")
    eventually(lambda: not fill(sidecar, data, len(data)) and not _in_flight(sidecar))
    app.close()
    poll = select.poll()
    poll.register(sidecar, 0)
    assert poll.poll(PATIENCE_SECONDS * 1000), "still waits for the window"
    with pytest.raises(TimeoutError):
        sidecar.send(b"x")


def test_a_reader_may_still_finish_first(bed: Bed) -> None:
    """A FIN of shutdown() alone: what waits for the window arrives, however late."""
    sidecar, app = _into_app(bed, WAYS[0])
    data = some_bytes(4 << 20, 62)
    sent = fill(sidecar, data, 64 << 10)
    app.shutdown(socket.SHUT_WR)
    assert read(sidecar, 1) == b""
    sending = Side(partial(write, sidecar, data[sent:]))
    assert read(app, len(data)) == data
    sending.join()

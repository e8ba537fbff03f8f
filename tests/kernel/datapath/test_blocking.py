"""An untrusted app that blocks in recv() is kept out, or leaves before it can be harmed."""

from __future__ import annotations

import socket

import pytest

from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import Bed, Pair, eventually, exchange, read
from tests.patience import few

pytestmark = pytest.mark.kernel


@pytest.fixture
def untrusting(bed: Bed) -> Bed:
    """Pod A as on a kernel that bears enrolled apps."""
    bed.mesh(bed.a, enrol_apps=True)
    return bed


def _to_blocking_app(bed: Bed, listener: socket.socket) -> Pair:
    client, server = bed.connect(bed.a.sidecar, listener)
    server.setblocking(True)
    return client, server


def test_blocking_client_is_not_enrolled(untrusting: Bed) -> None:
    bed = untrusting
    client, server = bed.pair(bed.a.app, bed.a.sidecar, blocking=True)
    assert bed.reason(client) == "blocking"
    assert bed.enrolled() == 0
    exchange(client, server)
    assert bed.datapath.statistics().refused == {"blocking": 1}
    bed.assert_forgotten()


def test_client_that_blocks_later_leaves(untrusting: Bed) -> None:
    """As with a timeout for connect(): non-blocking while it connects, blocking after."""
    bed = untrusting
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    assert bed.enrolled() == 2
    client.setblocking(True)
    exchange(client, server)
    eventually(lambda: bed.enrolled() < 2)
    for _ in range(5):
        exchange(client, server)
    assert bed.redirected() == 0
    assert bed.tcp_reasons()["blocking"] >= 1
    bed.assert_forgotten()


def test_blocking_server_leaves_after_its_first_answer(untrusting: Bed) -> None:
    bed = untrusting
    with bed.a.app.listen() as listener:
        client, server = _to_blocking_app(bed, listener)
        assert bed.enrolled() == 2
        exchange(client, server)
        eventually(lambda: bed.enrolled() == 1)
        for _ in range(5):
            exchange(client, server)
        assert bed.redirected(Hop.SIDECAR_APP) == 0

        later, later_server = _to_blocking_app(bed, listener)
        assert bed.reason(later) == "blocking"
        exchange(later, later_server)
        eventually(lambda: bed.enrolled() == 1)
    bed.assert_forgotten()


def _first_connection(bed: Bed, listener: socket.socket, *, blocking: bool) -> None:
    """It stays out, and its first answer tells how it reads."""
    client, server = bed.connect(bed.a.sidecar, listener)
    server.setblocking(blocking)
    assert bed.reason(client) == "blocking"
    exchange(client, server)


def test_blocking_listener_is_presumed_to_read_blocking(untrusting: Bed) -> None:
    """So that not even its first reader is disturbed before the first answer."""
    bed = untrusting
    with bed.a.app.listen(blocking=True) as listener:
        for _ in range(3):
            _first_connection(bed, listener, blocking=True)
        eventually(lambda: bed.enrolled() == 0)
    bed.assert_forgotten()


def test_blocking_listener_of_nonblocking_readers(untrusting: Bed) -> None:
    """As Tomcat's: from the second connection on."""
    bed = untrusting
    with bed.a.app.listen(blocking=True) as listener:
        _first_connection(bed, listener, blocking=False)
        eventually(lambda: list(bed.kept_out.keys()) == [])
        client, server = bed.connect(bed.a.sidecar, listener)
        exchange(client, server)
        assert bed.reason(client) is None
        assert bed.redirected(Hop.SIDECAR_APP, Way.RESPONSE) == 1
    bed.assert_forgotten()


def test_listening_again_forgets(untrusting: Bed) -> None:
    """Another program may have the port by then."""
    bed = untrusting
    with bed.a.app.listen() as listener:
        port = listener.getsockname()[1]
        exchange(*_to_blocking_app(bed, listener))
        assert len(list(bed.kept_out.keys())) == 1
    bed.close_sockets()
    with bed.a.app.listen(port=port) as listener:
        assert list(bed.kept_out.keys()) == []
        client, server = bed.connect(bed.a.sidecar, listener)
        assert bed.reason(client) is None
        exchange(client, server)


def test_nonblocking_server_stays(untrusting: Bed) -> None:
    bed = untrusting
    client, server = bed.pair(bed.a.sidecar, bed.a.app)
    for _ in range(5):
        exchange(client, server)
    assert bed.enrolled() == 2
    assert list(bed.kept_out.keys()) == []


def test_trusted_apps_may_answer_blocking(bed: Bed) -> None:
    bed.trust()
    back, app = bed.pair(bed.a.sidecar, bed.a.app, blocking=True)
    exchange(back, app)
    assert bed.enrolled() == 2
    assert bed.datapath.statistics().total.messages_tcp == 0


def test_blocking_app_that_left_loses_nothing(untrusting: Bed) -> None:
    """Bytes on their way in both directions while it leaves."""
    bed = untrusting
    with bed.a.app.listen() as listener:
        for number in range(few(200)):
            client, server = _to_blocking_app(bed, listener)
            client.send(b"%06d ask" % number)
            server.send(b"%06d greeting " % number)
            client.send(b" more")
            server.send(b"%06d answer" % number)
            assert read(server, 15) == b"%06d ask more" % number
            assert read(client, 29) == b"%06d greeting %06d answer" % (number, number)
            # Known from the first on, it would be out at once.
            for key in list(bed.kept_out.keys()):
                bed.kept_out.delete(key)
    bed.assert_forgotten()

"""Who holds its socket's lock stalls nobody who sends to it."""

from __future__ import annotations

import errno
import mmap
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import PATIENCE_SECONDS, Bed, Side, eventually, exchange, read
from tests.kernel.datapath.fault import Fault

pytestmark = pytest.mark.kernel


@pytest.fixture
def fault() -> Iterator[Fault]:
    try:
        made = Fault()
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip("this kernel has no userfaultfd")
    with made:
        yield made


def test_reader_that_faults_stalls_no_sidecar(bed: Bed, fault: Fault) -> None:
    bed.trust()
    sidecar, app = bed.pair(bed.a.sidecar, bed.a.app)
    sidecar.send(b"one ")
    assert bed.redirected(Hop.SIDECAR_APP) == 1

    assert _ends_first(fault, lambda: _receive(app, fault), lambda: _send(sidecar, b"two "))
    assert fault.page[:4] == b"one "
    assert read(app, 4) == b"two "
    assert bed.tcp_reasons() == {"peer_busy": 1}
    _redirects_again(bed, lambda: exchange(sidecar, app))


def test_writer_that_faults_stalls_no_sidecar(bed: Bed, fault: Fault) -> None:
    bed.trust()
    sidecar, app = bed.pair(bed.a.sidecar, bed.a.app)

    assert _ends_first(fault, lambda: _send(app, fault.page), lambda: _send(sidecar, b"request"))
    assert read(app, 7) == b"request"
    assert read(sidecar, len(fault.page)) == bytes(len(fault.page))
    assert bed.tcp_reasons() == {"peer_busy": 1}
    _redirects_again(bed, lambda: exchange(sidecar, app))


def test_sidecar_that_faults_stalls_no_app(bed: Bed, fault: Fault) -> None:
    """The other way: a sidecar that is held up in its own buffer."""
    bed.mesh(bed.a, enrol_apps=True)
    app, sidecar = bed.pair(bed.a.app, bed.a.sidecar)
    assert _ends_first(fault, lambda: _send(sidecar, fault.page), lambda: _send(app, b"request"))
    assert read(sidecar, 7) == b"request"
    assert read(app, len(fault.page)) == bytes(len(fault.page))
    _redirects_again(bed, lambda: exchange(app, sidecar), Hop.APP_SIDECAR)


def test_sidecar_is_waited_for_while_redirected_bytes_wait(bed: Bed, fault: Fault) -> None:
    """By TCP the next ones would come into its other queue, where a peek does not see them."""
    bed.mesh(bed.a, enrol_apps=True)
    app, sidecar = bed.pair(bed.a.app, bed.a.sidecar)
    app.send(b"one ")
    reading = Side(lambda: _receive(sidecar, fault))
    fault.wait(PATIENCE_SECONDS)
    threads: list[int] = []

    def send() -> None:
        threads.append(threading.get_native_id())
        app.send(b"two ")

    sending = Side(send)
    eventually(lambda: bool(threads) and _sleeps_uninterruptibly(threads[0]))
    fault.resolve()
    reading.join()
    sending.join()
    assert fault.page[:4] == b"one "
    assert read(sidecar, 4) == b"two "
    assert (bed.redirected(), bed.by_tcp()) == (2, 0)


def _sleeps_uninterruptibly(thread: int) -> bool:
    """As in lock_sock()."""
    status = Path(f"/proc/self/task/{thread}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "D"


def test_blocking_app_stays_with_tcp(bed: Bed, fault: Fault) -> None:
    """Its reader may be asleep where redirected bytes do not wake it."""
    bed.trust()
    sidecar, app = bed.pair(bed.a.sidecar, bed.a.app)
    app.setblocking(True)
    sidecar.send(b"one ")
    assert _ends_first(fault, lambda: _receive(app, fault), lambda: _send(sidecar, b"two "))
    assert read(app, 4) == b"two "
    for _ in range(3):
        exchange(sidecar, app)
    assert bed.redirected(Hop.SIDECAR_APP) == 1
    assert bed.tcp_reasons() == {"peer_busy": 1, "settled": 3}


def _receive(sock: socket.socket, fault: Fault) -> None:
    sock.recv_into(fault.page)


def _send(sock: socket.socket, data: bytes | mmap.mmap) -> None:
    sock.send(data)


def _ends_first(fault: Fault, hold: Callable[[], None], send: Callable[[], None]) -> bool:
    """Whether `send` ends while `hold` is still held up by the fault."""
    holding = Side(hold)
    fault.wait(PATIENCE_SECONDS)
    sending = Side(send)
    ended_first = _ended(sending)
    fault.resolve()
    holding.join()
    sending.join()
    return ended_first


def _ended(side: Side) -> bool:
    """Whether it ends by itself; if it does not, something else must let it go."""
    try:
        eventually(lambda: not side.running)
    except AssertionError:
        return False
    return True


def _redirects_again(bed: Bed, trip: Callable[[], None], hop: Hop = Hop.SIDECAR_APP) -> None:
    """The bytes by TCP were read: the short cut is open again."""

    def back() -> bool:
        before = bed.redirected(hop, Way.REQUEST)
        trip()
        return bed.redirected(hop, Way.REQUEST) > before

    eventually(back)

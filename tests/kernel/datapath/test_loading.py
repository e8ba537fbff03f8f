"""The life of the data path: started, adopted, handed over, removed; and killed in between."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from accel.bpf import Link, Map
from accel.bpf.door import syscall, uapi
from accel.datapath import loading
from accel.datapath.datapath import Datapath
from accel.datapath.errors import DatapathError, NotRunning
from accel.datapath.generation import generations
from accel.datapath.layout import Verdict
from tests.kernel.datapath.bed import (
    CONSTANTS,
    Bed,
    Network,
    Pair,
    Side,
    eventually,
    exchange,
    over,
    read,
    read_to_end,
    some_bytes,
    write,
)

pytestmark = pytest.mark.kernel

ROOM = 1024
SO_ZEROCOPY = 60  # asm-generic/socket.h


@contextmanager
def started(network: Network, bpffs: Path, room: int = ROOM) -> Iterator[Bed]:
    """A bed whose data path is pinned, and stays so when this is over."""
    with loading.start(bpffs, network.cgroup, CONSTANTS, room) as datapath:
        pins = datapath.generation
        with (
            Map.from_pin(pins.map("sockets")) as sockets,
            Map.from_pin(pins.map("kept_out")) as kept_out,
        ):
            bed = over(network, datapath, {"sockets": sockets, "kept_out": kept_out})
            try:
                yield bed
            finally:
                bed.close_sockets()


@pytest.fixture(autouse=True)
def removed(bpffs: Path, network: Network) -> Iterator[None]:
    """Whatever a test leaves pinned is taken off the cgroup when it ends."""
    yield
    with loading.start(bpffs, network.cgroup, CONSTANTS, ROOM):
        pass
    loading.remove(bpffs)
    assert list(generations(bpffs)) == []


def _accelerated(bed: Bed, pair: Pair) -> int:
    """Messages redirected by one exchange."""
    before = bed.datapath.statistics().total.messages_redirected
    exchange(*pair)
    return bed.datapath.statistics().total.messages_redirected - before


def _new_pair(bed: Bed) -> Pair:
    return bed.pair(bed.a.app, bed.a.sidecar)


def test_second_start_adopts(network: Network, bpffs: Path) -> None:
    with started(network, bpffs) as first:
        first.trust()
        pair = _new_pair(first)
        assert _accelerated(first, pair) == 2
        first.datapath.pause(first.b.inode)
        with started(network, bpffs) as second:
            assert _accelerated(second, pair) == 2
            assert len(second.datapath.connections()) == 1
            assert second.datapath.have() == first.datapath.have()
            assert second.datapath.paused_pods == {first.b.inode}
            assert _accelerated(second, _new_pair(second)) == 2
    with loading.open_running(bpffs) as opened:
        assert opened.statistics().accepted == 2


def test_acceleration_outlives_the_agent(network: Network, bpffs: Path) -> None:
    with started(network, bpffs) as bed:
        bed.trust()
        client, server = (sock.dup() for sock in _new_pair(bed))
    with client, server:
        exchange(client, server)
        with loading.open_running(bpffs) as datapath:
            assert datapath.statistics().total.messages_redirected == 2


def test_other_generation_takes_over(network: Network, bpffs: Path) -> None:
    with started(network, bpffs) as old:
        old.trust()
        pair = _new_pair(old)
        old.datapath.pause(old.b.inode)
        with started(network, bpffs, room=2 * ROOM) as new:
            assert [g.max_connections for g in generations(bpffs)] == [2 * ROOM]
            assert new.datapath.paused_pods == {old.b.inode}
            # The old connection ends on the programs and maps it began with.
            assert _accelerated(old, pair) == 2
            new.trust()
            assert _accelerated(new, _new_pair(new)) == 2
            assert new.datapath.statistics().accepted == 1
            assert old.datapath.statistics().accepted == 1


def test_stream_survives_a_take_over_and_a_removal(network: Network, bpffs: Path) -> None:
    data = some_bytes(16 << 20, 40)

    def send(sock: socket.socket) -> None:
        for at in range(0, len(data), 10_000):
            write(sock, data[at : at + 10_000])
        sock.shutdown(socket.SHUT_WR)

    with started(network, bpffs) as old:
        old.trust()
        client, server = _new_pair(old)
        sending = Side(lambda: send(client))
        reading = Side(lambda: read_to_end(server))
        with started(network, bpffs, room=2 * ROOM):
            assert loading.remove(bpffs) == 0
        sending.join()
        assert reading.join() == data


def test_removal_during_transfer_loses_no_byte(network: Network, bpffs: Path) -> None:
    data = some_bytes(16 << 20, 41)

    def send(sock: socket.socket) -> None:
        for at in range(0, len(data), 10_000):
            write(sock, data[at : at + 10_000])
        sock.shutdown(socket.SHUT_WR)

    with started(network, bpffs) as bed:
        bed.trust()
        pairs = [_new_pair(bed) for _ in range(4)]
        sides = [Side(lambda sock=client: send(sock)) for client, _ in pairs]  # type: ignore[misc]
        readers = [Side(lambda sock=server: read_to_end(sock)) for _, server in pairs]  # type: ignore[misc]
        eventually(lambda: bed.datapath.statistics().total.messages_redirected > 20)
        assert loading.remove(bpffs) == 4
        for side, reader in zip(sides, readers, strict=True):
            side.join()
            assert reader.join() == data
        assert list(generations(bpffs)) == []
        later, _ = _new_pair(bed)
        assert bed.record(later) is None
    with pytest.raises(NotRunning):
        loading.open_running(bpffs)
    with pytest.raises(NotRunning):
        loading.remove(bpffs)


def test_other_cgroup_is_refused(network: Network, bpffs: Path, cgroup: Path) -> None:
    with started(network, bpffs) as bed:
        bed.trust()
        with pytest.raises(DatapathError, match="another cgroup") as caught:
            loading.start(bpffs, cgroup, CONSTANTS, ROOM)
        assert caught.value.remedy
        with pytest.raises(DatapathError, match="another cgroup"):
            loading.start(bpffs, cgroup, CONSTANTS, 2 * ROOM)
        assert [g.max_connections for g in generations(bpffs)] == [ROOM]
        assert _accelerated(bed, _new_pair(bed)) == 2


def _guarded(bed: Bed) -> bool:
    """Is an enrolled socket refused what it cannot bear?"""
    _, server = _new_pair(bed)  # as its listener's port is new, nothing is known of it
    try:
        server.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    except PermissionError:
        return True
    return False


def test_guard_comes_and_goes_with_its_generation(network: Network, bpffs: Path) -> None:
    with started(network, bpffs) as old:
        old.trust()
        assert _guarded(old)
        of_old = old.datapath.generation.guard
        with started(network, bpffs, room=2 * ROOM) as new:
            new.trust()
            assert _guarded(new)
            assert not of_old.exists()
        with Link.from_pin(new.datapath.generation.guard) as guard:
            loading.remove(bpffs)
            assert not guard.info().cgroup_id


@pytest.mark.parametrize("room", [ROOM, 2 * ROOM], ids=["its own", "another's"])
def test_generation_without_a_guard_gets_one(network: Network, bpffs: Path, room: int) -> None:
    """As an older accel left it."""
    with started(network, bpffs) as bed:
        bed.trust()
        bed.datapath.generation.guard.unlink()
        assert not _guarded(bed)
        with started(network, bpffs, room) as next_bed:
            next_bed.trust()
            assert _guarded(next_bed)


def test_zero_copy_that_no_guard_saw_leaves(network: Network, bpffs: Path) -> None:
    with started(network, bpffs) as bed:
        bed.trust()
        bed.datapath.generation.guard.unlink()
        client, server = _new_pair(bed)
        client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        client.send(b"by TCP")
        assert bed.tcp_reasons() == {"zero_copy": 1}
        eventually(lambda: bed.enrolled() == 1)
        assert read(server, 6) == b"by TCP"
        exchange(client, server)


def test_cgroup_that_was_removed(network: Network, bpffs: Path, cgroup: Path) -> None:
    """Its link is an empty husk: the next start attaches anew."""
    doomed = cgroup / "doomed"
    doomed.mkdir()
    with loading.start(bpffs, doomed, CONSTANTS, ROOM) as datapath:
        pin = datapath.generation.link
    doomed.rmdir()
    with Link.from_pin(pin) as link:
        # The kernel does it a moment later, cgroup_bpf_release().
        eventually(lambda: not link.info().cgroup_id)
    with started(network, bpffs) as bed:
        bed.trust()
        assert _accelerated(bed, _new_pair(bed)) == 2


# --- killed between any two steps ---------------------------------------------------------------

MUTATING = {
    uapi.Cmd.OBJ_PIN,
    uapi.Cmd.PROG_ATTACH,
    uapi.Cmd.LINK_CREATE,
    uapi.Cmd.LINK_UPDATE,
    uapi.Cmd.LINK_DETACH,
}
FILE_STEPS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def _killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that is killed before its `step`th change of anything lasting.

    Returns:
        Whether there were that many.
    """
    child = os.fork()
    if child == 0:
        left = step

        def count() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, _: tuple[Any, ...]) -> None:
            if event in FILE_STEPS:
                count()

        door = syscall.bpf

        def bpf(attr: uapi.Attr, action: str) -> int:
            if attr.CMD in MUTATING:
                count()
            return door(attr, action)

        try:
            syscall.bpf = bpf
            sys.addaudithook(audit)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0, f"step {step}: the child failed"
    return False


def _is_alive(network: Network, bpffs: Path, room: int = ROOM) -> None:
    """The next start finds its way, and connections are accelerated."""
    with started(network, bpffs, room) as bed:
        assert bed.datapath.enabled
        bed.trust()
        assert _accelerated(bed, _new_pair(bed)) == 2
        assert _guarded(bed)
        bed.assert_forgotten()
    assert [g.max_connections for g in generations(bpffs)] == [room]


def _start(network: Network, bpffs: Path, room: int = ROOM) -> Datapath:
    return loading.start(bpffs, network.cgroup, CONSTANTS, room)


def test_start_may_be_killed_anywhere(network: Network, bpffs: Path) -> None:
    step = 0
    while _killed_at(step, lambda: _start(network, bpffs)):
        _is_alive(network, bpffs)
        loading.remove(bpffs)
        step += 1
    assert step > 10


def test_take_over_may_be_killed_anywhere(network: Network, bpffs: Path) -> None:
    step, room = 0, 2 * ROOM
    _start(network, bpffs).close()
    while _killed_at(step, partial(_start, network, bpffs, room)):
        _is_alive(network, bpffs, room)
        step, room = step + 1, 3 * ROOM - room
    assert step > 10


def test_removal_may_be_killed_anywhere(network: Network, bpffs: Path) -> None:
    step = 0
    _start(network, bpffs).close()
    while _killed_at(step, lambda: loading.remove(bpffs)):
        _is_alive(network, bpffs)
        step += 1
    assert step > 10
    assert list(generations(bpffs)) == []


def test_live_connections_survive_a_kill(network: Network, bpffs: Path) -> None:
    with started(network, bpffs) as bed:
        bed.trust()
        pair = _new_pair(bed)
        for step in range(0, 20, 3):
            _killed_at(step, lambda: _start(network, bpffs, 2 * ROOM))
            exchange(*pair)
        listing = bed.record(pair[0])
        assert listing is not None
        assert listing.connection.verdict == Verdict.ACCEPTED
        assert bed.datapath.statistics().total.messages_tcp == 0

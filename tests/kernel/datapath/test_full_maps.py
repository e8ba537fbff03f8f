"""No room in a map, or for a socket's storage: TCP, the reason counted, nothing half recorded."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from struct import pack

import pytest

from accel.core.model import Role
from accel.core.plan import Action, ContainerEntry, PodEntry, SetAddress, SetContainer, SetPod
from accel.datapath.layout import Hop, address_bytes
from tests.kernel.datapath.bed import (
    Bed,
    Network,
    Pair,
    Socket,
    attached,
    begin,
    eventually,
    exchange,
    read,
    some_bytes,
    write,
)

pytestmark = pytest.mark.kernel


def _carries(pair: Pair) -> None:
    """Bytes in both directions, more than one message."""
    for number, (one, other) in enumerate((pair, pair[::-1])):
        data = some_bytes(50_000, number)
        write(one, data)
        assert read(other, len(data)) == data


# --- the sockhash ------------------------------------------------------------------------


def test_no_room_for_either_socket(network: Network) -> None:
    with attached(network, sizes={"sockets": 2}) as bed:
        bed.mesh(bed.a, enrol_apps=True)
        first = bed.pair(bed.a.app, bed.a.sidecar)
        second = bed.pair(bed.a.app, bed.a.sidecar)
        for pair in (first, second):
            _carries(pair)
        assert bed.reason(second[0]) == "sockets_full"
        assert bed.datapath.statistics().refused == {"sockets_full": 1}
        assert bed.redirected() == 1

        for sock in first:
            sock.close()
        eventually(lambda: bed.enrolled() == 0)
        third = bed.pair(bed.a.app, bed.a.sidecar)
        _carries(third)
        assert bed.reason(third[0]) is None
        _carries(second)
        assert bed.redirected() == 2
        bed.assert_forgotten()


def test_room_for_one_of_the_two_sockets(network: Network) -> None:
    """The end that got in leaves again, so the room is not lost to a refused connection."""
    with attached(network, sizes={"sockets": 1}) as bed:
        bed.mesh(bed.a, enrol_apps=True)
        pair = bed.pair(bed.a.app, bed.a.sidecar)
        _carries(pair)
        assert bed.reason(pair[0]) == "sockets_full"
        assert bed.redirected() == 0
        eventually(lambda: bed.enrolled() == 0)
        assert bed.datapath.statistics().evicted == 1
        bed.assert_forgotten()


# --- the memory a socket may use ------------------------------------------------------------

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
RET_ALL = pack("@HBBI", 0x06, 0, 0, 0xFFFFFFFF)
MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# Of net.core.optmem_max before 6.8: a single filter is enough to use it up.
OPTION_MEMORY_BYTES = 20_480


@pytest.fixture
def little_option_memory(network: Network) -> Iterator[None]:
    name = "net.core.optmem_max"
    netns = network.a.netns
    with ExitStack() as stack:
        # Before 6.8 it is the whole node's, not in a namespace, and as small as we want it.
        with suppress(FileNotFoundError):
            ours = netns.call(Path("/proc/sys", *name.split(".")).read_text)
            netns.set_sysctl(name, OPTION_MEMORY_BYTES)
            stack.callback(netns.set_sysctl, name, int(ours))
        yield


def _exhaust_option_memory(sock: Socket) -> None:
    """The largest packet filter that the socket may have; it lets all pass."""
    fits, too_many = 1, MOST_INSTRUCTIONS
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _attach_filter(sock, middle):
            fits = middle
            sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        else:
            too_many = middle
    assert too_many < MOST_INSTRUCTIONS
    # A filter that was let go is uncharged after a grace period.
    eventually(lambda: _attach_filter(sock, fits))


def _attach_filter(sock: Socket, instructions: int) -> bool:
    program = ctypes.create_string_buffer(RET_ALL * instructions)
    described = pack("@HP", instructions, ctypes.addressof(program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return False
    return True


@pytest.mark.usefixtures("little_option_memory")
def test_no_storage_for_the_active_socket(bed: Bed) -> None:
    bed.trust()
    with bed.a.sidecar.listen() as listener:
        client = bed.keep(bed.a.app.socket())
        _exhaust_option_memory(client)
        begin(client, listener.getsockname())
        server = bed.keep(listener.accept()[0])
        server.setblocking(False)
        _carries((client, server))
    assert bed.datapath.statistics().refused == {"no_storage": 1, "no_peer": 1}
    assert bed.enrolled() == 0
    bed.assert_forgotten()


@pytest.mark.usefixtures("little_option_memory")
def test_no_storage_for_the_passive_socket(bed: Bed) -> None:
    """An accepted socket is charged for its listener's filter."""
    bed.trust()
    with bed.a.sidecar.listen() as listener:
        _exhaust_option_memory(listener)
        pair = bed.connect(bed.a.app, listener)
        _carries(pair)
    assert bed.reason(pair[0]) == "no_storage"
    assert bed.datapath.statistics().refused == {"no_storage": 1}
    eventually(lambda: bed.enrolled() == 0)
    # The end that could not be noted tells nobody that it closes.
    bed.assert_forgotten()


# --- what the agent writes ------------------------------------------------------------------


def _pod(bed: Bed, number: int, role: Role = Role.APP) -> tuple[Action, ...]:
    """A pod that exists nowhere, with one container and one address."""
    return (
        SetContainer(1 << 40 | number, ContainerEntry(number, role)),
        SetPod(number, PodEntry()),
        SetAddress(address_bytes(f"10.99.0.{number}").bytes, number),
    )


@pytest.mark.parametrize("full", ["pods", "containers", "addresses"])
def test_agent_says_what_found_no_room(network: Network, full: str) -> None:
    held = {"pods": 2, "containers": 4, "addresses": 4}[full]  # what the bed itself needs
    with attached(network, sizes={full: held}) as bed:
        (problem,) = bed.datapath.apply(_pod(bed, 7))
        assert f"map {full} is full: it holds {held}" in problem
        bed.trust()
        _carries(bed.pair(bed.a.app, bed.a.sidecar))
        assert bed.redirected() == 1


def test_pod_whose_excluded_container_found_no_room_is_switched_off(network: Network) -> None:
    """Without its entry it would count as an application's, and be accelerated."""
    with attached(network, sizes={"containers": 4}) as bed:
        bed.trust()
        stranger = bed.a.helper
        exclude = SetContainer(stranger.cgroup_id, ContainerEntry(bed.a.inode, Role.EXCLUDED))
        full, off = bed.datapath.apply([exclude])
        assert "is full" in full
        assert f"pod {bed.a.inode} is not accelerated" in off
        _carries(bed.pair(stranger, bed.a.sidecar))
        _carries(bed.pair(bed.a.app, bed.a.sidecar))
        assert bed.datapath.connections() == ()
        assert bed.a.inode not in bed.datapath.have().pods

        (still_off,) = bed.datapath.apply([exclude, SetPod(bed.a.inode, PodEntry())])[1:]
        assert still_off == off
        assert bed.a.inode not in bed.datapath.have().pods


def test_forgotten_blocking_listener_is_learnt_again(network: Network) -> None:
    """Whoever listens on many ports pushes out what is known of others: they are told anew."""
    with attached(network, sizes={"kept_out": 64}) as bed:
        bed.mesh(bed.a, enrol_apps=True)
        for _ in range(2):
            with bed.a.app.listen() as listener:
                mine = pack("=QII", bed.a.app.cgroup_id, bed.a.inode, listener.getsockname()[1])
                client, server = bed.connect(bed.a.sidecar, listener)
                server.setblocking(True)
                exchange(client, server)
                assert bed.kept_out.lookup(mine) is not None
                for port in range(1000):
                    bed.kept_out.update(pack("=QII", 1, 1, port), pack("=I", 1))
                assert bed.kept_out.lookup(mine) is None
                exchange(client, server)
                client, server = bed.connect(bed.a.sidecar, listener)
                server.setblocking(True)
                exchange(client, server)
                assert bed.kept_out.lookup(mine) is not None
        assert bed.redirected(Hop.SIDECAR_APP) == 0
        bed.assert_forgotten()

"""What is remembered of connections: right while they live, gone when they close."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from accel.datapath.layout import EventKind, EventRecord, Hop, LiveEnd, TcpState, Verdict, Way
from tests.kernel.datapath.bed import (
    PATIENCE_SECONDS,
    Bed,
    Side,
    begin,
    eventually,
    exchange,
    read,
    read_to_end,
    some_bytes,
    wait_for,
    write,
)

pytestmark = pytest.mark.kernel


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_listing_says_what_the_sockets_do(bed: Bed) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.sidecar, bed.b.sidecar, bed.b.address)
    client.send(b"unread")
    listing = bed.record(client)
    assert listing is not None
    active, passive = listing.connection.ends
    assert (str(active.local_address), active.local_port) == client.getsockname()
    assert (str(active.remote_address), active.remote_port) == client.getpeername()
    assert (str(passive.local_address), passive.local_port) == server.getsockname()
    assert (str(passive.remote_address), passive.remote_port) == server.getpeername()
    assert (active.netns, passive.netns) == (bed.a.inode, bed.b.inode)
    assert (active.cgroup_id, passive.cgroup_id) == (
        bed.a.sidecar.cgroup_id,
        bed.b.sidecar.cgroup_id,
    )
    assert [live.tcp_state for live in listing.live] == [TcpState.ESTABLISHED] * 2
    assert listing.live[1].queued_bytes == 6

    assert read(server, 6) == b"unread"
    assert _live(bed, client)[1].queued_bytes == 0
    client.shutdown(socket.SHUT_WR)
    wait_for(server, select.POLLRDHUP)
    states = [TcpState.FIN_WAIT2, TcpState.CLOSE_WAIT]
    eventually(lambda: [live.tcp_state for live in _live(bed, client)] == states)


def _live(bed: Bed, sock: socket.socket) -> tuple[LiveEnd, LiveEnd]:
    listing = bed.record(sock)
    assert listing is not None
    return listing.live


def test_every_byte_is_counted_once(bed: Bed) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    data = some_bytes(5 << 20, 30)

    def send() -> None:
        for at in range(0, len(data), 50_000):
            write(client, data[at : at + 50_000])
            if at % 300_000 == 0:
                bed.datapath.pause()
            elif at % 200_000 == 0:
                bed.datapath.resume()

    sending = Side(send)
    assert read(server, len(data)) == data
    sending.join()
    listing = bed.record(client)
    assert listing is not None
    direction = listing.connection.directions[Way.REQUEST]
    traffic = bed.datapath.statistics().traffic[Hop.APP_SIDECAR, Way.REQUEST]
    assert direction.bytes_redirected + direction.bytes_tcp == len(data)
    assert direction.bytes_redirected
    assert direction.bytes_tcp
    assert (traffic.bytes_redirected, traffic.bytes_tcp) == (
        direction.bytes_redirected,
        direction.bytes_tcp,
    )
    assert (traffic.messages_redirected, traffic.messages_tcp) == (
        direction.messages_redirected,
        direction.messages_tcp,
    )
    assert sum(traffic.messages_tcp_by_reason.values()) == traffic.messages_tcp


@pytest.mark.parametrize("how", ["active", "passive", "both at once"])
@pytest.mark.parametrize("abort", [False, True], ids=["close", "reset"])
def test_nothing_is_left_of_closed_connections(bed: Bed, how: str, abort: bool) -> None:
    """Of each kind a thousand: accepted, refused, idle, with unread data."""
    bed.trust()
    end = _reset if abort else socket.socket.close
    with bed.a.sidecar.listen() as listener, bed.a.app.listen() as app_listener:
        for batch in range(10):
            pairs = []
            for number, client in enumerate(bed.a.app.sockets(100)):
                to = app_listener if number % 4 == 0 else listener
                begin(client, to.getsockname())
                server = to.accept()[0]
                if number % 2:
                    client.send(b"unread")
                pairs.append((client, server))
            for client, server in pairs:
                first, second = (server, client) if how == "passive" else (client, server)
                if how == "both at once" and batch % 2:
                    side = Side(lambda sock=first: end(sock))  # type: ignore[misc]
                    end(second)
                    side.join()
                else:
                    end(first)
                    end(second)
    bed.assert_forgotten()
    assert bed.datapath.statistics().accepted == 750


def test_nothing_is_left_of_connections_never_accepted(bed: Bed) -> None:
    bed.trust()
    with bed.a.sidecar.listen(backlog=64) as listener:
        clients = bed.a.app.sockets(50)
        for client in clients:
            begin(client, listener.getsockname())
            client.send(b"anybody there?")
    for client in clients:
        with suppress(OSError):
            read_to_end(client)
        client.close()
    bed.assert_forgotten()


def test_failed_connects_leave_nothing(bed: Bed) -> None:
    bed.trust()
    for client in bed.a.app.sockets(100):
        with client, pytest.raises(ConnectionRefusedError):
            begin(client, ("127.0.0.1", 9))
    assert bed.datapath.connections() == ()
    assert bed.enrolled() == 0


HOLD = "import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"


@pytest.mark.parametrize("ends", ["one", "both"])
def test_nothing_is_left_of_killed_processes(bed: Bed, ends: str) -> None:
    bed.trust()
    pairs = [bed.pair(bed.a.app, bed.a.sidecar) for _ in range(50)]
    for client, server in pairs:
        exchange(client, server)
        client.send(b"unread")
        server.send(b"unread")
    doomed = [sock for pair in pairs for sock in (pair if ends == "both" else pair[:1])]
    fds = [sock.fileno() for sock in doomed]
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=fds,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.read(1) == b"."
        for sock in doomed:
            sock.close()
        assert bed.enrolled() == 100
        os.kill(holder.pid, signal.SIGKILL)
    if ends == "one":
        eventually(lambda: bed.enrolled() == 50)
        for _, server in pairs:
            assert read(server, 6) == b"unread"
    bed.assert_forgotten()


Events = MemoryObjectReceiveStream[EventRecord]


@asynccontextmanager
async def _listening(bed: Bed) -> AsyncIterator[Events]:
    """The events of what happens inside, however many."""
    sender, receiver = anyio.create_memory_object_stream[EventRecord](100_000)

    async def forward() -> None:
        async for event in bed.datapath.events():
            sender.send_nowait(event)

    with sender, receiver:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(forward)
            await anyio.lowlevel.checkpoint()  # its first turn: it switches events on
            yield receiver
            tasks.cancel_scope.cancel()


async def _take(events: Events, count: int) -> list[EventRecord]:
    with anyio.fail_after(PATIENCE_SECONDS):
        return [await events.receive() for _ in range(count)]


@pytest.mark.anyio
async def test_events(bed: Bed) -> None:
    bed.trust()
    async with _listening(bed) as events:
        client, server = bed.pair(bed.a.app, bed.a.sidecar)
        exchange(client, server)
        refused, _ = bed.pair(bed.a.app, bed.a.app)
        port = client.getsockname()[1]
        client.close()
        server.close()
        accepted, refusal, closed = await _take(events, 3)

    kinds = [event.kind for event in (accepted, refusal, closed)]
    assert kinds == [EventKind.ACCEPTED, EventKind.REFUSED, EventKind.CLOSED]
    assert accepted.key == closed.key
    assert accepted.connection.ends[0].local_port == port
    assert accepted.connection.verdict == Verdict.ACCEPTED
    assert bed.datapath.reason(refusal.connection.reason) == "roles"
    assert refusal.connection.ends[0].local_port == refused.getsockname()[1]
    # The last state of a connection comes with its end.
    assert [d.messages_redirected for d in closed.connection.directions] == [1, 1]
    assert accepted.at_ns <= closed.at_ns


@pytest.mark.anyio
async def test_lost_events_are_counted(bed: Bed) -> None:
    """Two thousand connections while the reader does not get its turn: 1 MiB is not enough."""
    bed.trust()
    async with _listening(bed) as events:
        with bed.a.sidecar.listen() as listener:
            for _ in range(20):
                for client in bed.a.app.sockets(100):
                    with client:
                        begin(client, listener.getsockname())
                        listener.accept()[0].close()
        eventually(lambda: not bed.datapath.connections())
        lost = bed.datapath.statistics().events_lost
        assert 0 < lost < 4000
        await _take(events, 4000 - lost)

        # There is room again, and the list never depended on it.
        exchange(*bed.pair(bed.a.app, bed.a.sidecar))
        (event,) = await _take(events, 1)
        assert event.kind == EventKind.ACCEPTED
        assert [listing.key for listing in bed.datapath.connections()] == [event.key]

    # Nobody listens any more: nothing is written, so nothing lost.
    exchange(*bed.pair(bed.a.app, bed.a.sidecar))
    assert bed.datapath.statistics().events_lost == lost
    bed.assert_forgotten()

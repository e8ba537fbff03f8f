"""How connections end: each way tried accelerated and by plain TCP, and compared.

Where the two differ it is said here, and nowhere else do they.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable

import pytest

from tests.kernel.datapath.bed import (
    Bed,
    Pair,
    Side,
    eventually,
    read,
    read_to_end,
    some_bytes,
    wait_for,
    write,
)

pytestmark = pytest.mark.kernel

Seen = list[object]
Story = Callable[[socket.socket, socket.socket], Seen]

QUEUED_BYTES = 20_000


def _outcome(act: Callable[[], object]) -> object:
    """What a call gives: its value, or the name of its error."""
    try:
        return act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _recv(sock: socket.socket) -> object:
    wait_for(sock, select.POLLIN)
    return _outcome(lambda: sock.recv(100))


def _hang_up(sock: socket.socket) -> None:
    """Wait until the peer's FIN or RST is here."""
    wait_for(sock, select.POLLRDHUP)


def half_close_with_data_before(one: socket.socket, other: socket.socket) -> Seen:
    data = some_bytes(300_000, 20)
    sending = Side(lambda: write(one, data))
    received = read(other, 1000)

    def finish() -> None:
        sending.join()
        one.shutdown(socket.SHUT_WR)

    ending = Side(finish)
    received += read_to_end(other)
    ending.join()
    return [received == data, _outcome(lambda: one.send(b"late"))]


def half_close_and_data_back(one: socket.socket, other: socket.socket) -> Seen:
    one.send(b"question")
    one.shutdown(socket.SHUT_WR)
    asked = read_to_end(other)
    answer = some_bytes(300_000, 21)
    sending = Side(lambda: write(other, answer))
    received = read(one, len(answer))
    sending.join()
    other.shutdown(socket.SHUT_WR)
    return [asked, received == answer, _recv(one)]


def close_with_queued_data(one: socket.socket, other: socket.socket) -> Seen:
    data = some_bytes(QUEUED_BYTES, 22)
    one.send(data)
    one.close()
    return [read_to_end(other) == data]


def reset_with_queued_data(one: socket.socket, other: socket.socket) -> Seen:
    data = some_bytes(QUEUED_BYTES, 23)
    one.send(data)
    _reset(one)
    _hang_up(other)
    return [read(other, QUEUED_BYTES) == data, _recv(other), _recv(other)]


def close_with_unread_data(one: socket.socket, other: socket.socket) -> Seen:
    one.send(b"never read")
    wait_for(other, select.POLLIN)
    other.close()
    _hang_up(one)
    return [_recv(one)]


def send_after_shutdown(one: socket.socket, other: socket.socket) -> Seen:
    one.send(b"one ")
    one.shutdown(socket.SHUT_WR)
    sent = _outcome(lambda: one.send(b"two"))
    return [sent, read_to_end(other)]


def send_to_a_closed_peer(one: socket.socket, other: socket.socket) -> Seen:
    one.send(b"read ")
    assert read(other, 5) == b"read "
    other.close()
    _hang_up(one)
    first = _outcome(lambda: one.send(b"lost"))
    wait_for(one, select.POLLERR | select.POLLHUP)
    return [first, *(_outcome(lambda: one.send(b"lost")) for _ in range(3))]


def send_to_a_peer_that_reads_no_more(one: socket.socket, other: socket.socket) -> Seen:
    other.shutdown(socket.SHUT_RD)
    return [_outcome(lambda: one.send(b"ignored?")), _recv(other)]


def peek_then_read(one: socket.socket, other: socket.socket) -> Seen:
    one.send(b"first ")
    one.send(b"second")
    wait_for(other, select.POLLIN)
    return [other.recv(6, socket.MSG_PEEK), read(other, 12)]


def nothing_to_read(one: socket.socket, other: socket.socket) -> Seen:
    return [_outcome(lambda: other.recv(10)), select.select([other], [one], [], 0)[1] == [one]]


STORIES: dict[Story, Seen | None] = {
    # What differs from plain TCP, where anything does.
    half_close_with_data_before: None,
    half_close_and_data_back: None,
    close_with_queued_data: None,
    reset_with_queued_data: None,
    # close() looks at TCP's own queue only: a FIN instead of a RST.
    close_with_unread_data: [b""],
    send_after_shutdown: None,
    send_to_a_closed_peer: None,
    send_to_a_peer_that_reads_no_more: None,
    peek_then_read: None,
    nothing_to_read: None,
}


@pytest.mark.parametrize("by", ["active", "passive"])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_ending(bed: Bed, story: Story, by: str) -> None:
    bed.trust()

    def tell(pair: Pair) -> Seen:
        return story(*(pair if by == "active" else pair[::-1]))

    plain = tell(bed.pair(bed.network.stray, bed.network.stray))
    pair = bed.pair(bed.a.app, bed.a.sidecar)
    accelerated = tell(pair)
    different = STORIES[story]
    assert accelerated == (plain if different is None else different)
    if different is not None:
        assert plain != different, "no longer different"
    bed.assert_forgotten()


def test_reset_by_a_full_queue(bed: Bed) -> None:
    """A sender that gives up while its bytes wait in both paths."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    data = some_bytes(100_000, 24)
    for at in range(0, len(data), 10_000):
        client.send(data[at : at + 10_000])
    assert bed.redirected() > 0
    assert bed.by_tcp() > 0
    client.close()
    assert read_to_end(server) == data
    eventually(lambda: bed.enrolled() <= 1)
    bed.assert_forgotten()

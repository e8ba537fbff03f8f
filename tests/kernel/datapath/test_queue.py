"""A reader that sleeps: its queue is bounded, the sender is told, and no byte is lost."""

from __future__ import annotations

import re
import select
import socket
from pathlib import Path

import pytest

from tests.kernel.datapath.bed import (
    Bed,
    Pair,
    Side,
    eventually,
    fill,
    read,
    some_bytes,
    this_kernel,
    write,
)
from tests.patience import few

pytestmark = pytest.mark.kernel

MOST_BYTES = 8 << 20
TINY_MESSAGES = few(300_000)
SLACK_BYTES = 4 << 20  # what else a machine does meanwhile


@pytest.fixture
def trusting(either_bed: Bed) -> Bed:
    either_bed.trust()
    return either_bed


def _accelerated(bed: Bed) -> Pair:
    return bed.pair(bed.a.app, bed.a.sidecar)


def _plain(bed: Bed) -> Pair:
    return bed.pair(bed.network.stray, bed.network.stray)


def _memory_bytes() -> int:
    """What the kernel uses for TCP's buffers, and for small objects of all kinds.

    A redirected message is a kmalloc-1k object that TCP's own account does not show.
    """
    sockstat = Path("/proc/net/sockstat").read_text()
    meminfo = Path("/proc/meminfo").read_text()
    pages = re.search(r"^TCP: .* mem (\d+)$", sockstat, re.MULTILINE)
    slab = re.search(r"^SUnreclaim:\s+(\d+) kB$", meminfo, re.MULTILINE)
    assert pages is not None
    assert slab is not None
    return int(pages[1]) * 4096 + int(slab[1]) * 1024


def _queue_up(pair: Pair, data: bytes, piece: int) -> tuple[int, int]:
    """Send to a sleeping reader.  Bytes sent, and bytes of kernel memory that cost."""
    before = _memory_bytes()
    sent = fill(pair[0], data, piece)
    return sent, _memory_bytes() - before


@pytest.mark.parametrize(
    "piece",
    [1 << 10, 16 << 10, pytest.param(64 << 10, marks=pytest.mark.essential), 1 << 20],
)
def test_sender_is_stopped_as_by_plain_tcp(trusting: Bed, piece: int) -> None:
    data = some_bytes(16 << 20, 8)
    _, plain_memory = _queue_up(_plain(trusting), data, piece)
    pair = _accelerated(trusting)
    sent, memory = _queue_up(pair, data, piece)

    assert sent <= MOST_BYTES
    assert memory <= 2 * plain_memory + SLACK_BYTES
    sending = Side(lambda: write(pair[0], data[sent:]))
    assert read(pair[1], len(data)) == data
    sending.join()


@pytest.mark.essential
def test_tiny_messages(trusting: Bed) -> None:
    """Each redirected message costs a kilobyte, so they are counted, too."""
    data = some_bytes(TINY_MESSAGES, 9)
    _, plain_memory = _queue_up(_plain(trusting), data, 1)
    pair = _accelerated(trusting)
    sent, memory = _queue_up(pair, data, 1)

    assert trusting.redirected() == this_kernel().max_queued_messages
    assert memory <= 2 * plain_memory + SLACK_BYTES
    sending = Side(lambda: write(pair[0], data[sent:]))
    assert read(pair[1], len(data)) == data
    sending.join()


@pytest.mark.essential
def test_small_buffer(trusting: Bed) -> None:
    """At most half of what the receiver allows; TCP behind it waits for no timeout."""
    with trusting.a.sidecar.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # doubled
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client, server = trusting.connect(trusting.a.app, listener)
    data = some_bytes(8 << 20, 11)
    sent = fill(client, data, 1000)
    assert sent < len(data)
    assert 0 < trusting.datapath.statistics().total.bytes_redirected <= 16_384
    sending = Side(lambda: write(client, data[sent:]))
    assert read(server, len(data)) == data
    sending.join()


@pytest.mark.essential
def test_blocking_sender_sleeps_and_goes_on(bed: Bed) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar, blocking=True)
    data = some_bytes(20 << 20, 12)
    sending = Side(lambda: client.sendall(data))
    eventually(lambda: not select.select([], [client], [], 0)[1])
    assert sending.running
    server.setblocking(False)
    assert read(server, len(data)) == data
    sending.join()

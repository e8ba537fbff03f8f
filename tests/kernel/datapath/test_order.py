"""Bytes come in the order they were sent, whichever way each of them goes."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.kernel.datapath.bed import (
    Bed,
    Side,
    begin,
    read,
    read_to_end,
    some_bytes,
    write,
)
from tests.patience import few

pytestmark = [pytest.mark.kernel, pytest.mark.essential]

DEFERRED = few(1000)
STREAMS = few(300)
AT_ONCE = 6


def test_deferred_accept(bed: Bed) -> None:
    """The server end is established by the first data only, so that goes by TCP.

    Apache listens so by default.
    """
    bed.trust()
    with bed.a.sidecar.listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        address = listener.getsockname()
        for _ in range(DEFERRED // 100):
            for client in bed.a.app.sockets(100):
                with client:
                    begin(client, address)
                    for message in (b"one ", b"two ", b"three"):
                        client.send(message)
                    server, _ = listener.accept()
                    with server:
                        assert read(server, 13) == b"one two three"
    statistics = bed.datapath.statistics()
    assert statistics.accepted == DEFERRED
    assert statistics.total.messages_tcp >= DEFERRED
    bed.assert_forgotten()


def _converse(sender: socket.socket, receiver: socket.socket, seed: int) -> None:
    """Send at one pace, in pieces of any size, and read at another."""
    data = some_bytes(random.Random(seed).choice((1, 5000, 300_000, 700_000)), seed)

    def send() -> None:
        choices = random.Random(seed + 1)
        at = 0
        while at < len(data):
            size = choices.choice((1, 50, 1400, 16_384, 65_536, 300_000))
            write(sender, data[at : at + size])
            at += size
            if choices.random() < 0.1:
                time.sleep(choices.random() / 500)
        sender.shutdown(socket.SHUT_WR)

    sending = Side(send)
    choices = random.Random(seed + 2)
    received = bytearray()
    while chunk := read(receiver, choices.choice((1, 100, 4096, 65_536, 300_000))):
        received += chunk
        if choices.random() < 0.1:
            time.sleep(choices.random() / 200)
    sending.join()
    assert bytes(received) == data, f"seed {seed}"


def test_random_alternation(either_bed: Bed) -> None:
    """Any sizes, paces and pauses, both directions at once, several connections at once."""
    bed = either_bed
    bed.trust()
    choices = random.Random(6)
    with bed.a.sidecar.listen() as listener, bed.b.sidecar.listen(bed.b.address) as other:
        for batch in range(STREAMS // AT_ONCE):
            conversations = []
            sockets: list[socket.socket] = []
            for number in range(AT_ONCE):
                if number % 2:
                    pair = bed.connect(bed.a.app, listener)
                else:
                    pair = bed.connect(bed.a.sidecar, other, bed.b.address)
                sockets += pair
                client, server = pair
                seed = 1000 * batch + 10 * number
                conversations += [
                    Side(partial(_converse, client, server, seed)),
                    Side(partial(_converse, server, client, seed + 5)),
                ]
            while any(conversation.running for conversation in conversations):
                if choices.random() < 0.3:
                    bed.datapath.pause()
                    time.sleep(choices.random() / 1000)
                    bed.datapath.resume()
                time.sleep(choices.random() / 200)
            for conversation in conversations:
                conversation.join()
            for sock in sockets:
                sock.close()
    total = bed.datapath.statistics().total
    assert total.messages_redirected
    assert total.messages_tcp
    bed.assert_forgotten()


ECHO = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while data := sock.recv(65536):
    sock.sendall(data)
"""


def test_killed_peer(bed: Bed) -> None:
    """What a process sent before kill -9 arrives, then the end; nothing is left of it."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    server.setblocking(True)
    echo = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", ECHO, str(server.fileno())],
        pass_fds=[server.fileno()],
    )
    server.close()
    try:
        data = some_bytes(40_000, 7)
        client.send(data)
        select.select([client], [], [], 5)
        time.sleep(0.05)
    finally:
        os.kill(echo.pid, signal.SIGKILL)
        echo.wait()
    assert read_to_end(client) == data
    bed.assert_forgotten()

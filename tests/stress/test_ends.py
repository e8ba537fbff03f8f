"""The ends see what is wrong: a changed, moved, lost or added byte, an end that came too early."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.stress.ends import End
from tests.stress.loop import Loop, abort
from tests.stress.script import DOWN, PATTERN, PERIOD, UP, Ending, Part, Plot, write_script
from tests.stress.table import SERVER, Outcome, Row, State, Table

PLOT = Plot(seed=7, workers=1, mean_bytes=60_000)
SCRIPT = next(
    script
    for script in (write_script(PLOT, number) for number in range(1000))
    if script.ending is Ending.CLIENT_SHUTS and script.parts[UP].size > 20_000
)


def _bytes_of(part: Part) -> bytes:
    return bytes(PATTERN[(part.offset + at) % PERIOD] for at in range(part.size))


RIGHT = _bytes_of(SCRIPT.parts[UP])


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path / "table", 16)
    yield table
    table.close()


def _served(table: Table, client: Callable[[socket.socket], object]) -> Row:
    """What the server's end says of a client that does this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    over: list[Outcome] = []
    row = table.begin(SERVER, SCRIPT.number, 0.0)

    def work() -> None:
        with theirs, suppress(OSError):  # the server may well reset what is wrong
            client(theirs)

    thread = threading.Thread(target=work)
    thread.start()
    with Loop() as loop:
        End(loop, ours, SCRIPT, DOWN, table, row, over.append).begin()
        while not over:
            loop.turn()
    thread.join()
    told = table.read(SERVER, SCRIPT.number)
    assert told is not None
    assert told.state is State.DONE
    return told


def _sends(data: bytes) -> Callable[[socket.socket], object]:
    def client(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 20):
            pass

    return client


def test_all_is_well(table: Table) -> None:
    row = _served(table, _sends(RIGHT))
    assert row.outcome is Outcome.COMPLETE
    assert row.received == len(RIGHT)
    assert row.sent == SCRIPT.parts[DOWN].size


def test_the_other_way_is_right_too(table: Table) -> None:
    heard = bytearray()

    def client(sock: socket.socket) -> None:
        sock.sendall(RIGHT)
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(1 << 20):
            heard.extend(data)

    assert _served(table, client).outcome is Outcome.COMPLETE
    assert bytes(heard) == _bytes_of(SCRIPT.parts[DOWN])


@pytest.mark.parametrize("at", [0, 1, len(RIGHT) // 2, len(RIGHT) - 1])
def test_one_changed_byte(table: Table, at: int) -> None:
    changed = RIGHT[:at] + bytes([RIGHT[at] ^ 1]) + RIGHT[at + 1 :]
    assert _served(table, _sends(changed)).outcome is Outcome.WRONG


def test_swapped_messages(table: Table) -> None:
    swapped = RIGHT[4096:8192] + RIGHT[:4096] + RIGHT[8192:]
    assert _served(table, _sends(swapped)).outcome is Outcome.WRONG


def test_a_lost_byte_inside(table: Table) -> None:
    assert _served(table, _sends(RIGHT[:5000] + RIGHT[5001:])).outcome is Outcome.WRONG


def test_a_lost_byte_at_the_end(table: Table) -> None:
    assert _served(table, _sends(RIGHT[:-1])).outcome is Outcome.SHORT


def test_a_byte_too_many(table: Table) -> None:
    assert _served(table, _sends(RIGHT + b"!")).outcome is Outcome.EXTRA


def test_reset(table: Table) -> None:
    def client(sock: socket.socket) -> None:
        sock.sendall(RIGHT[:1000])
        abort(sock)

    row = _served(table, client)
    assert row.outcome is Outcome.RESET
    assert row.received <= 1000

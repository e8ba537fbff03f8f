"""What each process knows of each connection, in memory that outlives a kill -9.

A row for each connection and each of the four processes on its way.  Only that process
writes its row, `state` last; a row is read by others once it is done.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

CLIENT, NEAR, FAR, SERVER = range(4)
KINDS = ("client", "near", "far", "server")
MOST_WORKERS = 16

_STOP_AT = 0
_NEXT_AT = 64  # 8 bytes for each client: the number of its next connection
_READY_AT = _NEXT_AT + 8 * MOST_WORKERS  # 4 bytes for each kind and worker: pid once it works
_ROWS_AT = 4096
_ROW = struct.Struct("<QddQQHHBB")  # number, began, ended, sent, received, port, errno, outcome
_ROW_BYTES = 64
_PROGRESS = struct.Struct("<QQ")
_ENDED_AT, _PROGRESS_AT, _PORT_AT, _ERRNO_AT, _STATE_AT = 16, 24, 40, 42, 45


class State(enum.IntEnum):
    FREE = 0
    OPEN = 1
    DONE = 2


class Outcome(enum.IntEnum):
    """How a connection ended for one process."""

    NONE = 0
    COMPLETE = 1  # every byte and the end of file, as the script says
    ABORTED = 2  # it sent RST, as the script says
    RESET = 3  # the other end, or the kernel, broke it
    SHORT = 4  # end of file before the last byte
    WRONG = 5  # a byte that should not be there
    EXTRA = 6  # more bytes than the script has
    REFUSED = 7  # no connection was made
    KILLED = 8  # the process did not live to tell


class Row(NamedTuple):
    number: int
    began: float
    ended: float
    sent: int
    received: int
    port: int
    errno: int
    outcome: Outcome
    state: State

    @property
    def failed(self) -> bool:
        return self.outcome in (Outcome.WRONG, Outcome.EXTRA)


class Table:
    """The shared memory of a run: a header, and `slots` rows for each kind of process.

    A connection's rows are at its number modulo `slots`, so there have to be far more
    slots than connections at a time.
    """

    def __init__(self, path: Path, slots: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = _ROWS_AT + len(KINDS) * slots * _ROW_BYTES
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
            self.memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        # struct packs byte by byte, so that another process may read half of a number: 0 on
        # the way from 255 to 256.  A view stores all eight bytes of one at once.
        self._words = memoryview(self.memory)[:_ROWS_AT].cast("Q")
        self.slots = slots

    def close(self) -> None:
        self._words.release()
        self.memory.close()

    # The header

    @property
    def stopped(self) -> bool:
        """Whether clients shall begin no more connections."""
        return self.memory[_STOP_AT] != 0

    def stop(self) -> None:
        self.memory[_STOP_AT] = 1

    def next_of(self, client: int) -> int:
        """The number of the next connection that this client begins."""
        return self._words[_NEXT_AT // 8 + client]

    def set_next(self, client: int, number: int) -> None:
        self._words[_NEXT_AT // 8 + client] = number

    def ready_pid(self, kind: int, worker: int) -> int:
        """Of the process that last said it is ready to work."""
        pid: int = struct.unpack_from("<I", self.memory, self._ready_at(kind, worker))[0]
        return pid

    def set_ready(self, kind: int, worker: int) -> None:
        struct.pack_into("<I", self.memory, self._ready_at(kind, worker), os.getpid())

    def _ready_at(self, kind: int, worker: int) -> int:
        return _READY_AT + 4 * (kind * MOST_WORKERS + worker)

    # The rows

    def row_at(self, kind: int, number: int) -> int:
        """Where a connection's row is."""
        return _ROWS_AT + (kind * self.slots + number % self.slots) * _ROW_BYTES

    def read(self, kind: int, number: int) -> Row | None:
        """None: this process has not met that connection."""
        said = _ROW.unpack_from(self.memory, self.row_at(kind, number))
        if said[-1] == State.FREE or said[0] != number:
            return None
        return Row._make((*said[:-2], Outcome(said[-2]), State(said[-1])))

    def is_done(self, kind: int, number: int) -> bool:
        """Whether the connection in this place is, which is asked for little."""
        return self.memory[self.row_at(kind, number) + _STATE_AT] == State.DONE

    def begin(self, kind: int, number: int, now: float) -> int:
        """Open a row; where it is."""
        at = self.row_at(kind, number)
        _ROW.pack_into(self.memory, at, number, now, 0.0, 0, 0, 0, 0, Outcome.NONE, State.FREE)
        self.memory[at + _STATE_AT] = State.OPEN
        return at

    def set_port(self, at: int, port: int) -> None:
        """The port of the connecting end: of this process, for the server of its peer."""
        struct.pack_into("<H", self.memory, at + _PORT_AT, port)

    def progress(self, at: int, sent: int, received: int) -> None:
        _PROGRESS.pack_into(self.memory, at + _PROGRESS_AT, sent, received)

    def end(self, at: int, outcome: Outcome, now: float, errno: int = 0) -> None:
        struct.pack_into("<d", self.memory, at + _ENDED_AT, now)
        struct.pack_into("<HB", self.memory, at + _ERRNO_AT, errno, outcome)
        self.memory[at + _STATE_AT] = State.DONE

    def forget(self, number: int) -> None:
        """Free the rows of a connection."""
        for kind in range(len(KINDS)):
            self.memory[self.row_at(kind, number) + _STATE_AT] = State.FREE

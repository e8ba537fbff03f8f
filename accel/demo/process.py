"""Processes that are put in their place before they begin, and ended when we do."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from accel.demo import enter
from accel.demo.errors import TestbedError

STOP_SECONDS = 5.0
LAST_LINES = 8


class Process:
    """A running process; what it says on standard error is kept."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, log: IO[bytes]) -> None:
        self._popen = popen
        self._log = log
        self.name = name

    def __repr__(self) -> str:
        return f"<Process {self.name} {self.pid}>"

    @property
    def pid(self) -> int:
        """The process id in the host's numbering."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it still lives."""
        return self._popen.poll() is None

    def last_words(self) -> str:
        """The last lines it wrote to standard error."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])

    def wait_until(self, ready: Callable[[], bool], *, seconds: float, remedy: str) -> None:
        """Poll until `ready` answers yes.

        Raises:
            TestbedError: The process ended, or the time was up; with its last words.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.is_running:
                raise self._failure(f"ended with status {self._popen.returncode}", remedy)
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {seconds:g} s", remedy)
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, insist after a while, and reap it."""
        if self.is_running:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()

    def _failure(self, what: str, remedy: str) -> TestbedError:
        words = self.last_words()
        return TestbedError(
            f"{self.name} {what}" + (f"; its last words:\n{words}" if words else ""), remedy=remedy
        )


@contextlib.contextmanager
def started(entry: enter.Entry, argv: Sequence[str], *, name: str) -> Iterator[Process]:
    """Run a command for as long as the context lasts."""
    with tempfile.TemporaryFile() as log:
        process = Process(
            popen(entry, argv, stdout=subprocess.DEVNULL, stderr=log), name=name, log=log
        )
        try:
            yield process
        finally:
            process.stop()


def popen(
    entry: enter.Entry, argv: Sequence[str], *, stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    """Begin a command where `entry` says, deaf to the terminal's Ctrl-C.

    That is for us alone: we end what we started, in order.
    """
    helper = (sys.executable, "-I", "-S", enter.__file__, json.dumps(entry))
    return subprocess.Popen(
        [*helper, *argv],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=() if entry["netns"] is None else (entry["netns"],),
        start_new_session=True,
    )

"""Cgroup v2 directories of the testbed's containers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from accel.demo.errors import TestbedError
from accel.linux.cgroup import members

KILL_SECONDS = 10.0


class Cgroup:
    """A cgroup v2 directory of our own; a context manager.

    At its end all processes in and below it are killed and all directories removed.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir()
        except OSError as error:
            raise TestbedError(
                f"make cgroup {path}: {error.strerror}",
                remedy="run as root, below a mounted cgroup v2 hierarchy",
            ) from error
        self.path = path

    def __repr__(self) -> str:
        return f"<Cgroup {self.path}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def id(self) -> int:
        """The cgroup id: what bpf_get_current_cgroup_id() gives, the directory's inode."""
        return self.path.stat().st_ino

    def close(self) -> None:
        """Kill what is left inside and remove the directory and those below."""
        remove(self.path)


def remove(path: Path) -> None:
    """Kill every process in and below a cgroup, and remove it; nothing if it is not there.

    Raises:
        TestbedError: It would not go.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while path.exists():
        _kill(path)
        try:
            for directory in _tree(path):
                directory.rmdir()
        except OSError as error:
            # EBUSY until the last process has gone.
            if time.monotonic() > deadline:
                raise TestbedError(f"remove cgroup {path}: {error.strerror}") from error
            time.sleep(0.01)


def _tree(path: Path) -> list[Path]:
    """The directories from the leaves up."""
    return [Path(directory) for directory, _, _ in os.walk(path, topdown=False)]


def _kill(path: Path) -> None:
    kill = path / "cgroup.kill"
    if kill.exists():  # Linux 5.14
        kill.write_text("1")
        return
    for pid in (pid for directory in _tree(path) for pid in members(directory)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

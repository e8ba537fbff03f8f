"""A container: a pod's network, a cgroup of its own, a user; and processes in it."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accel.demo import enter
from accel.demo.cgroup import Cgroup
from accel.demo.errors import TestbedError
from accel.demo.netns import Netns
from accel.demo.process import Process, popen, started

T = TypeVar("T")


@dataclass(frozen=True)
class Container:
    """Where a process of a pod runs: network namespace, cgroup and user.

    A process is sent SIGTERM when the thread that started it ends, so that nothing
    outlives a caller that was killed.
    """

    name: str
    netns: Netns
    cgroup: Cgroup
    uid: int
    gid: int
    capabilities: tuple[int, ...] = ()
    """Kept whatever the uid, as CAP_NET_ADMIN for a TPROXY sidecar."""

    def started(
        self, argv: Sequence[str], *, name: str | None = None
    ) -> AbstractContextManager[Process]:
        """Run a command for as long as the context lasts."""
        return started(self._entry(), argv, name=name or argv[0])

    def run(
        self, argv: Sequence[str], *, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end and return its status and output.

        Raises:
            TestbedError: It did not end in time, or could not be entered.
        """
        with popen(self._entry(), argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired as error:
                raise TestbedError(f"{argv[0]} did not end within {seconds:g} s") from error
            finally:
                # Interrupted or late; a process that ended is not touched.
                process.kill()
        if process.returncode == enter.FAILED_BEFORE_EXEC:
            raise TestbedError(err.decode(errors="replace").strip(), remedy="run as root")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def give(self, path: Path) -> None:
        """Make the container's user the owner of a file or directory, whatever our umask."""
        os.chown(path, self.uid, self.gid)

    def call(self, function: Callable[..., T], *args: Any, uid: int | None = None) -> T:
        """Call a function in a forked child inside the container; its result is pickled.

        For tests and small clients.  The caller must have no other running thread, as
        for any fork.  What the function raises is raised here.
        """
        reading, writing = os.pipe()
        entry = self._entry(uid)
        # Python imports late, and its files may lie in a home closed to the new user.
        entry["capabilities"].append(enter.CAP_DAC_READ_SEARCH)
        child = os.fork()
        if child == 0:
            os.close(reading)
            os._exit(_answer(writing, lambda: _enter_and_call(entry, function, args)))
        os.close(writing)
        try:
            with open(reading, "rb") as pipe:
                answer = pipe.read()
        finally:
            os.waitpid(child, 0)
        if not answer:
            raise TestbedError(f"{function!r} died in container {self.name}")
        ok, value = pickle.loads(answer)
        if not ok:
            raise value
        return value  # type: ignore[no-any-return]

    def _entry(self, uid: int | None = None) -> enter.Entry:
        return {
            "netns": self.netns.fd,
            "cgroup": str(self.cgroup.path),
            "uid": self.uid if uid is None else uid,
            "gid": self.gid if uid is None else uid,
            "capabilities": list(self.capabilities),
            "parent": os.getpid(),
        }


def _enter_and_call(entry: enter.Entry, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    enter.enter(entry)
    return function(*args)


def _answer(pipe: int, function: Callable[[], object]) -> int:
    """Write (True, result) or (False, exception) as a pickle; return the exit status."""
    try:
        answer = pickle.dumps((True, function()))
    except BaseException as error:  # noqa: BLE001  the parent raises it
        answer = _pickled_failure(error)
    with open(pipe, "wb") as out:
        out.write(answer)
    return 0


def _pickled_failure(error: BaseException) -> bytes:
    try:
        return pickle.dumps((False, error))
    except Exception:  # noqa: BLE001  an exception may hold anything
        return pickle.dumps((False, TestbedError(f"{type(error).__name__}: {error}")))

"""The first process of a private node: makes its namespaces, and takes everything down again.

    python -I keeper.py '{"directory": "/tmp/node-x", "cgroup": "node-x"}'

Each line on standard input is a program to start, each line on standard output its pid.  When
standard input ends, also because whoever held it was killed, every process of the node is
ended, and its mounts, cgroups and files are removed.

Whatever loses its parent in here becomes a child of this process (PR_SET_CHILD_SUBREAPER), as
containerd's shims do on purpose and containers whose shim was killed.  So only what is a child
of ours is ever ended, and no number of a process can have gone to another meanwhile.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypedDict

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC, MS_PRIVATE, MS_SHARED = 0x4000, 1 << 18, 1 << 20
MNT_DETACH = 2

PATIENCE_SECONDS = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


class Place(TypedDict):
    """Where a node works: a directory that is there, and the name of a cgroup that is not."""

    directory: str
    cgroup: str


class Program(TypedDict):
    argv: list[str]
    env: dict[str, str]
    log: str


def main() -> None:
    place: Place = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _end)
    try:
        _make_namespaces(Path(place["directory"]))
        signal.signal(signal.SIGCHLD, _reap)
        print(os.getpid(), flush=True)  # noqa: T201
        for line in sys.stdin:
            print(_start(json.loads(line)), flush=True)  # noqa: T201
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _take_down(place)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit


def _reap(number: int, frame: FrameType | None) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _make_namespaces(directory: Path) -> None:
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    # Away from the machine's, and then as on a node: containers may follow what is mounted.
    for how in (MS_PRIVATE, MS_SHARED):
        _call("mount", b"none", b"/", None, MS_REC | how, None)
    # /run has the sockets of shims and the names of network namespaces, /var/lib what CNI
    # caches; overlayfs, for images, does not stand on every file system, but on tmpfs.
    for path in (directory / "private", Path("/run"), Path("/var/lib")):
        path.mkdir(exist_ok=True)
        _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", 0, None)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _start(program: Program) -> int:
    log = (program["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    return os.posix_spawn(
        program["argv"][0],
        program["argv"],
        program["env"],
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, *log),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )


def _take_down(place: Place) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while children := list(_children()):
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)
    directory = Path(place["directory"])
    _libc.umount2(os.fsencode(directory / "private"), MNT_DETACH)
    for mount in _cgroup_mounts():
        _remove_cgroups(mount / place["cgroup"])
    shutil.rmtree(directory, ignore_errors=True)


def _children() -> Iterator[int]:
    """Also those that have ended and were not waited for."""
    ours = str(os.getpid())
    for entry in os.scandir("/proc"):
        with suppress(OSError):
            if entry.name.isdecimal():
                _, _, rest = Path(entry.path, "stat").read_text().rpartition(") ")
                if rest.split()[1] == ours:
                    yield int(entry.name)


def _cgroup_mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith(("cgroup ", "cgroup2 ")):
            yield Path(mount.split()[4])


def _remove_cgroups(root: Path) -> None:
    """What is empty can be removed; the kernel may need a moment after the last process."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while root.exists() and time.monotonic() < give_up:
        for directory, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)
        time.sleep(0.01)


def _call(name: str, *arguments: bytes | int | None) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


if __name__ == "__main__":
    main()

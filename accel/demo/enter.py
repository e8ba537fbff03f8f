"""Become a process of a container, then execute its command.

Run as a script of its own, in an interpreter that does nothing else::

    python -I -S enter.py '{"netns": 7, "cgroup": "/sys/fs/cgroup/x", ...}' argv...

A namespace, a cgroup and a uid have to be in place before the first socket is made, and
code between fork() and exec() is unsafe in a program with threads.  A fresh interpreter
has none, and costs ten milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TypedDict

CLONE_NEWNET = 0x40000000
CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
LINUX_CAPABILITY_VERSION_3 = 0x20080522
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
FAILED_BEFORE_EXEC = 125


class Entry(TypedDict):
    """Where a process is to be put; `netns` is an inherited file descriptor.

    None for `netns` or `cgroup` leaves the process in its parent's.  `capabilities` are
    kept whatever the uid, and no others; root keeps all it has.
    """

    netns: int | None
    cgroup: str | None
    uid: int
    gid: int
    capabilities: list[int]
    parent: int


def enter(entry: Entry) -> None:
    """Move the calling process, which must have one thread, to where `entry` says.

    Raises:
        OSError: The kernel refused one of the steps; the message names it.
    """
    if entry["cgroup"] is not None:
        Path(entry["cgroup"], "cgroup.procs").write_text("0")
    if entry["netns"] is not None:
        # os.setns() is in Python from 3.12 on.
        _libc_call("setns", entry["netns"], CLONE_NEWNET)
    os.setgroups([])
    if entry["capabilities"]:
        _libc_call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresgid(entry["gid"], entry["gid"], entry["gid"])
    os.setresuid(entry["uid"], entry["uid"], entry["uid"])
    if entry["capabilities"]:
        _keep_only(entry["capabilities"])
    # After setresuid(): a change of credentials clears it (prctl(2)).
    _libc_call("prctl", PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != entry["parent"]:
        raise ProcessLookupError("the process that wanted this one is gone")


def _keep_only(capabilities: list[int]) -> None:
    """Hold these capabilities, all below 32, across exec() too.

    Only the ambient set survives exec() without help from the file, capabilities(7).
    """
    mask = sum(1 << capability for capability in capabilities)
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable: once for capabilities 0-31, once for 32-63
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _libc_call("capset", header, data)
    for capability in capabilities:
        _libc_call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def _libc_call(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")


def execute(program: str, file: int, argv: list[str]) -> None:
    """Become `program`, which may lie where our new user cannot look.

    A home directory is often its owner's alone, and the clone with its virtual environment
    is in there.  What counts for the open `file` is its own mode.
    """
    try:
        os.execv(program, argv)
    except PermissionError:
        os.execve(file, argv, os.environ)


def main(argv: list[str]) -> None:
    """Enter and execute; on failure say why on standard error."""
    try:
        program = shutil.which(argv[2])
        if program is None:
            raise FileNotFoundError("no such program")
        file = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        enter(json.loads(argv[1]))
        execute(program, file, argv[2:])
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[2]}: {error}\n")
        sys.exit(FAILED_BEFORE_EXEC)


if __name__ == "__main__":
    main(sys.argv)

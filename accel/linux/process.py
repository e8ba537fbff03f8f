"""What /proc/PID tells of one process, at one moment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

PROC = "/proc"

_UIDS = re.compile(r"^Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)$", re.MULTILINE)

VANISHED = (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError)
"""How the kernel says that a process is gone (ENOENT, ESRCH) or not ours to see (EACCES)."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that runs a program; kernel threads and zombies run none.

    Attributes:
        exe: Base name of the executable file, as in "envoy".
        comm: The kernel's short name of the main thread; whatever the process chose.
        uids: Real, effective, saved and file-system uid, in the agent's user namespace.
        started_ticks: Start, in clock ticks since boot; tells a reused pid apart.
    """

    pid: int
    exe: str
    comm: str
    uids: tuple[int, int, int, int]
    started_ticks: int

    @property
    def uid(self) -> int:
        """The effective uid, which its sockets carry (sk_uid is taken from fsuid,
        and that follows the effective uid unless setfsuid(2) is used)."""
        return self.uids[3]


def read(pid: int, proc: str = PROC) -> Process | None:
    """The process, or None if it is gone, runs no program or may not be seen."""
    try:
        exe = os.readlink(f"{proc}/{pid}/exe")
        comm, started_ticks = parse_stat(text(f"{proc}/{pid}/stat"))
        uids = parse_uids(text(f"{proc}/{pid}/status"))
    except VANISHED:
        return None
    return Process(pid, exe_name(exe), comm, uids, started_ticks)


def iter_pids(proc: str = PROC) -> Iterator[int]:
    """Every process (not thread) that /proc shows."""
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isdecimal():
                yield int(entry.name)


def exe_name(target: str) -> str:
    """The base name of what /proc/PID/exe points at, also when the file was replaced since."""
    return target.removesuffix(" (deleted)").rpartition("/")[2]


def parse_stat(stat: str) -> tuple[str, int]:
    """comm (field 2) and start time in ticks (field 22) of /proc/PID/stat.

    comm may hold spaces and parentheses, so what follows it counts from the last ")".
    """
    comm, _, rest = stat.partition("(")[2].rpartition(")")
    return comm, int(rest.split()[22 - 3])


def parse_uids(status: str) -> tuple[int, int, int, int]:
    """Real, effective, saved and file-system uid from /proc/PID/status."""
    found = _UIDS.search(status)
    if found is None:
        raise ProcessLookupError("no Uid line: the process went while its status was read")
    return int(found[1]), int(found[2]), int(found[3]), int(found[4])


def text(path: str) -> str:
    """A whole small file of /proc, in few system calls; bytes that are no UTF-8 are kept."""
    with open(path, "rb", buffering=0) as file:
        return file.read().decode(errors="surrogateescape")

"""Where the cgroup v2 hierarchy is mounted, and which of its cgroups a process is in."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from accel.errors import LinuxError
from accel.linux.process import PROC, VANISHED, text

_libc = ctypes.CDLL(None, use_errno=True)

ROOT_ID = 1
"""Id of the real root of the hierarchy, whatever namespace one looks from.

kernfs gives its root the first inode number (kernfs_create_root, fs/kernfs/dir.c).
"""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of the cgroup v2 hierarchy.

    Attributes:
        point: Where it is mounted.
        root: Which cgroup is seen there, as a path in our own cgroup namespace: "/" for
            its root, "/.." and up for one above it.
    """

    point: Path
    root: str = "/"

    @property
    def is_our_own(self) -> bool:
        """Whether hierarchy() made it."""
        return self.point.is_relative_to(f"{PROC}/{os.getpid()}/fd")

    @property
    def is_whole(self) -> bool:
        """Whether the real root is seen here.  False in most containers, whose cgroup
        namespace or bind mount begins further down."""
        return cgroup_id(self.point) == ROOT_ID

    def locate(self, path: str) -> Path | None:
        """The directory of a cgroup named as /proc/PID/cgroup names it.

        Returns:
            None when it lies outside this mount, or beside our cgroup namespace, where
            the names on the way are not told.
        """
        root = self.root.rstrip("/")
        below = path.removeprefix(root)
        if not path.startswith(root) or not below.startswith("/") or ".." in below.split("/"):
            return self.point if path == self.root else None
        return self.point / below.lstrip("/")


def find_mount(proc: str = PROC) -> Mount:
    """The best view of the hierarchy: the whole of it where there is one.

    Raises:
        LinuxError: No cgroup v2 hierarchy is mounted.
    """
    mounts = list(iter_mounts(Path(proc, "self/mountinfo").read_text()))
    if not mounts:
        raise LinuxError(
            "find cgroup v2: /proc/self/mountinfo lists no cgroup2 mount",
            remedy="mount -t cgroup2 none /sys/fs/cgroup/unified (after mkdir), "
            "or boot with systemd.unified_cgroup_hierarchy=1",
        )
    return next((mount for mount in mounts if mount.is_whole), mounts[0])


def hierarchy() -> Mount:
    """find_mount(), or a mount of our own on a host that has cgroup v1 alone.

    Ours is in no mount namespace, so nobody else meets it, and ends with this process; its
    children reach it through the same path.  The hierarchy itself is always there: without
    anybody's doing every process is in its root.

    Raises:
        LinuxError: None is mounted, and none can be; a NoCgroup2 if this kernel has none.
    """
    try:
        return find_mount()
    except LinuxError as e:
        return _own_mount(e.remedy)


_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # Linux 5.2, the same on every architecture
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC


class NoCgroup2(LinuxError):
    """This kernel was built without cgroup v2."""


@cache
def _own_mount(remedy: str | None) -> Mount:
    try:
        context = _call(_FSOPEN, b"cgroup2", _CLOEXEC)
        try:
            _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
            fd = _call(_FSMOUNT, context, _CLOEXEC, 0)
        finally:
            os.close(context)
    except OSError as e:
        kind = NoCgroup2 if e.errno in (errno.ENODEV, errno.ENOSYS) else LinuxError
        raise kind(
            f"find cgroup v2: none is mounted, and to mount one privately gave {e.strerror}",
            remedy=remedy,
        ) from e
    return Mount(Path(f"{PROC}/{os.getpid()}/fd/{fd}"))


def _call(number: int, *arguments: bytes | int | None) -> int:
    """A system call that libc has no name for yet."""
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def iter_mounts(mountinfo: str) -> Iterator[Mount]:
    """The cgroup v2 mounts in the text of a mountinfo file (proc_pid_mountinfo(5))."""
    for line in mountinfo.splitlines():
        # Optional fields come before the " - ", so fields count from both ends of it.
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            root, point = before.split()[3:5]
            yield Mount(Path(_unescape(point)), _unescape(root))


def parse_path(cgroups: str) -> str | None:
    """The v2 path in the text of /proc/PID/cgroup, relative to our cgroup namespace."""
    for line in cgroups.splitlines():
        if line.startswith("0::"):
            return line[3:]
    return None


def path_of(pid: int, proc: str = PROC) -> str | None:
    """The v2 path of a process, or None if it is gone."""
    try:
        return parse_path(text(f"{proc}/{pid}/cgroup"))
    except VANISHED:
        return None


def cgroup_id(directory: Path) -> int | None:
    """The id that BPF programs see: the inode of the directory; None if it is gone."""
    try:
        return os.stat(directory).st_ino
    except VANISHED:
        return None


def members(directory: Path) -> tuple[int, ...]:
    """Pids of the processes in a cgroup; none if it is gone or holds threads only."""
    try:
        pids = text(f"{directory}/cgroup.procs").split()
    except OSError:  # also EOPNOTSUPP, of a threaded cgroup
        return ()
    return tuple(pid for pid in map(int, pids) if pid)


def _unescape(field: str) -> str:
    r"""mountinfo writes space, tab, newline and backslash as \040, \011, \012 and \134."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)

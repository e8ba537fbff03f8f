"""Pins: names in a bpf file system that keep maps, programs and links alive."""

from __future__ import annotations

import errno
import os
from typing import Literal

from accel.bpf.door import syscall
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, ShapeError

Kind = Literal["map", "program", "link"]

# Names the kernel gives the anonymous files behind its descriptors:
# bpf_map_new_fd(), bpf_prog_new_fd() and bpf_link_new_file(), kernel/bpf/syscall.c.
_FILES: dict[str, Kind] = {
    "anon_inode:bpf-map": "map",
    "anon_inode:bpf-prog": "program",
    "anon_inode:bpf_link": "link",
    "anon_inode:bpf-link": "link",
}


def pin(obj: syscall.HasFileno, path: str | os.PathLike[str], what: str) -> None:
    """Give `obj` a name in a bpf file system.

    Args:
        what: The object in words, for messages: "map sockets".

    Raises:
        BpfError: EEXIST when the name is taken; with a remedy when the directory
            is missing or in no bpf file system.
    """
    name = os.fspath(path)
    try:
        syscall.obj_pin(obj, name, f"pin {what} at {name}")
    except BpfError as error:
        raise BpfError(error.action, error.errno, remedy=_explain(name) or error.remedy) from None


def open_pin(path: str | os.PathLike[str], kind: Kind) -> Fd:
    """The object pinned at `path`.

    Raises:
        BpfError: ENOENT when nothing is there.
        ShapeError: Something of another kind is.
    """
    name = os.fspath(path)
    try:
        fd = syscall.obj_get(name, f"open pinned {kind} {name}")
    except BpfError as error:
        remedy = error.remedy if os.path.exists(name) else _explain(name)
        raise BpfError(error.action, error.errno, remedy=remedy) from None
    try:
        found = _FILES.get(os.readlink(f"/proc/self/fd/{fd.fileno()}"), kind)
    except OSError as error:
        fd.close()
        raise BpfError(f"open pinned {kind} {name}", error.errno or errno.EIO) from error
    if found != kind:
        fd.close()
        raise ShapeError(f"pin {name}", (f"it is a {found}, expected a {kind}",))
    return fd


def unpin(path: str | os.PathLike[str]) -> None:
    """Remove a name; the object lives on while something else holds it.

    Raises:
        BpfError: ENOENT when it does not exist.
    """
    try:
        os.unlink(path)
    except OSError as error:
        raise BpfError(f"unpin {os.fspath(path)}", error.errno or errno.EIO) from error


def _explain(path: str) -> str | None:
    """Why nothing can be pinned at `path`, as something to do about it."""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        return f"create the directory {directory}"
    if on_bpffs(directory) is False:
        return f"choose a directory in a bpf file system; {directory} is in none (mount -t bpf)"
    if "." in os.path.basename(path):
        # bpf_lookup(), kernel/bpf/inode.c, reserves names with a dot.
        return "choose a name without a dot"
    return None


def on_bpffs(directory: str | os.PathLike[str]) -> bool | None:
    """Whether `directory` is in a mounted bpf file system; None when nobody tells."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            mounts = file.read()
        device = os.stat(directory).st_dev
    except OSError:
        return None
    return device in devices_of(mounts, "bpf")


def devices_of(mountinfo: str, file_system: str) -> frozenset[int]:
    """Device numbers of all mounts of one file system type in /proc/pid/mountinfo's text.

    proc_pid_mountinfo(5): "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw".
    """
    devices = set()
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == file_system:
            major, _, minor = mount.split(" ")[2].partition(":")
            devices.add(os.makedev(int(major), int(minor)))
    return frozenset(devices)

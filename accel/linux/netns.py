"""Network namespaces, seen from outside: identity, names, addresses; and a step inside."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from accel.errors import LinuxError
from accel.linux.process import PROC, VANISHED

T = TypeVar("T")

CLONE_NEWNET = 0x40000000

_NAMED = "/run/netns"
_LOCAL_HOST = re.compile(r"\|-- (\S+)\n(?:\s+/\d+ .*\n)*?\s+/32 host LOCAL$", re.MULTILINE)


def inode(pid: int | str, proc: str = PROC) -> int | None:
    """Inode number of a process's network namespace; None if the process is gone,
    a zombie, or not ours to look into (CAP_SYS_PTRACE)."""
    try:
        return parse_link(os.readlink(f"{proc}/{pid}/ns/net"))
    except VANISHED:
        return None


def parse_link(target: str) -> int:
    """4026531833 from "net:[4026531833]", what /proc/PID/ns/net points at."""
    return int(target.removeprefix("net:[").removesuffix("]"))


def inode_at(path: str, proc: str = PROC) -> int | None:
    """Inode number of the network namespace that is mounted on this path in the mount
    namespace of PID 1; None when none is."""
    try:
        status = os.stat(f"{proc}/1/root{path}")
        nsfs = os.stat(f"{PROC}/self/ns/net").st_dev
    except (OSError, ValueError):
        return None
    # Where it is not mounted any more, the file is an ordinary one with any inode.
    return status.st_ino if status.st_dev == nsfs else None


def names(directory: str = _NAMED) -> dict[int, str]:
    """Names by inode, as `ip netns` gives them: files on which a namespace is mounted."""
    found: dict[int, str] = {}
    try:
        entries = list(os.scandir(directory))
        nsfs = os.stat(f"{PROC}/self/ns/net").st_dev
    except VANISHED:
        return found
    for entry in entries:
        try:
            status = entry.stat()
        except VANISHED:
            continue
        # A name whose namespace is not mounted is an ordinary file with any inode.
        if status.st_dev == nsfs:
            found[status.st_ino] = entry.name
    return found


def addresses(pid: int, proc: str = PROC) -> frozenset[IPv4Address | IPv6Address]:
    """All addresses in a process's network namespace, read without entering it."""
    return frozenset(
        (
            *parse_fib_trie(_text(f"{proc}/{pid}/net/fib_trie")),
            *parse_if_inet6(_text(f"{proc}/{pid}/net/if_inet6")),
        )
    )


def parse_fib_trie(text: str) -> Iterator[IPv4Address]:
    """Own IPv4 addresses from /proc/PID/net/fib_trie, possibly repeated.

    An own address is a leaf with a /32 route of scope host and type LOCAL; a wider
    one is a prefix that is local as a whole, as 127.0.0.0/8 is and TPROXY rules make.
    """
    return map(IPv4Address, _LOCAL_HOST.findall(text))


def parse_if_inet6(text: str) -> Iterator[IPv6Address]:
    """IPv6 addresses from /proc/PID/net/if_inet6: 32 hex digits lead each line."""
    for line in text.splitlines():
        yield IPv6Address(bytes.fromhex(line.split()[0]))


def call_inside(path: str, function: Callable[[], T]) -> T:
    """Run a function on a thread of its own inside a network namespace.

    The thread ends with the call: the namespace belongs to the thread, and one that
    went back to a pool would surprise its next user.  Sockets made inside stay inside.

    Args:
        path: As in /proc/PID/ns/net or /run/netns/NAME.
        function: What it raises is raised here.

    Raises:
        LinuxError: The namespace is gone, or entering it is not allowed.
    """

    def body() -> T:
        _enter(path)
        return function()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as thread:
        return thread.submit(body).result()


def _enter(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise LinuxError(
            f"enter the network namespace {path}: {error.strerror}",
            remedy="give the agent CAP_SYS_ADMIN and CAP_SYS_PTRACE"
            if isinstance(error, PermissionError)
            else None,
        ) from error


if sys.version_info >= (3, 12):

    def _setns(fd: int) -> None:
        os.setns(fd, CLONE_NEWNET)

else:
    _libc = ctypes.CDLL(None, use_errno=True)

    def _setns(fd: int) -> None:
        if _libc.setns(ctypes.c_int(fd), ctypes.c_int(CLONE_NEWNET)) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def _text(path: str) -> str:
    """A file of /proc/PID/net; nothing if the process is gone, or IPv6 is off.

    A zombie has no namespace left: the kernel then answers EINVAL to the open.
    """
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""

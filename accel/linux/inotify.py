"""Directories that are made and removed anywhere below one, as inotify(7) tells."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from accel.errors import LinuxError

_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_MOVED_TO = 0x80
_IN_Q_OVERFLOW = 0x4000
_IN_IGNORED = 0x8000
_IN_ONLYDIR = 0x01000000
_IN_DONT_FOLLOW = 0x02000000
_IN_ISDIR = 0x40000000
_MASK = _IN_CREATE | _IN_DELETE | _IN_MOVED_TO | _IN_ONLYDIR | _IN_DONT_FOLLOW

_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Change:
    """A directory came or went; or, without a path, nobody knows what happened."""

    path: Path | None
    made: bool = False


class DirectoryTree:
    """Watches a directory and all below; a context manager.

    Each directory takes a watch, of which a user has a limited number, and some hundred
    bytes of the kernel's memory.

    Raises:
        LinuxError: It cannot be watched: there is no such directory, or too many watches.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths: dict[int, Path] = {}
        self._fd = _checked(
            _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), f"watch directories below {root}"
        )
        try:
            self._watch(root)
            for _ in self._watch_below(root):
                pass
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    async def changes(self) -> tuple[Change, ...]:
        """Wait for some.  A directory that was made may be told twice.

        Raises:
            LinuxError: A new directory cannot be watched.
        """
        while True:
            await anyio.wait_readable(self._fd)
            if found := tuple(self._read()):
                return found

    def _read(self) -> Iterator[Change]:
        data = os.read(self._fd, _READ_BYTES)
        while data:
            watch, mask, _, length = _EVENT.unpack_from(data)
            name = os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
            data = data[_EVENT.size + length :]
            if mask & _IN_Q_OVERFLOW:
                yield from self._watch_below(self._root)
                yield Change(None)
            elif mask & _IN_IGNORED:
                self._paths.pop(watch, None)
            elif mask & _IN_ISDIR and (parent := self._paths.get(watch)) is not None:
                yield from self._changed(parent / name, made=not mask & _IN_DELETE)

    def _changed(self, path: Path, *, made: bool) -> Iterator[Change]:
        yield Change(path, made)
        if made and self._watch(path):
            yield from self._watch_below(path)

    def _watch_below(self, directory: Path) -> Iterator[Change]:
        """What was made in it before it was watched is told as well."""
        try:
            inside = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
        except OSError:  # gone again
            return
        for name in inside:
            path = directory / name
            if self._watch(path):
                yield Change(path, made=True)
                yield from self._watch_below(path)

    def _watch(self, path: Path) -> bool:
        """False when it is gone; one that is watched already stays so."""
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(path), _MASK)
        if (
            watch < 0
            and ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR)
            and (path != self._root)
        ):
            return False
        self._paths[_checked(watch, f"watch the directory {path}")] = path
        return True


def _checked(result: int, what: str) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    raise LinuxError(
        f"{what}: {os.strerror(number)}",
        remedy="raise fs.inotify.max_user_watches and max_user_instances"
        if number in (errno.ENOSPC, errno.EMFILE)
        else None,
    )

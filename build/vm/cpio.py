"""The archive format that the kernel unpacks at boot: cpio "newc".

Several archives may stand one after the other, and a later file replaces an earlier
one of the same name (Documentation/driver-api/early-userspace/buffer-format.rst).
That lets the part that seldom changes be made once and kept.  They stay
uncompressed: emulated, gunzip takes longer than reading the difference.
"""

import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO


@dataclass(frozen=True)
class _Entry:
    mode: int
    content: bytes | Path = b""  # a path: whatever that file holds
    mtime: int = 0
    device: tuple[int, int] = (0, 0)


@dataclass
class Tree:
    """Files by their absolute path in the guest; directories come about by themselves."""

    _entries: dict[PurePosixPath, _Entry] = field(default_factory=dict)

    def __contains__(self, path: PurePosixPath) -> bool:
        return path in self._entries

    def add_file(self, path: PurePosixPath, source: Path) -> None:
        """With the content, permissions and time of `source`, links followed."""
        status = source.stat()
        self._add(path, _Entry(status.st_mode, source, int(status.st_mtime)))

    def add_bytes(self, path: PurePosixPath, data: bytes) -> None:
        self._add(path, _Entry(stat.S_IFREG | 0o644, data))

    def add_link(self, path: PurePosixPath, target: str) -> None:
        self._add(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def add_directory(self, path: PurePosixPath, *, mode: int = 0o755) -> None:
        self._add(path, _Entry(stat.S_IFDIR | mode))

    def add_device(self, path: PurePosixPath, *, major: int, minor: int) -> None:
        self._add(path, _Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def write(self, target: Path) -> None:
        """The whole archive; `target` appears at once or not at all."""
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
            unfinished = Path(scratch, target.name)
            with unfinished.open("wb") as archive:
                for inode, (path, entry) in enumerate(sorted(self._entries.items()), start=1):
                    _write_record(archive, inode, str(path).lstrip("/"), entry)
                _write_record(archive, 0, "TRAILER!!!", _Entry(0))
            unfinished.rename(target)

    def _add(self, path: PurePosixPath, entry: _Entry) -> None:
        for parent in path.parents[:-1]:
            self._entries.setdefault(parent, _Entry(stat.S_IFDIR | 0o755))
        self._entries[path] = entry


def _write_record(archive: BinaryIO, inode: int, name: str, entry: _Entry) -> None:
    """Header and name padded to four bytes, then the data padded to four bytes."""
    data = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (
        inode, entry.mode, 0, 0, links, entry.mtime, len(data),
        0, 0, *entry.device, len(encoded), 0,
    )  # fmt: skip
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    archive.write(_padded(header + encoded))
    archive.write(_padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def walk(top: Path, skip: frozenset[str]) -> Iterator[Path]:
    """Every file below `top`, in order, leaving out names in `skip` at any depth."""
    for path in sorted(top.iterdir()):
        if path.name in skip:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from walk(path, skip)
        elif path.is_file():
            yield path

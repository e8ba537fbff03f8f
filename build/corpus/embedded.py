"""Finds BPF objects: files that are some, and copies of them inside programs."""

import struct
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b"\x7fELF\x02"
_EM_BPF = 247
_SHT_NOBITS = 8


def objects_below(tree: Path) -> Iterator[tuple[str, bytes]]:
    """A file name, and the bytes, of every different BPF object in a tree of files."""
    seen: set[bytes] = set()
    names: set[str] = set()
    for path in sorted(tree.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if data[:4] != _MAGIC[:4] and _MAGIC not in data:
            continue
        for offset, found in objects_in(data):
            if found in seen:
                continue
            seen.add(found)
            name = path.name if not offset else f"{path.name}.{offset:x}"
            name = name.removesuffix(".o") + ".o"
            while name in names:
                name = f"{path.parent.name}.{name}"
            names.add(name)
            yield name, found


def objects_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every BPF object in `data`, itself included."""
    at = data.find(_MAGIC)
    while at >= 0:
        length = _length(data, at)
        if length:
            yield at, data[at : at + length]
        at = data.find(_MAGIC, at + max(length, 1))


def _length(data: bytes, at: int) -> int:
    """How many bytes the BPF object at `at` takes; 0 when none is there."""
    mark = {1: "<", 2: ">"}.get(data[at + 5]) if at + 64 <= len(data) else None
    if mark is None:
        return 0
    kind, machine = struct.unpack_from(f"{mark}HH", data, at + 16)
    (table,) = struct.unpack_from(f"{mark}Q", data, at + 40)
    entry, count = struct.unpack_from(f"{mark}HH", data, at + 58)
    if kind != 1 or machine != _EM_BPF or entry != 64 or at + table + 64 * count > len(data):
        return 0
    end = table + 64 * count
    for number in range(count):
        _, section, _, _, offset, size = struct.unpack_from(
            f"{mark}IIQQQQ", data, at + table + 64 * number
        )
        if section != _SHT_NOBITS:
            end = max(end, offset + size)
    return end if at + end <= len(data) else 0

"""The running kernel's types, looked up in place.

A kernel has some 126,000 types in 5 MB.  Making objects of them all takes a third
of a second and 40 MB, so nothing is decoded here but what is asked for: names are
found by searching the bytes, and one quick walk over the headers, at the first
question, notes where each type begins.  `close()` forgets everything.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from accel.bpf import btf as b
from accel.bpf.closing import Closing
from accel.bpf.errors import ObjectError

VMLINUX = Path("/sys/kernel/btf/vmlinux")


class _Index(NamedTuple):
    """What the walk finds of every type, by id.

    Attributes:
        offsets: Where it begins, in bytes.
        names: Where its name is in the strings: 4 bytes each, to be searched.
    """

    offsets: array[int]
    names: bytes


class KernelBtf(Closing):
    """The types of a kernel; satisfies btf.Types.

    Use as a context manager, or close() it.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        """Take BTF data as the kernel has it.

        Raises:
            ObjectError: It is no BTF, or malformed.
        """
        self._data = data
        self._header = b.read_header(data[:24], len(data))
        self._mark = "<" if self._header.byteorder == "little" else ">"
        self._index: _Index | None = None
        self._decoded: dict[int, b.Type] = {}

    @classmethod
    def open(cls, path: Path | str = VMLINUX) -> KernelBtf:
        """The types of the running kernel, or those in a file.

        Raises:
            ObjectError: There is no such file, or it holds no BTF.
        """
        try:
            with Path(path).open("rb") as file:
                data = _contents(file)
        except OSError as e:
            raise ObjectError(
                f"read the kernel's types from {path}: {e.strerror}",
                remedy="run a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            ) from e
        try:
            return cls(data)
        except ObjectError as e:
            if isinstance(data, mmap.mmap):
                data.close()
            raise ObjectError(f"{path}: {e}", remedy=e.remedy) from e

    def close(self) -> None:
        """Give everything back."""
        self._index = None
        self._decoded = {}
        if isinstance(self._data, mmap.mmap):
            self._data.close()
        self._data = b""

    def __repr__(self) -> str:
        return f"<KernelBtf {len(self._data)} bytes>"

    @property
    def byteorder(self) -> b.ByteOrder:
        return self._header.byteorder

    def type(self, type_id: int) -> b.Type:
        """The type of that id.

        Raises:
            ObjectError: There is none, or it is malformed.
        """
        if type_id not in self._decoded:
            offsets = self._walked().offsets
            if not 0 <= type_id < len(offsets):
                raise ObjectError(
                    f"kernel BTF type {type_id} does not exist, the last is {len(offsets) - 1}"
                )
            self._decoded[type_id] = b.Void() if not type_id else self._decode(offsets[type_id])
        return self._decoded[type_id]

    def candidates(self, name: str) -> Sequence[int]:
        """Ids, ascending, of the types whose essential name is `name`."""
        ids: list[int] = []
        for offset in self._strings_from(b"\0" + name.encode()):
            if b.essential_name(self._name(offset)) == name:
                ids += self._ids_named(offset)
        return sorted(ids)

    def type_id(self, name: str, kind: b.Kind[b.Type]) -> int | None:
        """Id of the first type of that very name and class, as for attach_btf_id."""
        for type_id in self._named(name):
            if isinstance(self.type(type_id), kind):
                return type_id
        return None

    def func_id(self, name: str) -> int | None:
        """Id of the function of that name."""
        return self.type_id(name, b.Func)

    def struct_field(self, struct_name: str, field: str) -> tuple[int, int]:
        """Where a struct has a field.

        Args:
            field: Its name, or names joined by dots; members of anonymous structs and
                unions count as the struct's own.

        Returns:
            Offset from the start of the struct, and size, both in bytes.

        Raises:
            ObjectError: There is no such struct or field, or it is a bit-field.
        """
        type_id = self.type_id(struct_name, b.Struct)
        if type_id is None:
            raise ObjectError(f"this kernel has no struct {struct_name}")
        found = self.type(type_id)
        assert isinstance(found, b.Struct | b.Union)
        offset, size = 0, 0
        names = field.split(".")
        for position, name in enumerate(names):
            member = next(self._members_named(found, name, 0, 0), None)
            if member is None or member.bit_size or member.bit_offset % 8:
                problem = "no" if member is None else "only a bit-field"
                raise ObjectError(f"this kernel has {problem} {field} in struct {struct_name}")
            offset += member.bit_offset // 8
            _, inner = b.resolve(self, member.type_id)
            if position == len(names) - 1:
                size = b.size_of(self, member.type_id)
            elif isinstance(inner, b.Struct | b.Union):
                found = inner
            else:
                raise ObjectError(f"{name} in struct {struct_name} of this kernel has no members")
        return offset, size

    def _members_named(
        self, found: b.Struct | b.Union, name: str, base: int, depth: int
    ) -> Iterator[b.Member]:
        """Members of that name, as if of `found` itself, anonymous ones looked into."""
        if depth > 32:
            raise ObjectError("anonymous members nest too deep")
        for member in found.members:
            at = base + member.bit_offset
            if member.name == name:
                yield b.Member(name, member.type_id, at, member.bit_size)
            elif not member.name:
                _, inner = b.resolve(self, member.type_id)
                if isinstance(inner, b.Struct | b.Union):
                    yield from self._members_named(inner, name, at, depth + 1)

    def _named(self, name: str) -> list[int]:
        """Ids, ascending, of the types of that very name."""
        return sorted(
            type_id
            for offset in self._strings_from(b"\0" + name.encode() + b"\0")
            for type_id in self._ids_named(offset)
        )

    def _strings_from(self, start_of_string: bytes) -> Iterator[int]:
        """Offsets of the strings that begin so; the bytes begin with the NUL before."""
        start, end = self._header.strings_start, self._header.strings_end
        at = self._data.find(start_of_string, start, end)
        while at >= 0:
            yield at + 1 - start
            at = self._data.find(start_of_string, at + 1, end)

    def _ids_named(self, name_offset: int) -> Iterator[int]:
        """Ids, ascending, of the types whose name is at that offset of the strings."""
        names = self._walked().names
        wanted = name_offset.to_bytes(4, sys.byteorder)
        at = names.find(wanted)
        while at >= 0:
            if at % 4 == 0:
                yield at // 4
            at = names.find(wanted, at + 1)

    def _walked(self) -> _Index:
        if self._index is None:
            self._index = self._walk()
        return self._index

    def _walk(self) -> _Index:
        start, end = self._header.types_start, self._header.types_end
        words = array("I")
        words.frombytes(self._data[start:end])
        if self._header.byteorder != sys.byteorder:
            words.byteswap()
        offsets, names = array("I", [0]), array("I", [0])
        # A few hundred different info words make up all types.
        steps: dict[int, int] = {}
        at, count = 0, len(words)
        note_offset, note_name = offsets.append, names.append
        while at + 2 < count:
            info = words[at + 1]
            step = steps.get(info)
            if step is None:
                step = steps[info] = 3 + b.tail_words(info)
            note_offset(start + at * 4)
            note_name(words[at])
            at += step
        if at != count:
            raise ObjectError("the last type is cut short", place="kernel BTF")
        return _Index(offsets, names.tobytes())

    def _decode(self, at: int) -> b.Type:
        (info,) = struct.unpack_from(f"{self._mark}I", self._data, at + 4)
        count = 3 + b.tail_words(info)
        words = struct.unpack_from(f"{self._mark}{count}I", self._data, at)
        return b.decode(words, self._name)

    def _name(self, offset: int) -> str:
        start = self._header.strings_start + offset
        end = self._data.find(b"\0", start, self._header.strings_end)
        if end < 0:
            raise ObjectError(f"no name at offset {offset:#x} of the kernel's BTF strings")
        return self._data[start:end].decode("utf-8", "backslashreplace")


def _contents(file: BinaryIO) -> bytes | mmap.mmap:
    """The file's bytes, without a copy where the kernel can map them."""
    try:
        # Only private mappings of it are allowed, btf_sysfs_vmlinux_mmap() in
        # kernel/bpf/sysfs_btf.c; kernels before 6.16 have no mapping at all (ENODEV).
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return file.read()

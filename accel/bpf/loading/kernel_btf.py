"""The running kernel's types, looked up in place.

A kernel has some 126,000 types in 5 MB.  Making objects of them all takes a third of a
second and 40 MB, so nothing is done here that no question needs:

- By its id a type is found by stepping over those before it, once, and only as far as the
  largest id asked for.  Structs and what they are made of come before the functions, in the
  first third.
- By its name it is found where its header is.  What looks like a header may be something
  else; whether it is one, and its id, the same walk tells.
"""

from __future__ import annotations

import mmap
import re
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from accel.bpf.closing import Closing
from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format.byteorder import MARKS, ByteOrder
from accel.bpf.format.strings import MAX_NAME

if TYPE_CHECKING:
    from os import PathLike

VMLINUX = "/sys/kernel/btf/vmlinux"

_BLOCK = 1024  # types stepped over at once
_FEW = 3  # names, a search for which costs less than an index of all

# BTF_KIND_* of the classes whose types have names, include/uapi/linux/btf.h.
_KINDS: dict[b.Kind[b.Type], int] = {
    b.Int: 1, b.Struct: 4, b.Union: 5, b.Enum: 6, b.Fwd: 7, b.Typedef: 8, b.Func: 12,
    b.Var: 14, b.Datasec: 15, b.Float: 16, b.DeclTag: 17, b.TypeTag: 18, b.Enum64: 19,
}  # fmt: skip


class _Index(NamedTuple):
    """Where the info words of the types of one kind seem to be, by name.

    Attributes:
        last: The last of each name.
        others: More of a name, and its flavours.
    """

    last: dict[bytes, int]
    others: dict[bytes, list[int]]

    def alike(self, name: bytes) -> list[int]:
        """Those whose essential name is `name`, in no order."""
        last = self.last.get(name)
        return [*([] if last is None else [last]), *self.others.get(name, ())]


class KernelBtf(Closing):
    """The types of a kernel, or of a module of it; satisfies btf.Types.

    Use as a context manager, or close() it.
    """

    def __init__(self, data: bytes | mmap.mmap, *, base: KernelBtf | None = None) -> None:
        """Take BTF data as the kernel has it.

        Args:
            base: The types of vmlinux when these are a module's, whose ids and strings go on
                where those of vmlinux end.  It stays the caller's, and open.

        Raises:
            ObjectError: It is no BTF, or malformed.
        """
        self._header = b.read_header(data[:24], len(data))
        if base is not None and base.byteorder != self._header.byteorder:
            raise ObjectError(f"{self._header.byteorder}-endian types of a module")
        self._base = base
        self._data = data
        # Looked at in place: a copy costs more than all that is then looked up in it.
        types = memoryview(data)[self._header.types_start : self._header.types_end]
        self._words: memoryview | array[int] = types.cast("I")
        if self._header.byteorder != sys.byteorder:
            words = array("I")
            words.frombytes(types)
            words.byteswap()
            self._words = words
        self._forget()

    @classmethod
    def open(cls, path: str | PathLike[str] = VMLINUX) -> KernelBtf:
        """The types of the running kernel, or those in a file.

        Raises:
            ObjectError: There is no such file, or it holds no BTF.
        """
        try:
            with open(path, "rb") as file:
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
        """Give everything back; a second time does nothing."""
        if isinstance(self._words, memoryview):
            self._words.release()
        self._words = array("I")
        if isinstance(self._data, mmap.mmap):
            self._data.close()
        self._data = b""
        self._forget()

    def _forget(self) -> None:
        # Where the info word of each type is, in order of ids; the last is of a type to come.
        self._infos = array("I", [1])
        self._steps: dict[int, int] = {}  # words a type takes, by its info word
        self._names: dict[int, str] = {0: ""}
        self._types: dict[int, b.Type] = {0: b.Void()}
        self._indexes: dict[int, _Index] = {}
        self._searched = 0

    def __repr__(self) -> str:
        return f"<KernelBtf {len(self._data)} bytes>"

    def __len__(self) -> int:
        """Number of types, void and those of the base included: ids are below it."""
        while self._walk():
            pass
        return self._first + len(self._infos) - 1

    @property
    def byteorder(self) -> ByteOrder:
        return self._header.byteorder

    @cached_property
    def _first(self) -> int:
        """Id of the first type."""
        return 1 if self._base is None else len(self._base)

    @cached_property
    def _first_string(self) -> int:
        """Offset of the first string."""
        return 0 if self._base is None else self._base._end_of_strings

    @property
    def _end_of_strings(self) -> int:
        return self._first_string + self._header.strings_end - self._header.strings_start

    # --- by id ---------------------------------------------------------------------------------

    def type(self, type_id: int) -> b.Type:
        """The type of that id.

        Raises:
            ObjectError: There is none, or it is malformed.
        """
        found = self._types.get(type_id)
        if found is None:
            found = self._types[type_id] = self._decode(type_id)
        return found

    def _decode(self, type_id: int) -> b.Type:
        if self._base is not None and type_id < self._first:
            return self._base.type(type_id)
        position = type_id - self._first
        while position >= len(self._infos) - 1 and self._walk():
            pass
        if not 0 <= position < len(self._infos) - 1:
            raise ObjectError(
                f"kernel BTF type {type_id} does not exist, the last is {len(self) - 1}"
            )
        start, following = self._infos[position : position + 2]
        return b.decode(tuple(self._words[start - 1 : following - 1]), self._name)

    def _walk(self) -> bool:
        """Step over some more types; False when there are no more."""
        words, steps, at = self._words, self._steps, self._infos[-1]
        note = self._infos.append
        try:
            for _ in range(_BLOCK):
                at += steps[words[at]]
                note(at)
        except KeyError:  # a few hundred info words make up all types
            steps[words[at]] = 3 + b.tail_words(words[at])
        except IndexError:
            if at == len(words) + 1:
                return False
            if len(self._infos) > 1:
                self._infos.pop()
            raise ObjectError("the last type is cut short", place="kernel BTF") from None
        return True

    def _id_at(self, info: int) -> int | None:
        """Id of the type whose info word is there; None when that is no info word."""
        while self._infos[-1] <= info and self._walk():
            pass
        position = bisect_left(self._infos, info)
        return self._first + position if self._infos[position] == info else None

    def _name(self, offset: int) -> str:
        name = self._names.get(offset)
        if name is None:
            name = self._raw_name(offset).decode("utf-8", "backslashreplace")
            self._names[offset] = name
        return name

    def _raw_name(self, offset: int, missing: bytes | None = None) -> bytes:
        if self._base is not None and offset < self._first_string:
            return self._base._raw_name(offset, missing)
        start = self._header.strings_start + offset - self._first_string
        end = self._data.find(b"\0", start, min(start + MAX_NAME, self._header.strings_end))
        if end >= 0:
            return self._data[start:end]
        if missing is None:
            raise ObjectError(f"no name at offset {offset:#x} of the kernel's BTF strings")
        return missing

    # --- by name -------------------------------------------------------------------------------

    def candidates(
        self, name: str, kinds: Iterable[b.Kind[b.Type]] = tuple(_KINDS), /
    ) -> Sequence[int]:
        """Ids, ascending, of the types whose essential name is `name`; a module's own only.

        Args:
            kinds: Types of these classes only.
        """
        wanted = name.encode()
        numbers = {_KINDS[kind] for kind in kinds}
        if self._searched < _FEW and not self._indexes:
            self._searched += 1
            headers = sorted(self._headers_at(self._offsets_alike(wanted), numbers))
        else:
            headers = sorted(at for kind in numbers for at in self._index(kind).alike(wanted))
        return [type_id for at in headers if (type_id := self._id_at(at)) is not None]

    def expect(self, names: int) -> None:
        """Have `candidates()` make its index at once if it is to look up more than a few names."""
        if names > _FEW:
            self._searched = _FEW

    def type_id(self, name: str, kind: b.Kind[b.Type]) -> int | None:
        """Id of the first type of that very name and class, as for attach_btf_id."""
        for at in self._headers_named(name, _KINDS[kind]):
            type_id = self._id_at(at)
            if type_id is not None:
                return type_id
        return None

    def func_id(self, name: str) -> int | None:
        """Id of the function of that name."""
        return self.type_id(name, b.Func)

    def _index(self, kind: int) -> _Index:
        index = self._indexes.get(kind)
        if index is None:
            headers = self._headers(kind)
            index = self._indexes[kind] = _indexed(self._names_at(headers), headers)
        return index

    def _headers(self, kind: int) -> list[int]:
        """Where the info words of the types of a kind seem to be."""
        found = []
        highest = 3 if self._header.byteorder == "little" else 0
        start, end = self._header.types_start, self._header.types_end
        find = self._data[start + highest : end : 4].find
        # The kind is in the low five bits of the highest byte.
        for byte in range(kind, 256, 32):
            at = find(byte, 1)
            while at >= 0:
                found.append(at)
                at = find(byte, at + 1)
        return found

    def _names_at(self, headers: list[int]) -> list[bytes]:
        """The names of types; b"" for what cannot be one."""
        words = self._words
        if self._base is not None:
            return [self._raw_name(words[at - 1], b"") for at in headers]
        strings = self._data[self._header.strings_start : self._header.strings_end]
        find = strings.find
        return [
            strings[start:end] if (end := find(0, start, start + MAX_NAME)) >= 0 else b""
            for start in [words[at - 1] for at in headers]
        ]

    def _headers_named(self, name: str, kind: int) -> list[int]:
        """Where the info word of a type of that kind and very name seems to be, ascending.

        One name is found sooner by a search than by an index of all.
        """
        return sorted(self._headers_at(self._offsets_of(name.encode()) if name else (), {kind}))

    def _headers_at(self, names: Iterable[int], kinds: Container[int]) -> Iterator[int]:
        """Where the info words of the types with names at these offsets seem to be."""
        words, start, end = self._words, self._header.types_start, self._header.types_end
        mark = MARKS[self._header.byteorder]
        for offset in names:
            wanted = re.escape(struct.pack(f"{mark}I", offset))
            for hit in _occurrences(self._data, wanted, start, end - 4):
                info, odd = divmod(hit - start + 4, 4)
                if not odd and words[info] >> 24 & 0x1F in kinds:
                    yield info

    def _offsets_of(self, name: bytes) -> Iterator[int]:
        """Offsets of the strings that are `name`, the base's too.

        No string is the end of another: the encoder keeps a set of whole ones.
        """
        return self._strings(re.escape(name) + rb"\0")

    def _offsets_alike(self, name: bytes) -> Iterator[int]:
        """Offsets of `name` and its flavours."""
        text = name.decode("latin-1")
        for offset in self._strings(re.escape(name) + rb"(?:\0|___)") if name else ():
            found = self._raw_name(offset, b"")
            if found == name or b.essential_name(found.decode("latin-1")) == text:
                yield offset

    def _strings(self, wanted: bytes) -> Iterator[int]:
        """Offsets of the strings that begin so, a pattern, with their final NUL; the base's too."""
        if self._base is not None:
            yield from self._base._strings(wanted)
        start, end = self._header.strings_start, self._header.strings_end
        if re.compile(wanted).match(self._data, start, end):
            yield self._first_string  # a module's strings do not begin with the empty one
        for hit in _occurrences(self._data, rb"\0" + wanted, start, end):
            yield hit + 1 - start + self._first_string

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
        found: b.Struct | b.Union | None = self._struct_named(struct_name)
        if found is None:
            raise ObjectError(f"this kernel has no struct {struct_name}")
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

    def _struct_named(self, name: str) -> b.Struct | None:
        """The first struct of that name, without stepping over all types before it if possible."""
        for at in self._headers_named(name, _KINDS[b.Struct]):
            if self._has_sound_members(at):
                end = at + 2 + 3 * (self._words[at] & 0xFFFF)
                found = b.decode(tuple(self._words[at - 1 : end]), self._name)
                return found if isinstance(found, b.Struct) else None
            type_id = self._id_at(at)
            if type_id is not None:
                known = self.type(type_id)
                return known if isinstance(known, b.Struct) else None
        return None

    def _has_sound_members(self, at: int) -> bool:
        """Whether what looks like a struct's info word can be nothing else.

        Something else would not be followed by whole names, existing types and bits within
        the struct, member after member.
        """
        words, count = self._words, self._words[at] & 0xFFFF
        if self._base is not None or not count or at + 2 + 3 * count > len(words):
            return False
        mask = 0xFFFFFF if words[at] >> 31 else 0xFFFFFFFF
        bits = words[at + 1] * 8
        strings, length = self._header.strings_start, self._header.strings_end
        for member in range(at + 2, at + 2 + 3 * count, 3):
            name = strings + words[member]
            if name >= length or (name > strings and self._data[name - 1]):
                return False
            if words[member + 1] * 3 > len(words) or words[member + 2] & mask > bits:
                return False
        return True

    def _members_named(
        self, found: b.Struct | b.Union, name: str, base: int, depth: int
    ) -> Iterator[b.Member]:
        """Members of that name, as if of `found` itself, anonymous ones looked into."""
        if depth > b.MAX_DEPTH:
            raise ObjectError(f"anonymous members nest more than {b.MAX_DEPTH} deep")
        for member in found.members:
            at = base + member.bit_offset
            if member.name == name:
                yield b.Member(name, member.type_id, at, member.bit_size)
            elif not member.name:
                _, inner = b.resolve(self, member.type_id)
                if isinstance(inner, b.Struct | b.Union):
                    yield from self._members_named(inner, name, at, depth + 1)


def _indexed(names: list[bytes], headers: list[int]) -> _Index:
    last = dict(zip(names, headers, strict=True))
    others: dict[bytes, list[int]] = {}
    if len(last) < len(names):
        pairs = zip(names, headers, strict=True)
        for name, at in [pair for pair in pairs if last[pair[0]] != pair[1]]:
            others.setdefault(name, []).append(at)
    for name in [name for name in last if b"___" in name]:
        essential = b.essential_name(name.decode("latin-1")).encode("latin-1")
        if essential != name:
            others.setdefault(essential, []).extend((last[name], *others.get(name, ())))
    return _Index(last, others)


def _occurrences(data: bytes | mmap.mmap, wanted: bytes, start: int, end: int) -> Iterator[int]:
    """Where the pattern matches within data[start:end], overlapping ones too."""
    # re looks for a literal three times as fast as find() does among all these zeros.
    search = re.compile(wanted).search
    hit = search(data, start, end)
    while hit:
        yield hit.start()
        hit = search(data, hit.start() + 1, end)


def _contents(file: BinaryIO) -> bytes | mmap.mmap:
    """The file's bytes, without a copy where the kernel can map them."""
    try:
        # Only private mappings of it are allowed, btf_sysfs_vmlinux_mmap() in
        # kernel/bpf/sysfs_btf.c; kernels before 6.16 have no mapping at all (ENODEV).
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return file.read()

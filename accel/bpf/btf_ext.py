"""What an object's .BTF.ext knows of its instructions: functions, lines, CO-RE.

Pure.  Described in Documentation/bpf/btf.rst, "BTF.ext section".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from accel.bpf.btf import BYTE_ORDERS, MARKS, Btf, Func
from accel.bpf.errors import ObjectError
from accel.bpf.spec import CoreKind, CoreRelocation, FuncInfo, LineInfo


class Ext(NamedTuple):
    """.BTF.ext: what is known of instructions, by the name of the section they are in.

    Every `index` counts instructions from the start of that section.
    """

    func_info: Mapping[str, tuple[FuncInfo, ...]]
    line_info: Mapping[str, tuple[LineInfo, ...]]
    core_relocations: Mapping[str, tuple[CoreRelocation, ...]]


_R = TypeVar("_R")


def parse(data: bytes, btf: Btf) -> Ext:
    """Read a .BTF.ext section that belongs to `btf`.

    Raises:
        ObjectError: It is malformed; the message says where.
    """
    place = ".BTF.ext header"
    mark = MARKS[btf.byteorder]
    if BYTE_ORDERS.get(data[:2]) != btf.byteorder:
        raise ObjectError("no BTF of the object's byte order", place=place)
    if len(data) < 24:
        raise ObjectError(f"cut short: {len(data)} bytes", place=place)
    version, _, length = struct.Struct(f"{mark}BBI").unpack_from(data, 2)
    if version != 1 or not 24 <= length <= len(data):
        raise ObjectError(f"version {version}, {length} bytes", place=place)
    # The part for CO-RE came with Linux 5.4 and lengthened the header.
    parts = 3 if length >= 32 else 2
    extents = struct.Struct(f"{mark}{parts * 2}I").unpack_from(data, 8)

    def part(number: int, what: str, size: int) -> Iterator[tuple[str, int, bytes]]:
        if number >= parts:
            return iter(())
        start = length + extents[number * 2]
        end = start + extents[number * 2 + 1]
        if end > len(data):
            raise ObjectError(f"{what} is outside the section", place=place)
        return _records(data[start:end], btf, what, size)

    return Ext(
        _group(part(0, "func_info", 8), lambda index, r: _func_info(r, index, btf)),
        _group(part(1, "line_info", 16), lambda index, r: _line_info(r, index, btf)),
        _group(part(2, "core_relo", 16), lambda index, r: _core_relocation(r, index, btf)),
    )


def _group(
    records: Iterator[tuple[str, int, bytes]], make: Callable[[int, bytes], _R]
) -> Mapping[str, tuple[_R, ...]]:
    by_section: dict[str, list[_R]] = {}
    for section, index, record in records:
        by_section.setdefault(section, []).append(make(index, record))
    return {section: tuple(found) for section, found in by_section.items()}


def _records(data: bytes, btf: Btf, what: str, size: int) -> Iterator[tuple[str, int, bytes]]:
    """Section name, instruction index and first `size` bytes of each record."""
    if not data:
        return
    word = struct.Struct(f"{MARKS[btf.byteorder]}I")
    head = struct.Struct(f"{MARKS[btf.byteorder]}II")
    place = f".BTF.ext {what}"
    if len(data) < 4:
        raise ObjectError("cut short", place=place)
    (step,) = word.unpack_from(data)
    if step < size or step % 4:
        raise ObjectError(f"records of {step} bytes, fewer than {size}", place=place)
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise ObjectError("cut short", place=f"{place}, offset {at:#x}")
        name, count = head.unpack_from(data, at)
        at += 8
        if at + count * step > len(data):
            raise ObjectError(
                f"{count} records do not fit into {len(data)} bytes",
                place=f"{place}, offset {at:#x}",
            )
        section = btf.string(name)
        for start in range(at, at + count * step, step):
            (offset,) = word.unpack_from(data, start)
            if offset % 8:
                raise ObjectError(
                    f"no instruction starts at byte {offset:#x} of {section}",
                    place=f"{place}, offset {start:#x}",
                )
            yield section, offset // 8, data[start : start + size]
        at += count * step


def _func_info(record: bytes, index: int, btf: Btf) -> FuncInfo:
    (type_id,) = struct.Struct(f"{MARKS[btf.byteorder]}4xI").unpack(record)
    if not isinstance(btf.type(type_id), Func):
        raise ObjectError(f"type {type_id} is no function", place=".BTF.ext func_info")
    return FuncInfo(index, type_id)


def _line_info(record: bytes, index: int, btf: Btf) -> LineInfo:
    file_off, line_off, packed = struct.Struct(f"{MARKS[btf.byteorder]}4xIII").unpack(record)
    return LineInfo(index, file_off, line_off, packed >> 10, packed & 0x3FF)


def _core_relocation(record: bytes, index: int, btf: Btf) -> CoreRelocation:
    type_id, access, kind = struct.Struct(f"{MARKS[btf.byteorder]}4xIII").unpack(record)
    btf.type(type_id)
    if kind not in CoreKind.__members__.values():
        raise ObjectError(f"unknown CO-RE relocation {kind}", place=".BTF.ext core_relo")
    return CoreRelocation(index, type_id, btf.string(access), CoreKind(kind))

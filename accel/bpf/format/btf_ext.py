"""What an object's .BTF.ext knows of its instructions: functions, lines, CO-RE.

Pure.  Described in Documentation/bpf/btf.rst, "BTF.ext section".  Objects have
thousands of records, so they stay rows of numbers here; linker.py makes those of
spec.py out of the ones a program has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from struct import Struct
from typing import NamedTuple, TypeAlias

from accel.bpf.errors import ObjectError
from accel.bpf.format.btf import BYTE_ORDERS, Btf, Func
from accel.bpf.format.byteorder import MARKS
from accel.bpf.spec import CoreKind

Row: TypeAlias = tuple[int, ...]

_HEADER_SIZE = 24
_WITH_CORE = 32


class Ext(NamedTuple):
    """.BTF.ext: what is known of instructions, by the name of the section they are in.

    Rows are in order of their instruction, which is counted from the section's start.

    Attributes:
        func_info: (instruction, type of the function that starts there).
        line_info: (instruction, offset of the file's name, of the line's text, and
            line << 10 | column).
        core_relocations: (instruction, type, offset of the access string, CoreKind).
        remarks: What was left out, and why.
    """

    func_info: Mapping[str, list[Row]]
    line_info: Mapping[str, list[Row]]
    core_relocations: Mapping[str, list[Row]]
    remarks: tuple[str, ...] = ()


NOTHING = Ext({}, {}, {})


def parse(data: bytes, btf: Btf) -> Ext:
    """Read a .BTF.ext section that belongs to `btf`.

    Programs can do without a description of their functions and lines, so malformed ones
    are left out with a remark.  Without its CO-RE relocations code would read wrong fields.

    Raises:
        ObjectError: The header or a CO-RE relocation is malformed; the message says where.
    """
    if not data:
        return NOTHING
    functions, lines, relocations = _parts(data, btf)
    core = _rows(relocations, "core_relo", "IIII", btf)
    _check_core_relocations(core, btf)
    try:
        func_info = _rows(functions, "func_info", "II", btf)
        _check_functions(func_info, btf)
        line_info = _rows(lines, "line_info", "IIII", btf)
        _check_lines(line_info, btf)
        return Ext(func_info, line_info, core)
    except ObjectError as e:
        return Ext({}, {}, core, (f"functions and lines of programs are not known: {e}",))


def _check_functions(found: Mapping[str, list[Row]], btf: Btf) -> None:
    for section, rows in found.items():
        for _, type_id in rows:
            if not isinstance(btf.type(type_id), Func):
                raise ObjectError(
                    f"type {type_id} is no function", place=f".BTF.ext func_info of {section}"
                )


def _check_lines(found: Mapping[str, list[Row]], btf: Btf) -> None:
    """Of the texts only where they are: next to nobody will read them."""
    for section, rows in found.items():
        for _, file, text, _ in rows:
            if max(file, text) >= btf.strings_size:
                raise ObjectError(
                    f"no text at offset {max(file, text):#x} of the strings",
                    place=f".BTF.ext line_info of {section}",
                )


def _check_core_relocations(found: Mapping[str, list[Row]], btf: Btf) -> None:
    for section, rows in found.items():
        for _, type_id, _, kind in rows:
            btf.type(type_id)
            if kind > CoreKind.TYPE_MATCHES:
                raise ObjectError(
                    f"unknown CO-RE relocation {kind}", place=f".BTF.ext core_relo of {section}"
                )


def _parts(data: bytes, btf: Btf) -> list[bytes]:
    """The bytes of func_info, line_info and core_relo."""
    place = ".BTF.ext header"
    mark = MARKS[btf.byteorder]
    if BYTE_ORDERS.get(data[:2]) != btf.byteorder:
        raise ObjectError("no BTF of the object's byte order", place=place)
    if len(data) < _HEADER_SIZE:
        raise ObjectError(f"cut short: {len(data)} bytes", place=place)
    version, _, length = Struct(f"{mark}BBI").unpack_from(data, 2)
    if version != 1 or not _HEADER_SIZE <= length <= len(data):
        raise ObjectError(
            f"version {version} and a header of {length} bytes, not 1 and {_HEADER_SIZE} to "
            f"{len(data)}",
            place=place,
        )
    # The part for CO-RE came with Linux 5.4 and lengthened the header.
    extents = [*Struct(f"{mark}{6 if length >= _WITH_CORE else 4}I").unpack_from(data, 8), 0, 0]
    parts = []
    for start, size in zip(extents[0:6:2], extents[1:6:2], strict=True):
        if length + start + size > len(data):
            raise ObjectError(f"{size} bytes at {start:#x} are outside the section", place=place)
        parts.append(data[length + start : length + start + size])
    return parts


def _rows(data: bytes, what: str, layout: str, btf: Btf) -> dict[str, list[Row]]:
    """The first fields of each record by section; bytes have become instructions."""
    size = Struct(layout).size
    by_section: dict[str, list[Row]] = {}
    for section, start, step, block in _blocks(data, what, size, btf):
        record = Struct(f"{MARKS[btf.byteorder]}{layout}{step - size}x")
        found = list(record.iter_unpack(block))
        if any(row[0] % 8 for row in found):
            raise ObjectError(
                f"a record is of the middle of an instruction of {section}",
                place=f".BTF.ext {what}, offset {start:#x}",
            )
        rows = by_section.setdefault(section, [])
        rows += [(offset // 8, *rest) for offset, *rest in found]
    for rows in by_section.values():
        rows.sort(key=itemgetter(0))
    return by_section


def _blocks(data: bytes, what: str, least: int, btf: Btf) -> Iterator[tuple[str, int, int, bytes]]:
    """Each block of records: its section, offset, the size of one, and their bytes."""
    if not data:
        return
    place = f".BTF.ext {what}"
    head = Struct(f"{MARKS[btf.byteorder]}II")
    if len(data) < 4:
        raise ObjectError("cut short", place=place)
    (step,) = Struct(f"{MARKS[btf.byteorder]}I").unpack_from(data)
    if len(data) == 4:  # GCC 12 writes a size and no records
        return
    if not least <= step <= len(data) or step % 4:
        raise ObjectError(f"records of {step} bytes, not {least} or more", place=place)
    at = 4
    while at < len(data):
        if at + head.size > len(data):
            raise ObjectError("cut short", place=f"{place}, offset {at:#x}")
        name, count = head.unpack_from(data, at)
        at += head.size
        end = at + count * step
        if end > len(data):
            raise ObjectError(
                f"{count} records do not fit into {len(data)} bytes",
                place=f"{place}, offset {at:#x}",
            )
        yield btf.string(name), at, step, data[at:end]
        at = end

"""Damaged objects: what truncation, decay and malice make of a sound file.

Pure and seeded: the same object and the same number make the same mutant.  Half of the
mutants are blind (bits, bytes, cuts); the other half know the format, and change just
one field of a header, a symbol, a relocation, a type or an instruction record, so that
they get past the first checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from struct import Struct
from typing import NamedTuple

# Numbers at which arithmetic and bounds checks go wrong.
_EDGES = (0, 1, 2, 3, 4, 7, 8, 16, 24, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF)
_LARGE = (1 << 16, 1 << 24, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)

_HEADER_BYTES = 64
_SHT_SYMTAB, _SHT_REL = 2, 9


class Region(NamedTuple):
    """Where in the file `length` records of `size` bytes lie; fields are (offset, bytes)."""

    start: int
    length: int
    size: int
    fields: tuple[tuple[int, int], ...]


_EHDR = ((16, 2), (18, 2), (20, 4), (40, 8), (52, 2), (58, 2), (60, 2), (62, 2))
_SHDR = ((0, 4), (4, 4), (8, 8), (24, 8), (32, 8), (40, 4), (44, 4), (56, 8))
_SYM = ((0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (16, 8))
_REL = ((0, 8), (8, 4), (12, 4))
_WORD = ((0, 4),)


class Subject:
    """A sound object, with the places worth damaging found once."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self._order = "big" if data[5:6] == b"\x02" else "little"
        self.regions = list(self._find_regions())

    def _find_regions(self) -> Sequence[Region]:
        mark = ">" if self._order == "big" else "<"
        table, entry, count = (
            Struct(f"{mark}Q").unpack_from(self.data, 40)[0],
            Struct(f"{mark}H").unpack_from(self.data, 58)[0],
            Struct(f"{mark}H").unpack_from(self.data, 60)[0],
        )
        regions = [Region(0, 1, _HEADER_BYTES, _EHDR), Region(table, count, entry, _SHDR)]
        header = Struct(f"{mark}IIQQQQIIQQ")
        for number in range(count):
            _, kind, _, _, offset, size, _, _, _, _ = header.unpack_from(
                self.data, table + number * entry
            )
            if kind == _SHT_SYMTAB:
                regions.append(Region(offset, size // 24, 24, _SYM))
            elif kind == _SHT_REL:
                regions.append(Region(offset, size // 16, 16, _REL))
            elif size and offset + size <= len(self.data):
                # Types, instruction records, instructions, variables: words of four bytes.
                regions.append(Region(offset, size // 4, 4, _WORD))
                if self.data[offset : offset + 2] in (b"\x9f\xeb", b"\xeb\x9f"):
                    regions.append(Region(offset, 8, 4, _WORD))  # the headers of BTF
        return [region for region in regions if region.length and region.size]

    def mutant(self, number: int) -> bytes:
        """Mutant `number` of this object."""
        dice = random.Random(f"{self.name} {number}")
        data = bytearray(self.data)
        for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
            dice.choice(_DAMAGES)(self, data, dice)
        return bytes(data)

    def _fields(self, dice: random.Random) -> tuple[int, int]:
        region = dice.choice(self.regions)
        offset, size = dice.choice(region.fields)
        return region.start + dice.randrange(region.length) * region.size + offset, size

    def change_field(self, data: bytearray, dice: random.Random) -> None:
        """Give one field another number."""
        at, size = self._fields(dice)
        if at + size > len(data):
            return
        order = self._order
        old = int.from_bytes(data[at : at + size], "big" if order == "big" else "little")
        new = dice.choice(
            (
                dice.choice(_EDGES),
                dice.choice(_LARGE),
                old + dice.choice((-8, -4, -1, 1, 4, 8)),
                old ^ 1 << dice.randrange(size * 8),
                dice.randrange(1 << size * 8),
                len(self.data) + dice.randrange(-64, 64),
            )
        )
        data[at : at + size] = (new % (1 << size * 8)).to_bytes(
            size, "big" if order == "big" else "little"
        )

    def exchange_fields(self, data: bytearray, dice: random.Random) -> None:
        """Copy one record's field over another's."""
        region = dice.choice(self.regions)
        first, second = (
            region.start + dice.randrange(region.length) * region.size for _ in range(2)
        )
        if max(first, second) + region.size <= len(data):
            data[first : first + region.size] = data[second : second + region.size]


def _cut(_: Subject, data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data) + 1) :]


def _flip(_: Subject, data: bytearray, dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _set_byte(_: Subject, data: bytearray, dice: random.Random) -> None:
    if data:
        data[dice.randrange(len(data))] = dice.randrange(256)


def _remove(_: Subject, data: bytearray, dice: random.Random) -> None:
    if data:
        start = dice.randrange(len(data))
        del data[start : start + dice.choice((1, 4, 8, 64, 512))]


def _insert(_: Subject, data: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(data) + 1)
    data[start:start] = bytes(dice.choice((1, 4, 8, 64, 512)))


def _fill(_: Subject, data: bytearray, dice: random.Random) -> None:
    if data:
        start = dice.randrange(len(data))
        end = min(len(data), start + dice.choice((4, 8, 32, 256)))
        data[start:end] = bytes([dice.choice((0, 0xFF, 0x7F, 0x80))]) * (end - start)


_DAMAGES: tuple[Callable[[Subject, bytearray, random.Random], None], ...] = (
    _cut,
    _flip,
    _set_byte,
    _remove,
    _insert,
    _fill,
    Subject.change_field,
    Subject.change_field,
    Subject.change_field,
    Subject.change_field,
    Subject.change_field,
    Subject.exchange_fields,
)

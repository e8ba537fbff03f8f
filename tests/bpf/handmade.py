"""BTF written by hand: what no compiler would give us when we ask."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from accel.bpf.format.byteorder import ByteOrder

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = range(9, 17)
DECL_TAG, TYPE_TAG, ENUM64 = range(17, 20)

Members = Iterable[tuple[str, int, int]]


class Builder:
    """Collects types; every method returns the new type's id."""

    def __init__(self, byteorder: ByteOrder = "little") -> None:
        self._mark = "<" if byteorder == "little" else ">"
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._last = 0

    def string(self, text: str) -> int:
        """Offset of a new string; the empty one is always there."""
        if not text:
            return 0
        offset = len(self._strings)
        self._strings += text.encode() + b"\0"
        return offset

    def add(
        self, kind: int, name: str, value: int, *tail: int, vlen: int = 0, flag: bool = False
    ) -> int:
        """A type: its kind, name, size or type, and what follows struct btf_type."""
        return self.add_named(kind, self.string(name), value, *tail, vlen=vlen, flag=flag)

    def add_named(
        self, kind: int, name: int, value: int, *tail: int, vlen: int = 0, flag: bool = False
    ) -> int:
        """The same, given the offset of its name."""
        info = kind << 24 | vlen | flag << 31
        words = (name, info, value, *tail)
        self._types += struct.pack(f"{self._mark}{len(words)}I", *(w & 0xFFFFFFFF for w in words))
        self._last += 1
        return self._last

    def integer(self, name: str, size: int, *, signed: bool = False, encoding: int = 0) -> int:
        return self.add(INT, name, size, (encoding | signed) << 24 | size * 8)

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, "", 0, element, element, count)

    def composite(self, kind: int, name: str, size: int, members: Members) -> int:
        """A struct or union of (name, type, bit offset)."""
        members = list(members)
        tail = [word for n, t, at in members for word in (self.string(n), t, at)]
        return self.add(kind, name, size, *tail, vlen=len(members))

    def struct(self, name: str, size: int, members: Members) -> int:
        return self.composite(STRUCT, name, size, members)

    def enum(self, name: str, values: Iterable[tuple[str, int]], *, signed: bool = False) -> int:
        values = list(values)
        tail = [word for n, v in values for word in (self.string(n), v)]
        return self.add(ENUM, name, 4, *tail, vlen=len(values), flag=signed)

    def enum64(self, name: str, values: Iterable[tuple[str, int]], *, signed: bool = False) -> int:
        values = list(values)
        tail = [word for n, v in values for word in (self.string(n), v, v >> 32)]
        return self.add(ENUM64, name, 8, *tail, vlen=len(values), flag=signed)

    def function(self, result: int, parameters: Iterable[tuple[str, int]]) -> int:
        """A FUNC_PROTO."""
        parameters = list(parameters)
        tail = [word for n, t in parameters for word in (self.string(n), t)]
        return self.add(FUNC_PROTO, "", result, *tail, vlen=len(parameters))

    def build(self) -> bytes:
        """The .BTF section."""
        return (
            struct.pack(
                f"{self._mark}HBBIIIII",
                *(0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings)),
            )
            + self._types
            + self._strings
        )

"""Global variables: set in a spec before load, read and written by name after it."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from errno import EIO
from functools import cached_property
from typing import Any, Literal

from accel.bpf.closing import Closing
from accel.bpf.door import uapi
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.format.btf import Btf
from accel.bpf.format.codec import Codec, codec_for
from accel.bpf.kinds import MapType
from accel.bpf.maps.arena import Arena
from accel.bpf.maps.map import Map
from accel.bpf.spec import ObjectSpec, VariableSpec

_KEY = bytes(4)  # a data map is an array of one value

# memoryview formats whose items the interpreter stores and loads with one
# fixed-size copy, which compilers make one instruction.
_WORDS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def with_variables(spec: ObjectSpec, /, **values: Any) -> ObjectSpec:
    """A copy of the spec in which the named variables start with these values.

    The only way to set constants (.rodata), which the verifier then knows.

    Raises:
        ObjectError: The object has no BTF, or no such variable, or it cannot be
            of that value.
    """
    if spec.btf is None:
        raise ObjectError(f"{spec.name} has no BTF to say what its variables are")
    maps = dict(spec.maps)
    for name, value in values.items():
        variable = spec.variables.get(name)
        if variable is None:
            raise ObjectError(f"{spec.name} has no variable {name!r}")
        contents = maps[variable.map].contents
        if contents is None:
            raise ObjectError(f"map {variable.map} of variable {name} has no initial contents")
        codec = codec_for(spec.btf, variable.type_id, byteorder=spec.byteorder)
        try:
            packed = codec.pack(value)
        except ValueError as error:
            raise ObjectError(f"{error}", place=f"initial value of variable {name}") from error
        end = variable.offset + len(packed)
        maps[variable.map] = replace(
            maps[variable.map], contents=contents[: variable.offset] + packed + contents[end:]
        )
    return replace(spec, maps=maps)


class Variable:
    """One variable of a loaded object, typed by BTF."""

    def __init__(self, spec: VariableSpec, memory: _Memory, btf: Btf) -> None:
        """Not for direct use: see Variables."""
        self.name = spec.name
        self._spec = spec
        self._memory = memory
        self._btf = btf

    @cached_property
    def _codec(self) -> Codec[Any]:
        # Made when asked for: an object may well hold variables of types that have
        # no value in Python, and nobody asks for those.
        codec = codec_for(self._btf, self._spec.type_id)
        if codec.size != self._spec.size:
            raise ShapeError(
                f"variable {self.name}",
                (f"its type has {codec.size} bytes, expected {self._spec.size}",),
            )
        return codec

    def get(self) -> Any:
        """Its value now.  Aligned variables of 1, 2, 4 or 8 bytes are read in one load."""
        return self._codec.unpack(self._memory.read(self._spec.offset, self._codec.size))

    def set(self, value: Any) -> None:
        """Write it.

        Where the map can be mapped, an aligned variable of 1, 2, 4 or 8 bytes is
        written in one store: programs see the old value or the new one, nothing
        between.  Larger ones may be seen half written.  Where the map cannot be
        mapped (before Linux 5.5) the map's whole value is read, changed and
        written back: what programs write to its other variables meanwhile is lost.

        Raises:
            BpfError: EPERM for a constant.
            ValueError: The variable's type cannot hold it.
        """
        self._memory.write(self._spec.offset, self._codec.pack(value))

    def __repr__(self) -> str:
        return f"<Variable {self.name}>"


class Variables(Closing, Mapping[str, Variable]):
    """The variables of one data map or arena, by name; also of one opened from a pin.

    Does not own the map.  close() releases the mapping, and must come before or
    after the map's own, in any order.
    """

    def __init__(self, map: Map[bytes, bytes], specs: Mapping[str, VariableSpec], btf: Btf) -> None:
        """
        Args:
            specs: As in ObjectSpec.variables; those of other maps are left out.
            btf: What their type ids refer to.

        Raises:
            ShapeError: A variable lies outside the map's value.
            BpfError: The map cannot be mapped, for want of descriptors or memory.
        """
        size = _size(map)
        mine = [spec for spec in specs.values() if spec.map == map.spec.name]
        outside = tuple(
            f"variable {spec.name} ends at byte {spec.offset + spec.size} of {size}"
            for spec in mine
            if spec.offset + spec.size > size
        )
        if outside:
            raise ShapeError(f"map {map.name}", outside)
        self._memory = _memory(map)
        self._variables = {spec.name: Variable(spec, self._memory, btf) for spec in mine}

    def __getitem__(self, name: str) -> Variable:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def close(self) -> None:
        self._memory.close()

    def __repr__(self) -> str:
        return f"<Variables {', '.join(self._variables)}>"


class _Memory:
    """A data map's value, through lookup and update."""

    def __init__(self, map: Map[bytes, bytes]) -> None:
        self._map = map

    def read(self, offset: int, size: int) -> bytes:
        return self._value()[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        value = self._value()
        self._map.update(_KEY, value[:offset] + data + value[offset + len(data) :])

    def _value(self) -> bytes:
        value = self._map.lookup(_KEY)
        if value is None:
            raise BpfError(f"read the only value of map {self._map.name}", 0)
        return value

    def close(self) -> None:
        """Nothing is held."""


class _Mapped(_Memory):
    """A data map's value, mapped."""

    def __init__(
        self, map: Map[bytes, bytes], pages: memoryview, unmap: Callable[[], None]
    ) -> None:
        super().__init__(map)
        self._bytes = pages
        self._unmap = unmap

    def read(self, offset: int, size: int) -> bytes:
        with self._bytes[offset : offset + size] as part:
            if _is_word(offset, size):
                with part.cast(_WORDS[size]) as words:
                    return int(words[0]).to_bytes(size, sys.byteorder)
            return bytes(part)

    def write(self, offset: int, data: bytes) -> None:
        with self._bytes[offset : offset + len(data)] as part:
            if _is_word(offset, len(data)):
                with part.cast(_WORDS[len(data)]) as words:
                    words[0] = int.from_bytes(data, sys.byteorder)
            else:
                part[:] = data

    def close(self) -> None:
        self._bytes.release()
        self._unmap()


class _InArena(_Memory):
    """An arena, mapped when a variable is first asked for.

    A process maps an arena once, so whoever never asks is free to do so himself.
    """

    def __init__(self, map: Map[bytes, bytes]) -> None:
        super().__init__(map)
        self._mapped: _Mapped | None = None

    def _memory(self) -> _Mapped:
        if self._mapped is None:
            arena = Arena(self._map)
            self._mapped = _Mapped(self._map, arena.memory, arena.close)
        return self._mapped

    def read(self, offset: int, size: int) -> bytes:
        return self._memory().read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._memory().write(offset, data)

    def close(self) -> None:
        if self._mapped is not None:
            self._mapped.close()


def _is_word(offset: int, size: int) -> bool:
    return size in _WORDS and offset % size == 0


def _memory(map: Map[bytes, bytes]) -> _Memory:
    """The best way to a data map's value: a frozen or old one cannot be mapped writable."""
    if map.spec.type == MapType.ARENA:
        return _InArena(map)
    if not map.spec.flags & uapi.BPF_F_MMAPABLE:
        return _Memory(map)
    try:
        pages = mmap.mmap(
            map.fileno(), _size(map), mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
    except PermissionError:  # frozen, bpf_map_mmap(), kernel/bpf/syscall.c
        return _Memory(map)
    except OSError as error:
        raise BpfError(f"map {map.name} into memory", error.errno or EIO) from error
    return _Mapped(map, memoryview(pages), pages.close)


def _size(map: Map[bytes, bytes]) -> int:
    """Bytes that variables can be in."""
    if map.spec.type == MapType.ARENA:
        return map.spec.max_entries * mmap.PAGESIZE
    return map.spec.value_size

"""How the keys and values of maps lie in memory, for every kind of map.

Most maps hold what their definition says, and codec.py makes views of BTF types.
What is here is the rest: bytes as they are, one value per CPU, and the kinds whose
keys or values the kernel itself gives a meaning to: descriptors go in, ids come out.
"""

from __future__ import annotations

import struct
import sys
from errno import EOPNOTSUPP
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from accel.bpf.door import uapi
from accel.bpf.door.cpu import possible_cpus
from accel.bpf.errors import BpfError, ShapeError
from accel.bpf.kinds import MapType
from accel.bpf.maps.limits import reason_without_keys
from accel.bpf.spec import MapSpec

V = TypeVar("V")

# bpf_map_value_size(), kernel/bpf/syscall.c.
_PER_CPU = frozenset(
    {
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_PERCPU_HASH,
        MapType.PERCPU_CGROUP_STORAGE,
    }
)

STORAGES = frozenset(
    {
        MapType.SK_STORAGE,
        MapType.INODE_STORAGE,
        MapType.TASK_STORAGE,
        MapType.CGRP_STORAGE,
    }
)
"""Kinds whose keys are the descriptors of sockets, files, processes (pidfd) and cgroups."""

MAPS_OF_MAPS = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})

# A descriptor is written; what is read, if anything, is an id or a socket's cookie.
_OF_DESCRIPTORS = MAPS_OF_MAPS | {
    MapType.PROG_ARRAY,
    MapType.PERF_EVENT_ARRAY,
    MapType.CGROUP_ARRAY,
    MapType.XSKMAP,
    MapType.SOCKMAP,
    MapType.SOCKHASH,
    MapType.REUSEPORT_SOCKARRAY,
}

# struct bpf_devmap_val and bpf_cpumap_val: a number, and perhaps a program.
_WITH_PROGRAMS = frozenset({MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP})

# Kinds whose keys are indices, or what the kernel numbers so, whatever BTF they lack.
_INDEXED = frozenset(
    {
        MapType.ARRAY,
        MapType.PERCPU_ARRAY,
        MapType.PROG_ARRAY,
        MapType.PERF_EVENT_ARRAY,
        MapType.CGROUP_ARRAY,
        MapType.ARRAY_OF_MAPS,
        MapType.DEVMAP,
        MapType.DEVMAP_HASH,
        MapType.CPUMAP,
        MapType.XSKMAP,
        MapType.SOCKMAP,
        MapType.REUSEPORT_SOCKARRAY,
        MapType.STACK_TRACE,
        MapType.STRUCT_OPS,
        MapType.INSN_ARRAY,
    }
)


class View(Protocol[V]):
    """How values of one type lie in memory: what codec_for() returns."""

    @property
    def size(self) -> int: ...
    def pack(self, value: V, /) -> bytes: ...
    def unpack(self, buffer: bytes, /) -> V: ...


class Raw(NamedTuple):
    """The view without types: bytes of exactly the right length."""

    size: int
    what: str

    def pack(self, value: bytes, /) -> bytes:
        if len(value) != self.size:
            raise ShapeError(self.what, (f"got {len(value)} bytes, expected {self.size}",))
        return bytes(value)

    def unpack(self, buffer: bytes, /) -> bytes:
        return bytes(buffer)


class RawDescriptor(Raw):
    """Bytes, or something with a descriptor to make them of."""

    __slots__ = ()

    def pack(self, value: Any, /) -> bytes:
        if hasattr(value, "fileno"):
            return int(value.fileno()).to_bytes(self.size, sys.byteorder)
        return super().pack(value)


class Descriptor(NamedTuple):
    """Written: a descriptor, or what has one.  Read: the number the kernel gives instead."""

    size: int
    what: str

    def pack(self, value: Any, /) -> bytes:
        number = value.fileno() if hasattr(value, "fileno") else value
        return _packed(self.what, number, self.size)

    def unpack(self, buffer: bytes, /) -> int:
        return int.from_bytes(buffer, sys.byteorder)


class Number(NamedTuple):
    """An unsigned integer."""

    size: int
    what: str

    def pack(self, value: int, /) -> bytes:
        return _packed(self.what, value, self.size)

    def unpack(self, buffer: bytes, /) -> int:
        return int.from_bytes(buffer, sys.byteorder)


class Redirect(NamedTuple):
    """An element of a DEVMAP, DEVMAP_HASH or CPUMAP.

    Attributes:
        target: Interface index of a device; queue length, in packets, of a CPU.
        program: The program to run there: written as a Program or its descriptor, read
            as its id; 0 for none.
    """

    target: int
    program: Any = 0


class _Redirects(NamedTuple):
    what: str
    size: int = 8

    def pack(self, value: Redirect | tuple[int, Any], /) -> bytes:
        target, program = value
        number = program.fileno() if hasattr(program, "fileno") else program
        return _packed(self.what, target, 4) + _packed(self.what, number, 4)

    def unpack(self, buffer: bytes, /) -> Redirect:
        return Redirect(*struct.unpack("=II", buffer))


class _Trace(NamedTuple):
    """A stack trace: instruction addresses, innermost first, until the first 0."""

    size: int
    what: str

    def pack(self, value: object, /) -> bytes:
        raise ShapeError(self.what, ("programs write it, user space only reads and deletes",))

    def unpack(self, buffer: bytes, /) -> tuple[int, ...]:
        addresses = struct.unpack(f"={len(buffer) // 8}Q", buffer)
        return addresses[: addresses.index(0)] if 0 in addresses else addresses


class _Keyless(NamedTuple):
    """The keys of a map without any."""

    action: str
    reason: str
    size: int = 0

    def pack(self, value: object, /) -> bytes:
        self._refuse()

    def unpack(self, buffer: object, /) -> bytes:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BpfError(f"{self.action}: {self.reason}", EOPNOTSUPP)


class PerCpu(NamedTuple):
    """A per-CPU value: one item per possible CPU, each padded to 8 bytes.

    The size rule is round_up(value_size, 8) * num_possible_cpus(),
    bpf_map_value_size(), kernel/bpf/syscall.c.
    """

    item: View[Any]
    cpus: int

    @property
    def stride(self) -> int:
        return -(-self.item.size // 8) * 8

    @property
    def size(self) -> int:
        return self.stride * self.cpus

    def pack(self, values: tuple[Any, ...], /) -> bytes:
        if len(values) != self.cpus:
            raise ShapeError(
                "per-CPU value", (f"got {len(values)} items, expected {self.cpus}: one per CPU",)
            )
        return b"".join(self.item.pack(value).ljust(self.stride, b"\0") for value in values)

    def unpack(self, buffer: bytes, /) -> tuple[Any, ...]:
        size = self.item.size
        return tuple(
            self.item.unpack(buffer[start : start + size])
            for start in range(0, self.size, self.stride)
        )


def _packed(what: str, number: Any, size: int) -> bytes:
    # -1 is how the kernel's own structs say "no descriptor".
    if not isinstance(number, int) or not -1 <= number < 1 << size * 8:
        raise ValueError(f"{what}: {number!r} has no descriptor and is no number of {size} bytes")
    return number.to_bytes(size, sys.byteorder, signed=number < 0)


def spread(spec: MapSpec, item: View[Any]) -> View[Any]:
    """The view of a value, given the view of one CPU's."""
    return PerCpu(item, possible_cpus()) if spec.type in _PER_CPU else item


def raw_keys(spec: MapSpec) -> View[Any]:
    """Keys as bytes."""
    what = f"key of map {spec.name}"
    reason = reason_without_keys(spec.type)
    if reason is not None:
        return _Keyless(f"use a key of map {spec.name}", reason)
    return (RawDescriptor if spec.type in STORAGES else Raw)(spec.key_size, what)


def raw_values(spec: MapSpec) -> View[Any]:
    """Values as bytes."""
    what = f"value of map {spec.name}"
    kind = RawDescriptor if spec.type in _OF_DESCRIPTORS else Raw
    return spread(spec, kind(spec.value_size, what))


def native_keys(spec: MapSpec) -> View[Any] | None:
    """Keys as the kind of map alone defines them; None where only BTF can tell."""
    if reason_without_keys(spec.type) is not None:
        return raw_keys(spec)
    what = f"key of map {spec.name}"
    if spec.type in STORAGES and spec.key_size == 4:
        return Descriptor(4, what)
    if spec.type in _INDEXED and spec.key_size == 4:
        return Number(4, what)
    return None


def native_values(spec: MapSpec) -> View[Any] | None:
    """Values as the kind of map alone defines them; None where only BTF can tell."""
    what = f"value of map {spec.name}"
    if spec.value_size == 0:
        return Raw(0, what)
    if spec.type in _OF_DESCRIPTORS and spec.value_size in (4, 8):
        return Descriptor(spec.value_size, what)
    if spec.type in _WITH_PROGRAMS:
        return _Redirects(what) if spec.value_size == 8 else Number(spec.value_size, what)
    if spec.type == MapType.STACK_TRACE and not spec.flags & uapi.BPF_F_STACK_BUILD_ID:
        return _Trace(spec.value_size, what)
    return None

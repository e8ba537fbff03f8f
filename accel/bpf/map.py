"""Maps: created from specs or opened from pins, read and written by typed views."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from mmap import PAGESIZE
from typing import Any, Generic, Protocol, TypeVar

from accel.bpf import pin, probe, syscall, uapi
from accel.bpf.btf import Btf
from accel.bpf.closing import Closing
from accel.bpf.codec import codec_for
from accel.bpf.cpu import possible_cpus
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.fd import Fd
from accel.bpf.kinds import MapType
from accel.bpf.spec import MapSpec

K = TypeVar("K")
V = TypeVar("V")

_PER_CPU = (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)

# BPF_MAP_LOOKUP_BATCH exists for these (map_ops with map_lookup_batch): hashes
# since 5.6, per-CPU arrays since 5.13; whatever refuses is read one by one.
_BATCHED = (
    MapType.HASH,
    MapType.ARRAY,
    MapType.PERCPU_HASH,
    MapType.PERCPU_ARRAY,
    MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH,
)
_BATCH = 1024  # elements asked for at a time

# Types whose creation refuses BTF for key and value: those without map_check_btf
# in their map_ops (map_check_no_btf(), kernel/bpf/syscall.c).
_WITHOUT_BTF = frozenset(
    {
        MapType.PROG_ARRAY,
        MapType.PERF_EVENT_ARRAY,
        MapType.STACK_TRACE,
        MapType.CGROUP_ARRAY,
        MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS,
        MapType.DEVMAP,
        MapType.DEVMAP_HASH,
        MapType.SOCKMAP,
        MapType.SOCKHASH,
        MapType.CPUMAP,
        MapType.XSKMAP,
        MapType.REUSEPORT_SOCKARRAY,
        MapType.QUEUE,
        MapType.STACK,
        MapType.RINGBUF,
        MapType.USER_RINGBUF,
        MapType.BLOOM_FILTER,
        MapType.ARENA,
        MapType.INSN_ARRAY,
    }
)

# What a pinned map may differ in from its spec: these are added at creation.
_FLAGS_OF_OURS = uapi.BPF_F_MMAPABLE | uapi.BPF_F_NUMA_NODE

_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.]")


class View(Protocol[V]):
    """How values of one type lie in memory: what codec_for() returns."""

    @property
    def size(self) -> int: ...
    def pack(self, value: V, /) -> bytes: ...
    def unpack(self, buffer: bytes, /) -> V: ...


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map.

    Attributes:
        id: Unique until reboot.
        name: As the kernel keeps it: at most 15 characters.
        type: A BPF_MAP_TYPE_* number.
        key_size, value_size: Bytes.
        flags: BPF_F_*.
    """

    id: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class _Raw:
    """The view without types: bytes of exactly the right length."""

    size: int
    what: str

    def pack(self, value: bytes, /) -> bytes:
        if len(value) != self.size:
            raise ShapeError(self.what, (f"got {len(value)} bytes, expected {self.size}",))
        return bytes(value)

    def unpack(self, buffer: bytes, /) -> bytes:
        return bytes(buffer)


@dataclass(frozen=True, slots=True)
class _PerCpu:
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


class Map(Closing, Generic[K, V]):
    """A map in the kernel, seen through a view of its keys and values.

    Created and opened maps show bytes; `typed()` shows what BTF says.  In a
    per-CPU map a value is a tuple, one item per possible CPU in CPU order;
    programs go on running while the kernel copies it, so it is no snapshot.

    A sockhash has keys like any map; what user space reads as the value of a
    key is the socket's cookie, if the spec's value_size is 8.
    """

    def __init__(
        self, fd: Fd, spec: MapSpec, keys: View[K], values: View[V], btf: Btf | None
    ) -> None:
        """Not for direct use: see create(), from_pin() and typed()."""
        self.spec = spec
        self._fd = fd
        self._keys = keys
        self._values = values
        self._btf = btf

    @classmethod
    def create(
        cls, spec: MapSpec, *, btf: Btf | None = None, btf_fd: Fd | None = None
    ) -> Map[bytes, Any]:
        """Create the map, write its initial contents, and freeze it if it is to be.

        Args:
            btf: The types the spec's type ids refer to, kept for typed().
            btf_fd: The same, loaded; None leaves the kernel without them.

        Raises:
            BpfError: The kernel refused.
        """
        spec = _adapted(spec)
        fd = _create(spec, btf_fd)
        try:
            if spec.contents is not None and any(spec.contents):
                action = f"write the initial contents of map {spec.name}"
                syscall.map_update_elem(fd, bytes(4), spec.contents, uapi.BPF_ANY, action)
            if spec.frozen:
                syscall.map_freeze(fd, f"freeze map {spec.name}")
        except BaseException:
            fd.close()
            raise
        return _untyped(fd, spec, btf)

    @classmethod
    def from_pin(
        cls, path: str | os.PathLike[str], *, spec: MapSpec | None = None, btf: Btf | None = None
    ) -> Map[bytes, Any]:
        """Open a pinned map.

        Args:
            spec: What it must be; None takes it as it is.
            btf: The types the spec's type ids refer to, for typed().

        Raises:
            BpfError: Nothing is pinned there, or it may not be opened.
            ShapeError: It is not what `spec` says; every difference is named.
        """
        fd = pin.open_pin(path, "map")
        try:
            info = _info(fd, f"pinned at {os.fspath(path)}")
            if spec is None:
                found = MapSpec(
                    name=info.name,
                    type=info.type,
                    key_size=info.key_size,
                    value_size=info.value_size,
                    max_entries=info.max_entries,
                    flags=info.flags,
                )
                return _untyped(fd, found, btf)
            different = differences(info, spec)
            if different:
                raise ShapeError(
                    f"map pinned at {os.fspath(path)} is not {spec.name}",
                    different,
                    remedy=f"remove {os.fspath(path)}, or use the version that pinned it",
                )
            return _untyped(fd, replace(_adapted(spec), flags=info.flags), btf)
        except BaseException:
            fd.close()
            raise

    def typed(
        self,
        btf: Btf | None = None,
        *,
        key_record: type | None = None,
        value_record: type | None = None,
    ) -> Map[Any, Any]:
        """The same map, its keys and values as its spec's BTF types say.

        The view shares the descriptor: closing either closes both.  Keys and
        values it is given that their types cannot hold are a ValueError.

        Args:
            btf: What the spec's type ids refer to; None for the object's own.
            key_record, value_record: What codec_for() makes structs into.

        Raises:
            ObjectError: There is no BTF, or no type for the key or the value.
            ShapeError: A type's size is not the map's.
        """
        btf = btf or self._btf
        if btf is None:
            raise ObjectError(f"map {self.name} has no BTF to say what its keys and values are")
        keys = self._codec(btf, "key", self.spec.key_type_id, self.spec.key_size, key_record)
        values = self._codec(
            btf, "value", self.spec.value_type_id, self.spec.value_size, value_record
        )
        return Map(self._fd, self.spec, keys, _spread(self.spec, values), btf)

    def _codec(
        self, btf: Btf, what: str, type_id: int, size: int, record: type | None
    ) -> View[Any]:
        if size == 0:
            return _Raw(0, f"{what} of map {self.name}")
        if type_id == 0:
            raise ObjectError(f"map {self.name} is defined without a type for its {what}")
        codec = codec_for(btf, type_id, record)
        if codec.size != size:
            raise ShapeError(
                f"map {self.name}", (f"its {what} type has {codec.size} bytes, expected {size}",)
            )
        return codec

    @property
    def name(self) -> str:
        """As in the object; the kernel's may be cut, see info()."""
        return self.spec.name

    @property
    def closed(self) -> bool:
        return self._fd.closed

    def fileno(self) -> int:
        return self._fd.fileno()

    def info(self) -> MapInfo:
        """What the kernel says of it."""
        return _info(self._fd, self.name)

    def lookup(self, key: K) -> V | None:
        """The value under `key`, or None.

        Raises:
            BpfError: ENOSPC for a sockhash whose value_size is not 8.
        """
        return self._read(self._keys.pack(key))

    def _read(self, key: bytes) -> V | None:
        found = syscall.map_lookup_elem(
            self._fd, key, self._values.size, f"look up in map {self.name}"
        )
        return None if found is None else self._values.unpack(found)

    def update(self, key: K, value: V, flags: int = uapi.BPF_ANY) -> None:
        """Put `value` under `key`.

        In a sockhash the value is a socket's descriptor, as an unsigned integer
        of value_size bytes.

        Args:
            flags: BPF_ANY, BPF_NOEXIST (only a new key) or BPF_EXIST (only an old one).

        Raises:
            BpfError: EEXIST, ENOENT by flags; E2BIG when the map is full; EPERM
                when it is frozen.
        """
        syscall.map_update_elem(
            self._fd,
            self._keys.pack(key),
            self._values.pack(value),
            flags,
            f"update map {self.name}",
        )

    def delete(self, key: K) -> bool:
        """Remove `key`; False when it was not there.

        Raises:
            BpfError: EINVAL for an array, whose elements cannot go.
        """
        return syscall.map_delete_elem(
            self._fd, self._keys.pack(key), f"delete from map {self.name}"
        )

    def keys(self) -> Iterator[K]:
        """Every key, once.

        Programs and others may change the map meanwhile: a key that stays is
        yielded exactly once, one that comes or goes may or may not be.  The
        caller may delete what it was given.

        Raises:
            BpfError: EAGAIN when keys vanish so fast that the end is never reached.
        """
        return map_keys(self._keys.unpack, self._walk())

    def _walk(self) -> Iterator[bytes]:
        """The keys' bytes.

        When the key we stand on has vanished the kernel answers with the first
        key of all, so we keep what we have seen and walk past it.
        """
        action = f"iterate over map {self.name}"
        following = partial(
            syscall.map_get_next_key, self._fd, key_size=self.spec.key_size, action=action
        )
        seen: set[bytes] = set()
        patience = 64 + 16 * self.spec.max_entries
        key = following(None)
        while key is not None:
            if key not in seen:
                seen.add(key)
                after = following(key)  # asked first: the caller may delete this key
                yield key
            else:
                after = following(key)
            patience -= 1
            if patience == 0:
                raise BpfError(
                    action, errno.EAGAIN, remedy="try again when the map changes less quickly"
                )
            key = after

    def items(self) -> Iterator[tuple[K, V]]:
        """Every key with its value, under the promise of keys()."""
        for key in self._walk():
            value = self._read(key)
            if value is not None:
                yield self._keys.unpack(key), value

    def values(self) -> Iterator[V]:
        """Every value, under the promise of keys()."""
        return (value for _, value in self.items())

    def lookup_batch(self) -> list[tuple[K, V]]:
        """Everything, in as few calls as the kernel can.

        About seven times faster than items() for large hashes.  A hash is copied
        bucket by bucket, so no key comes twice and none that stays is missed.
        """
        if self.spec.type in _BATCHED and probe.lookup_batch():
            try:
                return self._lookup_batches()
            except BpfError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        return list(self.items())

    def _lookup_batches(self) -> list[tuple[K, V]]:
        key_size, value_bytes = self.spec.key_size, self._values.size
        room = min(_BATCH, max(self.spec.max_entries, 1))
        token = None
        elements: list[tuple[K, V]] = []
        more = True
        while more:
            keys = (ctypes.c_char * (room * key_size))()
            values = (ctypes.c_char * (room * value_bytes))()
            # A hash keeps its place in 4 bytes, an array in a key.
            next_token = (ctypes.c_char * max(key_size, 4))()
            attr = uapi.MapLookupBatch(
                in_batch=syscall.address(token),
                out_batch=syscall.address(next_token),
                keys=syscall.address(keys),
                values=syscall.address(values),
                count=room,
                map_fd=self._fd.fileno(),
            )
            try:
                more = syscall.map_lookup_batch(attr, f"read map {self.name}")
            except BpfError as error:
                # One bucket holds more than we have room for; nothing was consumed.
                if error.errno != errno.ENOSPC:
                    raise
                room *= 2
                continue
            token = next_token
            raw_keys, raw_values = keys.raw, values.raw
            elements += [
                (
                    self._keys.unpack(raw_keys[i * key_size : (i + 1) * key_size]),
                    self._values.unpack(raw_values[i * value_bytes : (i + 1) * value_bytes]),
                )
                for i in range(attr.count)
            ]
        return elements

    def freeze(self) -> None:
        """Refuse writes from user space from now on; programs are not concerned.

        Raises:
            BpfError: EBUSY when it is mapped writable.
        """
        syscall.map_freeze(self._fd, f"freeze map {self.name}")

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpf file system, under which it outlives this process."""
        pin.pin(self._fd, path, f"map {self.name}")

    def close(self) -> None:
        """Let go of it; the kernel frees it when nothing else holds it."""
        self._fd.close()

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"<Map {self.name}: {type_name(spec.type)}, {spec.key_size} -> {spec.value_size} bytes, "
            f"at most {spec.max_entries}{', closed' if self.closed else ''}>"
        )


def map_keys(unpack: Callable[[bytes], K], keys: Iterator[bytes]) -> Iterator[K]:
    """Keys through their view, one at a time."""
    for key in keys:
        yield unpack(key)


def type_name(number: int) -> str:
    """A map type by the kernel's name, or its number."""
    try:
        return MapType(number).name
    except ValueError:
        return str(number)


def differences(info: MapInfo, spec: MapSpec) -> tuple[str, ...]:
    """Everything in which a map in the kernel is not what `spec` describes."""
    wanted = _adapted(spec)
    pairs = [
        ("type", type_name(info.type), type_name(wanted.type)),
        ("key_size", info.key_size, wanted.key_size),
        ("value_size", info.value_size, wanted.value_size),
        ("max_entries", info.max_entries, wanted.max_entries),
        (
            "flags",
            f"{info.flags & ~_FLAGS_OF_OURS:#x}",
            f"{wanted.flags & ~_FLAGS_OF_OURS:#x}",
        ),
    ]
    return tuple(f"{name} is {has}, expected {want}" for name, has, want in pairs if has != want)


def _info(fd: Fd, name: str) -> MapInfo:
    raw = syscall.obj_get_info_by_fd(fd, uapi.MapInfo, f"ask about map {name}")
    return MapInfo(
        id=raw.id,
        name=raw.name.decode("ascii", "replace"),
        type=raw.type,
        key_size=raw.key_size,
        value_size=raw.value_size,
        max_entries=raw.max_entries,
        flags=raw.map_flags,
    )


def _untyped(fd: Fd, spec: MapSpec, btf: Btf | None) -> Map[bytes, Any]:
    keys = _Raw(spec.key_size, f"key of map {spec.name}")
    values = _Raw(spec.value_size, f"value of map {spec.name}")
    return Map(fd, spec, keys, _spread(spec, values), btf)


def _spread(spec: MapSpec, item: View[Any]) -> View[Any]:
    """The view of a value, given the view of one CPU's."""
    return _PerCpu(item, possible_cpus()) if spec.type in _PER_CPU else item


def _adapted(spec: MapSpec) -> MapSpec:
    """The spec as the running kernel wants it.

    A ring buffer's size must be a power of two of whole pages, and pages differ
    between machines; it has neither keys nor values, whatever types its
    definition gives them for readers (ringbuf_map_alloc(), kernel/bpf/ringbuf.c).
    """
    if spec.type in (MapType.RINGBUF, MapType.USER_RINGBUF):
        size = max(PAGESIZE, 1 << max(spec.max_entries - 1, 0).bit_length())
        return replace(spec, max_entries=size, key_size=0, value_size=0)
    if spec.type == MapType.PERF_EVENT_ARRAY and spec.max_entries == 0:
        return replace(spec, max_entries=possible_cpus())
    if spec.contents is not None and not spec.frozen and probe.mmapable_arrays():
        return replace(spec, flags=spec.flags | uapi.BPF_F_MMAPABLE)
    return spec


def _create(spec: MapSpec, btf_fd: Fd | None) -> Fd:
    """Create the map, giving up first its types, then its name.

    Neither changes what the map does, and either may be what an older kernel
    or a map type refuses.  If that does not help, the first refusal is raised.
    """
    if spec.inner is None:
        return _create_around(spec, btf_fd, None)
    with _create(_adapted(spec.inner), btf_fd) as inner:
        return _create_around(spec, btf_fd, inner)


def _create_around(spec: MapSpec, btf_fd: Fd | None, inner: Fd | None) -> Fd:
    attr = uapi.MapCreate(
        map_type=spec.type,
        key_size=spec.key_size,
        value_size=spec.value_size,
        max_entries=spec.max_entries,
        map_flags=spec.flags,
        map_extra=spec.map_extra,
        map_name=kernel_name(spec.name),
    )
    if inner is not None:
        attr.inner_map_fd = inner.fileno()
    if spec.numa_node is not None:
        attr.numa_node = spec.numa_node
        attr.map_flags |= uapi.BPF_F_NUMA_NODE
    if btf_fd is not None and spec.type not in _WITHOUT_BTF and spec.value_type_id:
        attr.btf_fd = btf_fd.fileno()
        attr.btf_key_type_id = spec.key_type_id
        attr.btf_value_type_id = spec.value_type_id
    action = f"create map {spec.name}"
    try:
        return probe.within_memlock(lambda: syscall.map_create(attr, action))
    except BpfError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        refusal = error
    attr.btf_fd = attr.btf_key_type_id = attr.btf_value_type_id = 0
    for name in (attr.map_name, b""):
        attr.map_name = name
        try:
            return probe.within_memlock(lambda: syscall.map_create(attr, action))
        except BpfError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    raise _explained(spec, refusal)


def _explained(spec: MapSpec, refusal: BpfError) -> BpfError:
    if probe.map_type(spec.type) is probe.Answer.NO:
        return BpfError(
            refusal.action,
            refusal.errno,
            remedy=f"run a kernel with maps of type {type_name(spec.type)}: this one has none",
        )
    return refusal


def kernel_name(name: str) -> bytes:
    """A name the kernel takes: 15 of letters, digits, "_" and "." (bpf_obj_name_cpy())."""
    return _UNNAMEABLE.sub("_", name).encode("ascii")[: uapi.BPF_OBJ_NAME_LEN - 1]

"""Maps: created from specs or opened by name or id, read and written by typed views."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import Any, Generic, NoReturn, TypeVar

from accel.bpf.closing import Closing
from accel.bpf.door import pin, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.format.btf import Btf
from accel.bpf.format.codec import Codec, codec_for
from accel.bpf.kinds import MapType
from accel.bpf.maps import batch as map_batch
from accel.bpf.maps import views as map_views
from accel.bpf.maps import walk as map_walk
from accel.bpf.maps.arena import Pages, fill_arena
from accel.bpf.maps.batch import BatchError
from accel.bpf.maps.create import Types, adapted, create, differences, kernel_name
from accel.bpf.maps.info import MapInfo, iter_maps, loaded_types, map_by_id, map_info
from accel.bpf.maps.limits import (
    Operation,
    explained,
    reason_against,
    reason_without_keys,
    type_name,
)
from accel.bpf.maps.views import MAPS_OF_MAPS, Redirect, View
from accel.bpf.spec import MapSpec

__all__ = [
    "BatchError",
    "Map",
    "MapInfo",
    "Redirect",
    "View",
    "differences",
    "iter_maps",
    "kernel_name",
    "type_name",
]

K = TypeVar("K")
V = TypeVar("V")

# Kinds whose contents are written by others, or into memory.
_FILLED_LATER = (MapType.STRUCT_OPS, MapType.ARENA)


class Map(Closing, Generic[K, V]):
    """A map in the kernel, seen through a view of its keys and values.

    Created and opened maps show bytes; `typed()` shows what BTF says.  What a kind of
    map gives its keys and values a meaning for by itself, no view can change:

    - In a per-CPU map a value is a tuple, one item per possible CPU in CPU order;
      programs go on running while the kernel copies it, so it is no snapshot.
    - Where elements are kernel objects (programs, maps, perf events, cgroups, XDP
      sockets), what is written is a descriptor, or whatever has a `fileno()`, and what is
      read is the object's id; see `inner()`.
    - A sockmap or sockhash takes sockets the same way; what is read is a socket's
      cookie, if the spec's value_size is 8.
    - Keys of a storage are descriptors: of a socket, a file, a process (pidfd_open) or a
      cgroup's directory.
    - Queues, stacks and bloom filters have no keys: see push(), pop(), peek() and
      may_contain().
    - Ring buffers, perf event arrays and arenas are for RingBuffer, UserRingBuffer,
      PerfBuffer and Arena.

    A value that contains a bpf_spin_lock is read and written whole, as seen by programs
    that hold the lock, when BPF_F_LOCK is among the flags of lookup(), update() or their
    batches.  It makes each one element atomic, never several together: a batch takes
    the lock for each element anew.  Without the flag, and in maps without a lock, values
    of up to 8 bytes are copied in one piece; larger ones may be seen half written, except
    in hashes, where an update replaces the whole element.  The lock itself is always read
    as 0 and never written.

    Attributes:
        spec: What it was created or opened as.
        remarks: What the kernel refused of it when it was created, and it does without.
    """

    def __init__(
        self, fd: Fd, spec: MapSpec, keys: View[K], values: View[V], btf: Btf | None
    ) -> None:
        """Not for direct use: see create(), from_pin(), from_id() and typed()."""
        self.spec = spec
        self.remarks: tuple[str, ...] = ()
        self._fd = fd
        self._keys = keys
        self._values = values
        self._btf = btf
        self._pages: Pages | None = None  # of an arena: held, so that its address stays free
        self._look_up = f"look up in map {spec.name}"
        self._update = f"update map {spec.name}"

    # --- making and opening ----------------------------------------------------------------

    @classmethod
    def create(
        cls,
        spec: MapSpec,
        *,
        btf: Btf | None = None,
        btf_fd: Fd | None = None,
        vmlinux_value_type_id: int = 0,
        module_btf: Fd | None = None,
        flags: int = 0,
        contents_offset: int = 0,
    ) -> Map[bytes, Any]:
        """Create the map, write its initial contents, and freeze it if it is to be.

        The contents of a struct_ops map are left to be written once its programs are
        loaded: its spec's are the object's version of the struct, not the kernel's.  An
        arena without an address (map_extra) is given one, which the made map's spec has.

        Args:
            btf: The types the spec's type ids refer to, kept for typed().
            btf_fd: The same, loaded; None leaves the kernel without them.
            vmlinux_value_type_id: Of a struct_ops map: the kernel's type of its value
                (struct bpf_struct_ops_*), whose size the spec's value_size must be.
            module_btf: The BTF that id is in, if that of a module.
            flags: More BPF_F_* than the spec's.
            contents_offset: Bytes from the start of an arena to its contents.

        Raises:
            BpfError: The kernel refused.
        """
        spec = adapted(replace(spec, flags=spec.flags | flags))
        fd, remarks = create(spec, Types(btf_fd, vmlinux_value_type_id, module_btf, btf))
        pages = None
        try:
            if spec.type == MapType.ARENA and (spec.contents or not spec.map_extra):
                pages = fill_arena(fd, spec, contents_offset)
                spec = replace(spec, map_extra=ctypes.addressof(pages))
            elif spec.contents is not None and spec.type not in _FILLED_LATER:
                _write_contents(fd, spec, spec.contents)
        except BaseException:
            fd.close()
            raise
        made = _untyped(fd, spec, btf)
        made._pages = pages
        made.remarks = remarks
        return made

    @classmethod
    def from_pin(
        cls, path: str | os.PathLike[str], *, spec: MapSpec | None = None, btf: Btf | None = None
    ) -> Map[bytes, Any]:
        """Open a pinned map.

        Args:
            spec: What it must be; None takes it as it is.
            btf: The types the spec's type ids refer to, for typed(); None leaves typed()
                to ask the kernel for those the map was created with.

        Raises:
            BpfError: Nothing is pinned there, or it may not be opened.
            ShapeError: It is not what `spec` says; every difference is named.
        """
        where = os.fspath(path)
        remedy = f"remove {where}, or use the version that pinned it"
        return _opened(pin.open_pin(path, "map"), f"pinned at {where}", spec, btf, remedy)

    @classmethod
    def from_id(
        cls, number: int, *, spec: MapSpec | None = None, btf: Btf | None = None
    ) -> Map[bytes, Any]:
        """Open any map on this machine, as numbered by MapInfo.id; else as from_pin().

        Raises:
            BpfError: ENOENT when there is none; EPERM without CAP_SYS_ADMIN.
            ShapeError: It is not what `spec` says; every difference is named.
        """
        return _opened(map_by_id(number), f"with id {number}", spec, btf, None)

    def typed(
        self,
        btf: Btf | None = None,
        *,
        key_record: type | None = None,
        value_record: type | None = None,
    ) -> Map[Any, Any]:
        """The same map, its keys and values as its spec's BTF types say.

        The view shares the descriptor: closing either closes both.  Keys and
        values it is given that their types cannot hold are a ValueError.  What the kind
        of map defines by itself, indices for one, needs no BTF.

        Args:
            btf: What the spec's type ids refer to; None for the object's own, and, where
                the map was opened without any, for those the kernel has kept with it.
            key_record, value_record: What codec_for() makes structs into.

        Raises:
            ObjectError: There is no BTF, or no type for the key or the value.
            ShapeError: A type's size is not the map's.
            BpfError: The kernel's BTF of the map may not be read.
        """
        spec, types = self.spec, btf or self._btf
        if types is None:
            spec, types = self._kept_by_kernel()
        keys = self._view(
            types, "key", spec.key_type_id, spec.key_size, key_record, map_views.native_keys(spec)
        )
        values = self._view(
            types,
            "value",
            spec.value_type_id,
            spec.value_size,
            value_record,
            map_views.native_values(spec),
        )
        view = Map(self._fd, spec, keys, map_views.spread(spec, values), types)
        view._pages = self._pages
        view.remarks = self.remarks
        return view

    def _kept_by_kernel(self) -> tuple[MapSpec, Btf | None]:
        """The spec with the type ids the kernel has, and the BTF they refer to, if any."""
        info = self.info()
        if not info.btf_id:
            return replace(self.spec, key_type_id=0, value_type_id=0), None
        found = replace(self.spec, key_type_id=info.key_type_id, value_type_id=info.value_type_id)
        return found, loaded_types(info.btf_id)

    def _view(
        self,
        btf: Btf | None,
        what: str,
        type_id: int,
        size: int,
        record: type | None,
        native: View[Any] | None,
    ) -> View[Any]:
        """How keys or values look: as the kind of map says, else as BTF does."""
        if native is not None and (btf is None or not type_id or _is_fixed(native)):
            return native
        if btf is None:
            raise ObjectError(f"map {self.name} has no BTF to say what its keys and values are")
        if type_id == 0:
            raise ObjectError(f"map {self.name} is defined without a type for its {what}")
        codec = codec_for(btf, type_id, record)
        if codec.size != size:
            raise ShapeError(
                f"map {self.name}", (f"its {what} type has {codec.size} bytes, expected {size}",)
            )
        return codec

    def record_codec(self, record: type | None = None, *, btf: Btf | None = None) -> Codec[Any]:
        """The codec of a ring buffer's or perf event array's records.

        Args:
            record: What codec_for() makes structs into.
            btf: What the spec's type ids refer to; None for the object's own.

        Raises:
            ObjectError: The definition gives its records no type (`__type(value, ...)`);
                the kernel keeps none, so a map opened without its spec has none either.
        """
        types = btf or self._btf
        if types is None or not self.spec.value_type_id:
            raise ObjectError(f"map {self.name} is defined without a type for its records")
        return codec_for(types, self.spec.value_type_id, record)

    # --- what it is ------------------------------------------------------------------------

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
        return map_info(self._fd, self.name)

    # --- one element -----------------------------------------------------------------------

    def lookup(self, key: K, flags: int = 0) -> V | None:
        """The value under `key`, or None.

        Being read from here does not count as use in an LRU map: it saves no element
        from eviction (htab_lru_map_lookup_elem_sys()).

        Args:
            flags: BPF_F_LOCK for a value with a lock; see the class.

        Raises:
            BpfError: This kind of map tells no values, or not of this size; the message
                says so.
        """
        try:
            found = syscall.map_lookup_elem(
                self._fd, self._keys.pack(key), self._values.size, self._look_up, flags
            )
        except BpfError as error:
            self._refuse(error, "look up")
        return None if found is None else self._values.unpack(found)

    def update(self, key: K, value: V, flags: int = uapi.BPF_ANY) -> None:
        """Put `value` under `key`.

        Args:
            flags: BPF_ANY, BPF_NOEXIST (only a new key) or BPF_EXIST (only an old one);
                with BPF_F_LOCK, a value with a lock is written while holding it.

        Raises:
            BpfError: EEXIST, ENOENT by flags; E2BIG when the map is full; EPERM
                when it is frozen.
        """
        try:
            syscall.map_update_elem(
                self._fd, self._keys.pack(key), self._values.pack(value), flags, self._update
            )
        except BpfError as error:
            self._refuse(error, "update")

    def delete(self, key: K) -> bool:
        """Remove `key`; False when it was not there.

        Raises:
            BpfError: EINVAL for an array, whose elements cannot go.
        """
        try:
            return syscall.map_delete_elem(
                self._fd, self._keys.pack(key), f"delete from map {self.name}"
            )
        except BpfError as error:
            self._refuse(error, "delete")

    def lookup_and_delete(self, key: K, flags: int = 0) -> V | None:
        """Take the value under `key` out of the map, or None.

        One step for hashes since Linux 5.14.  Elsewhere it is a lookup and then a delete:
        what a program writes to the value in between is lost.
        """
        packed = self._keys.pack(key)
        action = f"take out of map {self.name}"
        try:
            found = syscall.map_lookup_and_delete_elem(
                self._fd, packed, self._values.size, flags, action
            )
        except BpfError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):
                raise
            if reason_against(self.spec.type, "delete") is not None:
                self._refuse(error, "delete")
            found = syscall.map_lookup_elem(self._fd, packed, self._values.size, action, flags)
            if found is not None:
                syscall.map_delete_elem(self._fd, packed, action)
        return None if found is None else self._values.unpack(found)

    def inner(self, key: K) -> Map[bytes, Any] | None:
        """The map that a map of maps holds under `key`, opened; close it.

        It is typed as the spec's template is.  None when there is none.

        Raises:
            BpfError: This is no map of maps, or CAP_SYS_ADMIN is missing.
        """
        if self.spec.type not in MAPS_OF_MAPS:
            name = type_name(self.spec.type)
            raise BpfError(f"open a map inside map {self.name}: {name} holds no maps", EINVAL)
        packed = self._keys.pack(key)
        while (found := syscall.map_lookup_elem(self._fd, packed, 4, self._look_up)) is not None:
            try:
                fd = map_by_id(map_views.Number(4, self.name).unpack(found))
            except BpfError as error:
                # Replaced or deleted just now, and the old one gone: look again.
                if error.errno != ENOENT:
                    raise
                continue
            inner = _opened(fd, f"inside {self.name}", None, None, None)
            template = self.spec.inner
            if template is None or self._btf is None:
                return inner
            typed = replace(
                inner.spec,
                key_type_id=template.key_type_id,
                value_type_id=template.value_type_id,
            )
            return _untyped(fd, typed, self._btf)
        return None

    # --- without keys ----------------------------------------------------------------------

    def push(self, value: V, flags: int = uapi.BPF_ANY) -> None:
        """Add to a queue, a stack or a bloom filter.

        Args:
            flags: BPF_EXIST drops the oldest element of a full queue or stack.

        Raises:
            BpfError: E2BIG when a queue or stack is full; the map has keys.
        """
        try:
            syscall.map_push_elem(
                self._fd, self._values.pack(value), flags, f"push to map {self.name}"
            )
        except BpfError as error:
            self._refuse(error, "push")

    def pop(self) -> V | None:
        """Take the next out: a queue's oldest, a stack's newest; None when it is empty."""
        try:
            found = syscall.map_lookup_and_delete_elem(
                self._fd, None, self._values.size, 0, f"pop from map {self.name}"
            )
        except BpfError as error:
            self._refuse(error, "pop")
        return None if found is None else self._values.unpack(found)

    def peek(self) -> V | None:
        """What pop() would take out."""
        if self.spec.type == MapType.BLOOM_FILTER:  # it would be asked about zeroes
            self._refuse(BpfError(f"peek into map {self.name}", EOPNOTSUPP), "peek")
        try:
            found = syscall.map_peek_elem(
                self._fd, bytes(self._values.size), f"peek into map {self.name}"
            )
        except BpfError as error:
            self._refuse(error, "peek")
        return None if found is None else self._values.unpack(found)

    def may_contain(self, value: V) -> bool:
        """Whether a bloom filter has seen `value`: False is certain, True is likely."""
        if self.spec.type != MapType.BLOOM_FILTER:
            self._refuse(BpfError(f"ask map {self.name} for a value", EOPNOTSUPP), "ask")
        packed = self._values.pack(value)
        return syscall.map_peek_elem(self._fd, packed, f"ask map {self.name}") is not None

    # --- all elements ----------------------------------------------------------------------

    def keys(self) -> Iterator[K]:
        """Every key, once.

        Programs and others may change the map meanwhile: a key that stays is
        yielded exactly once, one that comes or goes may or may not be.  The
        caller may delete what it was given.  Memory stays small for hashes and arrays,
        however large; for other kinds, and hashes before Linux 5.6, every key seen is kept.

        Raises:
            BpfError: EAGAIN when keys vanish so fast that the end is never reached.
        """
        unpack = self._keys.unpack
        for chunk in self._chunks(with_values=False):
            for key, _ in chunk:
                yield unpack(key)

    def items(self) -> Iterator[tuple[K, V]]:
        """Every key with its value, under the promise of keys().

        Some elements are read ahead: a value is as it was at some time since the
        iteration began.
        """
        unpack_key, unpack_value = self._keys.unpack, self._values.unpack
        for chunk in self._chunks():
            for key, value in chunk:
                yield unpack_key(key), unpack_value(value)

    def values(self) -> Iterator[V]:
        """Every value, under the promise of keys()."""
        return (value for _, value in self.items())

    def lookup_batch(self, flags: int = 0) -> list[tuple[K, V]]:
        """Everything, in as few calls as the kernel can, under the promise of keys().

        About seven times faster than one by one for large hashes.

        Args:
            flags: BPF_F_LOCK for values with a lock.
        """
        unpack_key, unpack_value = self._keys.unpack, self._values.unpack
        return [
            (unpack_key(key), unpack_value(value))
            for chunk in self._chunks(flags)
            for key, value in chunk
        ]

    def lookup_and_delete_batch(self, flags: int = 0) -> Iterator[list[tuple[K, V]]]:
        """Take everything out, some at a time; what was not asked for yet stays in.

        No element is lost when this fails or is given up: it has been yielded, or is
        still there.  What programs add meanwhile may or may not be taken.

        Args:
            flags: BPF_F_LOCK for values with a lock.

        Raises:
            BpfError: Elements of this kind of map cannot go, or EAGAIN as in keys().
        """
        unpack_key, unpack_value = self._keys.unpack, self._values.unpack
        for chunk in self._chunks(flags, delete=True):
            yield [(unpack_key(key), unpack_value(value)) for key, value in chunk]

    def update_batch(self, items: Iterable[tuple[K, V]], flags: int = uapi.BPF_ANY) -> int:
        """Put every value under its key, in as few calls as the kernel can; how many.

        Args:
            flags: As in update().

        Raises:
            BatchError: One was refused; `done` says how many before it are written.
            BpfError: The map has no keys.
            ValueError: A key or value does not fit its type: nothing of its batch of up to
                1024 is written, those before it are.
        """
        reason = reason_without_keys(self.spec.type)
        if reason is not None:
            raise BpfError(f"update map {self.name}: {reason}", EOPNOTSUPP)
        pack_key, pack_value = self._keys.pack, self._values.pack
        packed = ((pack_key(key), pack_value(value)) for key, value in items)
        return map_batch.update(self._fd, self._shape(), packed, flags)

    def delete_batch(self, keys: Iterable[K]) -> int:
        """Remove every key, in as few calls as the kernel can; how many were there.

        Raises:
            BatchError: One was refused; `done` says how many before it are gone.
        """
        reason = reason_against(self.spec.type, "delete")
        if reason is not None:
            raise BpfError(f"delete from map {self.name}: {reason}", EOPNOTSUPP)
        return map_batch.delete(self._fd, self._shape(), map(self._keys.pack, keys))

    def _shape(self) -> map_batch.Shape:
        return map_batch.Shape(
            self.spec.key_size, self._values.size, self.spec.max_entries, self.name
        )

    def _chunks(
        self, flags: int = 0, *, delete: bool = False, with_values: bool = True
    ) -> Iterator[list[map_batch.Element]]:
        return map_walk.chunks(
            self._fd, self.spec.type, self._shape(), flags, delete, with_values=with_values
        )

    # --- its life --------------------------------------------------------------------------

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
        self._pages = None
        self._fd.close()

    def _refuse(self, error: BpfError, operation: Operation) -> NoReturn:
        """Raise the kernel's refusal, in words where this kind of map cannot do it at all."""
        raise explained(error, self.spec.type, operation) from None

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"<Map {self.name}: {type_name(spec.type)}, {spec.key_size} -> {spec.value_size} bytes, "
            f"at most {spec.max_entries}{', closed' if self.closed else ''}>"
        )


def _is_fixed(native: View[Any]) -> bool:
    """Whether no type of the definition can say it better: there are no keys, or descriptors."""
    return native.size == 0 or isinstance(native, map_views.Descriptor)


def _write_contents(fd: Fd, spec: MapSpec, contents: bytes) -> None:
    if any(contents):
        action = f"write the initial contents of map {spec.name}"
        syscall.map_update_elem(fd, bytes(4), contents, uapi.BPF_ANY, action)
    if spec.frozen:
        syscall.map_freeze(fd, f"freeze map {spec.name}")


def _opened(
    fd: Fd, what: str, spec: MapSpec | None, btf: Btf | None, remedy: str | None
) -> Map[bytes, Any]:
    """The map behind `fd`, of which it takes ownership.

    Args:
        what: "pinned at ...", for messages.
    """
    try:
        info = map_info(fd, what)
        if spec is None:
            return _untyped(fd, _found(info), btf)
        different = differences(info, spec)
        if different:
            raise ShapeError(f"map {what} is not {spec.name}", different, remedy=remedy)
        return _untyped(fd, replace(adapted(spec), flags=info.flags), btf)
    except BaseException:
        fd.close()
        raise


def _found(info: MapInfo) -> MapSpec:
    """A spec that describes a map as it is; its type ids are those of the map's own BTF."""
    return MapSpec(
        name=info.name,
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.flags,
        map_extra=info.map_extra,
        key_type_id=info.key_type_id,
        value_type_id=info.value_type_id,
    )


def _untyped(fd: Fd, spec: MapSpec, btf: Btf | None) -> Map[bytes, Any]:
    return Map(fd, spec, map_views.raw_keys(spec), map_views.raw_values(spec), btf)

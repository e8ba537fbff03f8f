"""Many elements in one call, as bytes, and one by one where the kernel has no such call.

The batch commands exist since 5.6, for the kinds in READABLE and some others; a kernel
or kind without them says EINVAL or EOPNOTSUPP before anything is done.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType

READABLE = frozenset(
    {
        MapType.HASH,
        MapType.ARRAY,
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_HASH,
        MapType.LRU_PERCPU_HASH,
    }
)
"""Kinds that are read in batches with no key twice and none missed.

Hashes are copied bucket by bucket, and arrays' keys do not change.  Others, an LPM trie
for one, go from key to key inside the kernel, and start over when one has vanished.
"""

_AT_ONCE = 1024  # elements
_MOST_BYTES = 4 << 20  # of their values: per-CPU ones may be huge
_UNKNOWN = (errno.EINVAL, errno.EOPNOTSUPP)

T = TypeVar("T")
Element = tuple[bytes, bytes]


class BatchError(BpfError):
    """A batch failed after some of it was done.

    Attributes:
        done: Elements written or deleted before the one that failed, which is the
            next in the order given.
    """

    def __init__(self, action: str, errno: int, done: int, *, remedy: str | None = None) -> None:
        super().__init__(f"{action}, after {done} elements", errno, remedy=remedy)
        self.done = done


class Shape(NamedTuple):
    """What the kernel copies for one element.

    Attributes:
        value_bytes: Of all CPUs, in a per-CPU map.
        name: The map's, for messages.
    """

    key_size: int
    value_bytes: int
    max_entries: int
    name: str

    @property
    def room(self) -> int:
        """Elements to ask for at a time."""
        most = _MOST_BYTES // (self.key_size + self.value_bytes)
        return max(1, min(_AT_ONCE, self.max_entries, most))


def read(fd: Fd, shape: Shape, *, flags: int = 0, delete: bool = False) -> Iterator[list[Element]]:
    """All elements, some at a time, taken out of the map if `delete`.

    Raises:
        BpfError: Before the first, EINVAL or EOPNOTSUPP: there is no such call.
    """
    kind = uapi.MapLookupAndDeleteBatch if delete else uapi.MapLookupBatch
    key_size, value_bytes, _, name = shape
    room = shape.room
    token = None
    more = True
    while more:
        keys = (ctypes.c_char * (room * key_size))()
        values = (ctypes.c_char * (room * value_bytes))()
        # A hash keeps its place in 4 bytes, an array in a key.
        next_token = (ctypes.c_char * max(key_size, 4))()
        attr = kind(
            in_batch=syscall.address(token),
            out_batch=syscall.address(next_token),
            keys=syscall.address(keys),
            values=syscall.address(values),
            count=room,
            map_fd=fd.fileno(),
            elem_flags=flags,
        )
        try:
            more = syscall.map_lookup_batch(attr, f"read map {name}")
        except BpfError as error:
            # One bucket holds more than we have room for; nothing was consumed.
            if error.errno != errno.ENOSPC:
                raise
            room *= 2
            continue
        token = next_token
        raw_keys, raw_values = keys.raw, values.raw
        yield [
            (
                raw_keys[i * key_size : (i + 1) * key_size],
                raw_values[i * value_bytes : (i + 1) * value_bytes],
            )
            for i in range(attr.count)
        ]


def update(fd: Fd, shape: Shape, elements: Iterable[Element], flags: int) -> int:
    """Write them; how many.

    Raises:
        BatchError: One could not be written; those before it are.
    """
    action = f"update map {shape.name}"
    done = 0
    for chunk in _chunks(elements, shape.room):
        try:
            done += _update_chunk(fd, chunk, flags, action)
        except BatchError as error:
            raise BatchError(action, error.errno, done + error.done, remedy=error.remedy) from None
    return done


def _update_chunk(fd: Fd, chunk: Sequence[Element], flags: int, action: str) -> int:
    keys = b"".join(key for key, _ in chunk)
    values = b"".join(value for _, value in chunk)
    attr = _write_request(uapi.MapUpdateBatch, fd, keys, values, len(chunk), flags)
    try:
        syscall.map_write_batch(attr.request, action)
        return len(chunk)
    except BpfError as error:
        done = _done(attr.request, len(chunk))
        if error.errno not in _UNKNOWN:
            raise BatchError(action, error.errno, done, remedy=error.remedy) from None
    # A kernel without the call, or without these flags for it.
    for key, value in chunk[done:]:
        try:
            syscall.map_update_elem(fd, key, value, flags, action)
        except BpfError as error:
            raise BatchError(action, error.errno, done, remedy=error.remedy) from None
        done += 1
    return done


def delete(fd: Fd, shape: Shape, keys: Iterable[bytes]) -> int:
    """Delete them; how many were there.

    Raises:
        BatchError: One could not be deleted; those before it are.
    """
    action = f"delete from map {shape.name}"
    done = 0
    for chunk in _chunks(keys, shape.room):
        try:
            done += _delete_chunk(fd, chunk, action)
        except BatchError as error:
            raise BatchError(action, error.errno, done + error.done, remedy=error.remedy) from None
    return done


def _delete_chunk(fd: Fd, chunk: Sequence[bytes], action: str) -> int:
    deleted, start = 0, 0
    while start < len(chunk):
        rest = len(chunk) - start
        attr = _write_request(uapi.MapDeleteBatch, fd, b"".join(chunk[start:]), b"", rest, 0)
        try:
            syscall.map_write_batch(attr.request, action)
            return deleted + rest
        except BpfError as error:
            done = _done(attr.request, rest)
            deleted += done
            start += done
            if error.errno in _UNKNOWN:
                return deleted + _delete_each(fd, chunk[start:], deleted, action)
            if error.errno != errno.ENOENT:
                raise BatchError(action, error.errno, deleted, remedy=error.remedy) from None
        start += 1  # the kernel stops at a key that is not there
    return deleted


def _delete_each(fd: Fd, keys: Sequence[bytes], before: int, action: str) -> int:
    deleted = 0
    for key in keys:
        try:
            deleted += syscall.map_delete_elem(fd, key, action)
        except BpfError as error:
            raise BatchError(action, error.errno, before + deleted, remedy=error.remedy) from None
    return deleted


class _Write(NamedTuple):
    """A request and the buffers it points to."""

    request: uapi.MapUpdateBatch | uapi.MapDeleteBatch
    buffers: tuple[ctypes.Array[ctypes.c_char], ...]


def _write_request(
    kind: type[uapi.MapUpdateBatch | uapi.MapDeleteBatch],
    fd: Fd,
    keys: bytes,
    values: bytes,
    count: int,
    flags: int,
) -> _Write:
    buffers = tuple(syscall.in_memory(data) for data in (keys, values))
    request = kind(
        keys=syscall.address(buffers[0]),
        values=syscall.address(buffers[1]) if values else 0,
        count=count,
        map_fd=fd.fileno(),
        elem_flags=flags,
    )
    return _Write(request, buffers)


def _done(request: uapi.MapBatch, asked: int) -> int:
    """Elements done before a failure.

    generic_map_update_batch() and its like report it, but leave the count alone when
    they refuse before they begin; the whole count is never done and failed at once.
    """
    return int(request.count) if request.count < asked else 0


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk

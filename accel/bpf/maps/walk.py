"""Every element of a map, as bytes, though others change it meanwhile.

A key that stays comes exactly once; one that comes or goes may or may not.  The kernel's
batches keep this promise for hashes and arrays; other kinds are walked from key to key.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from errno import EAGAIN, EINVAL, EOPNOTSUPP
from functools import partial

from accel.bpf.door import probe, syscall
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType
from accel.bpf.maps import batch as map_batch
from accel.bpf.maps.batch import Element, Shape
from accel.bpf.maps.limits import explained, reason_against

_ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)


def chunks(
    fd: Fd, kind: int, shape: Shape, flags: int, delete: bool, *, with_values: bool
) -> Iterator[list[Element]]:
    """All elements, some at a time.

    Args:
        flags: BPF_F_LOCK or 0.
        delete: Take them out of the map.
        with_values: Without, values may be empty.

    Raises:
        BpfError: This kind of map cannot; or EAGAIN, when keys vanish so fast that the end
            is never reached.
    """
    if kind in _ARRAYS and not with_values:
        yield from ([(index.to_bytes(4, sys.byteorder), b"")] for index in range(shape.max_entries))
        return
    begun = False
    if kind in map_batch.READABLE and probe.lookup_batch():
        try:
            for chunk in map_batch.read(fd, shape, flags=flags, delete=delete):
                begun = True
                yield chunk
            return
        except BpfError as error:
            if begun or error.errno not in (EINVAL, EOPNOTSUPP):
                raise
    if delete:
        reason = reason_against(kind, "delete")
        if reason is not None:
            raise BpfError(f"take out of map {shape.name}: {reason}", EOPNOTSUPP)
    for key in _walk(fd, kind, shape):
        value = _read(fd, kind, shape, key, flags) if with_values else b""
        if value is None:
            continue
        if delete and not syscall.map_delete_elem(fd, key, f"take out of map {shape.name}"):
            continue
        yield [(key, value)]


def _read(fd: Fd, kind: int, shape: Shape, key: bytes, flags: int) -> bytes | None:
    action = f"look up in map {shape.name}"
    try:
        return syscall.map_lookup_elem(fd, key, shape.value_bytes, action, flags)
    except BpfError as error:
        raise explained(error, kind, "look up") from None


def _walk(fd: Fd, kind: int, shape: Shape) -> Iterator[bytes]:
    """The keys.

    When the key we stand on has vanished the kernel answers with the first
    key of all, so we keep what we have seen and walk past it.
    """
    action = f"iterate over map {shape.name}"
    following = partial(syscall.map_get_next_key, fd, key_size=shape.key_size, action=action)
    seen: set[bytes] = set()
    patience = 64 + 16 * shape.max_entries
    try:
        key = following(None)
    except BpfError as error:
        raise explained(error, kind, "iterate") from None
    while key is not None:
        if key not in seen:
            seen.add(key)
            after = following(key)  # asked first: the caller may delete this key
            yield key
        else:
            after = following(key)
        patience -= 1
        if patience == 0:
            raise BpfError(action, EAGAIN, remedy="try again when the map changes less quickly")
        key = after

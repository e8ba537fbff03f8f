"""What maps of some kinds cannot do, in words.

The kernel says EINVAL or EOPNOTSUPP to all of it.  It is asked all the same, since a
later one may well do what this one does not; only its refusal is put into words.
The facts are the map_ops of each kind, kernel/bpf and net/core/sock_map.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EFAULT, EINVAL, ENOSPC, EOPNOTSUPP
from typing import Literal

from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType

Operation = Literal["look up", "update", "delete", "iterate", "push", "pop", "peek", "ask"]

_WITHOUT_KEYS: Mapping[int, str] = {
    MapType.QUEUE: "has no keys: use push(), pop() and peek()",
    MapType.STACK: "has no keys: use push(), pop() and peek()",
    MapType.BLOOM_FILTER: "has no keys: use push() and may_contain()",
    MapType.RINGBUF: "is a stream of records: read them with RingBuffer",
    MapType.USER_RINGBUF: "is a stream of records: write them with UserRingBuffer",
    MapType.ARENA: "is memory: map it with Arena",
}

# What maps without keys can do.
_INSTEAD: Mapping[int, tuple[Operation, ...]] = {
    MapType.QUEUE: ("push", "pop", "peek"),
    MapType.STACK: ("push", "pop", "peek"),
    MapType.BLOOM_FILTER: ("push", "ask"),
}

_FIXED = "keeps all its elements: nothing can be deleted, write zeroes instead"
_STORED = "does not tell what it holds"
_UNLISTED = "cannot be walked from user space: look up the descriptors you have"
_COOKIES = "tells a socket's cookie only if its value_size is 8"
_KEYED = "has keys: use lookup(), update() and delete()"

_LIMITS: Mapping[tuple[int, Operation], str] = {
    (MapType.ARRAY, "delete"): _FIXED,
    (MapType.PERCPU_ARRAY, "delete"): _FIXED,
    (MapType.INSN_ARRAY, "delete"): _FIXED,
    (MapType.CGROUP_STORAGE, "delete"): "lives and dies with the attachment of its program",
    (MapType.PERCPU_CGROUP_STORAGE, "delete"): "lives and dies with the attachment of its program",
    (MapType.PERF_EVENT_ARRAY, "look up"): f"{_STORED}: read its records with PerfBuffer",
    (MapType.CGROUP_ARRAY, "look up"): _STORED,
    (MapType.XSKMAP, "look up"): _STORED,
    (MapType.SOCKMAP, "look up"): _COOKIES,
    (MapType.SOCKHASH, "look up"): _COOKIES,
    (MapType.REUSEPORT_SOCKARRAY, "look up"): _COOKIES,
    (MapType.STACK_TRACE, "update"): "is written by programs alone",
    (MapType.SK_STORAGE, "iterate"): _UNLISTED,
    (MapType.INODE_STORAGE, "iterate"): _UNLISTED,
    (MapType.TASK_STORAGE, "iterate"): _UNLISTED,
    (MapType.CGRP_STORAGE, "iterate"): _UNLISTED,
    (MapType.QUEUE, "ask"): "does not search: use peek() or pop()",
    (MapType.STACK, "ask"): "does not search: use peek() or pop()",
    (MapType.BLOOM_FILTER, "pop"): "forgets nothing and lists nothing: use may_contain()",
    (MapType.BLOOM_FILTER, "peek"): "forgets nothing and lists nothing: use may_contain()",
}


def type_name(number: int) -> str:
    """A map type by the kernel's name, or its number."""
    try:
        return MapType(number).name
    except ValueError:
        return str(number)


def a_type(number: int) -> str:
    """The same with its article, as in "an ARRAY"."""
    name = type_name(number)
    return f"{'an' if name[0] in 'AEIOX' else 'a'} {name}"


def reason_without_keys(number: int) -> str | None:
    """Why maps of this type have no keys, as in "a QUEUE has no keys: ..."; None if they do."""
    reason = _WITHOUT_KEYS.get(number)
    return None if reason is None else f"{a_type(number)} {reason}"


def reason_against(number: int, operation: Operation) -> str | None:
    """Why maps of this type cannot do that, or None when they can as far as is known."""
    if operation in _INSTEAD.get(number, ()):
        return None
    reason = _LIMITS.get((number, operation)) or _WITHOUT_KEYS.get(number)
    if reason is None and operation in ("push", "pop", "peek", "ask"):
        reason = _KEYED
    return None if reason is None else f"{a_type(number)} {reason}"


def explained(error: BpfError, number: int, operation: Operation) -> BpfError:
    """The same error, with the map type's limit in words where the kernel only says EINVAL."""
    # EFAULT is what a missing key gets from a map with keys.
    if error.errno not in (EINVAL, EOPNOTSUPP, ENOSPC, EFAULT):
        return error
    reason = reason_against(number, operation)
    if reason is None:
        return error
    return BpfError(f"{error.action}: {reason}", error.errno, remedy=error.remedy)

"""Fields of values that the kernel, not only the program, gives a meaning to.

Locks, timers, lists and pointers to kernel objects inside values are what they are by the
map's BTF alone (btf_parse_fields() and btf_find_kptr(), kernel/bpf/btf.c): without it they
are bytes like others.
"""

from __future__ import annotations

from accel.bpf.format import btf as b
from accel.bpf.format.codec import MANAGED

_POINTER_TAGS = frozenset({"kptr", "kptr_untrusted", "percpu_kptr", "uptr"})


def special_field(types: b.Types, type_id: int) -> str | None:
    """What a value of that type has of them, as in "bpf_timer"; None for plain data."""
    seen = {0}
    ahead = [type_id]
    while ahead:
        number = ahead.pop()
        if number in seen:
            continue
        seen.add(number)
        found = types.type(number)
        match found:
            case b.Struct() if found.name in MANAGED:
                return found.name
            case b.Struct() | b.Union():
                ahead.extend(member.type_id for member in found.members)
            case b.Datasec():
                ahead.extend(variable.type_id for variable in found.variables)
            case b.Array():
                ahead.append(found.element)
            case b.Ptr():
                if (tag := _tag(types, found.target)) is not None:
                    return tag
            case b.Typedef() | b.Const() | b.Volatile() | b.Restrict() | b.TypeTag() | b.Var():
                ahead.append(found.target)
    return None


def _tag(types: b.Types, type_id: int) -> str | None:
    """Tags come right after the pointer."""
    for _ in range(b.MAX_DEPTH):
        found = types.type(type_id)
        if not isinstance(found, b.TypeTag):
            break
        if found.name in _POINTER_TAGS:
            return found.name
        type_id = found.target
    return None

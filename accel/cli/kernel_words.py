"""The kernel's own names for kinds and flags in an object."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

# include/uapi/linux/bpf.h: BPF_F_* of BPF_MAP_CREATE, from bit 0 on.
_MAP_FLAGS = (
    *("NO_PREALLOC", "NO_COMMON_LRU", "NUMA_NODE", "RDONLY", "WRONLY", "STACK_BUILD_ID"),
    *("ZERO_SEED", "RDONLY_PROG", "WRONLY_PROG", "CLONE", "MMAPABLE", "PRESERVE_ELEMS"),
    *("INNER_MAP", "LINK", "PATH_FD", "VTYPE_BTF_OBJ_FD", "TOKEN_FD", "SEGV_ON_FAULT"),
    *("NO_USER_CONV", "RB_OVERWRITE"),
)
# The same of BPF_PROG_LOAD.
_PROGRAM_FLAGS = (
    *("STRICT_ALIGNMENT", "ANY_ALIGNMENT", "TEST_RND_HI32", "TEST_STATE_FREQ", "SLEEPABLE"),
    *("XDP_HAS_FRAGS", "XDP_DEV_BOUND_ONLY", "TEST_REG_INVARIANTS"),
)


def kind(names: type[IntEnum], number: int) -> str:
    """A kind by the kernel's name, or its number."""
    try:
        return names(number).name
    except ValueError:
        return str(number)


def map_flags(flags: int) -> list[str]:
    return list(_flags(_MAP_FLAGS, flags))


def program_flags(flags: int) -> list[str]:
    return list(_flags(_PROGRAM_FLAGS, flags))


def _flags(names: tuple[str, ...], flags: int) -> Iterator[str]:
    """Each flag's name without BPF_F_; of one without a name its value."""
    for bit in range(flags.bit_length()):
        if flags >> bit & 1:
            yield names[bit] if bit < len(names) else f"{1 << bit:#x}"

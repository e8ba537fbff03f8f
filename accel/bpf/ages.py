"""The first Linux with each kind of map and program, and with some other features.

To inform people; what the running kernel can do is found by trying.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

from accel.bpf.format.sections import BPF_F_XDP_HAS_FRAGS
from accel.bpf.kinds import AttachType as At
from accel.bpf.kinds import MapType as Mt
from accel.bpf.kinds import ProgramType as Pt

Version = tuple[int, int]

_E = TypeVar("_E", bound=IntEnum)

_MAPS_SINCE: Mapping[Version, tuple[Mt, ...]] = {
    (3, 19): (Mt.HASH, Mt.ARRAY),
    (4, 2): (Mt.PROG_ARRAY,),
    (4, 3): (Mt.PERF_EVENT_ARRAY,),
    (4, 6): (Mt.PERCPU_HASH, Mt.PERCPU_ARRAY, Mt.STACK_TRACE),
    (4, 8): (Mt.CGROUP_ARRAY,),
    (4, 10): (Mt.LRU_HASH, Mt.LRU_PERCPU_HASH),
    (4, 11): (Mt.LPM_TRIE,),
    (4, 12): (Mt.ARRAY_OF_MAPS, Mt.HASH_OF_MAPS),
    (4, 14): (Mt.DEVMAP, Mt.SOCKMAP),
    (4, 15): (Mt.CPUMAP,),
    (4, 18): (Mt.XSKMAP, Mt.SOCKHASH),
    (4, 19): (Mt.CGROUP_STORAGE, Mt.REUSEPORT_SOCKARRAY),
    (4, 20): (Mt.PERCPU_CGROUP_STORAGE, Mt.QUEUE, Mt.STACK),
    (5, 2): (Mt.SK_STORAGE,),
    (5, 4): (Mt.DEVMAP_HASH,),
    (5, 6): (Mt.STRUCT_OPS,),
    (5, 8): (Mt.RINGBUF,),
    (5, 10): (Mt.INODE_STORAGE,),
    (5, 11): (Mt.TASK_STORAGE,),
    (5, 16): (Mt.BLOOM_FILTER,),
    (6, 1): (Mt.USER_RINGBUF,),
    (6, 2): (Mt.CGRP_STORAGE,),
    (6, 9): (Mt.ARENA,),
    (6, 19): (Mt.INSN_ARRAY,),
}
_PROGRAMS_SINCE: Mapping[Version, tuple[Pt, ...]] = {
    (3, 19): (Pt.SOCKET_FILTER,),
    (4, 1): (Pt.KPROBE, Pt.SCHED_CLS, Pt.SCHED_ACT),
    (4, 7): (Pt.TRACEPOINT,),
    (4, 8): (Pt.XDP,),
    (4, 9): (Pt.PERF_EVENT,),
    (4, 10): (Pt.CGROUP_SKB, Pt.CGROUP_SOCK, Pt.LWT_IN, Pt.LWT_OUT, Pt.LWT_XMIT),
    (4, 13): (Pt.SOCK_OPS,),
    (4, 14): (Pt.SK_SKB,),
    (4, 15): (Pt.CGROUP_DEVICE,),
    (4, 17): (Pt.SK_MSG, Pt.RAW_TRACEPOINT, Pt.CGROUP_SOCK_ADDR),
    (4, 18): (Pt.LWT_SEG6LOCAL, Pt.LIRC_MODE2),
    (4, 19): (Pt.SK_REUSEPORT,),
    (4, 20): (Pt.FLOW_DISSECTOR,),
    (5, 2): (Pt.CGROUP_SYSCTL, Pt.RAW_TRACEPOINT_WRITABLE),
    (5, 3): (Pt.CGROUP_SOCKOPT,),
    (5, 5): (Pt.TRACING,),
    (5, 6): (Pt.STRUCT_OPS, Pt.EXT),
    (5, 7): (Pt.LSM,),
    (5, 9): (Pt.SK_LOOKUP,),
    (5, 14): (Pt.SYSCALL,),
    (6, 4): (Pt.NETFILTER,),
}

# Those that the kernel looks at when it loads a program (bpf_prog_load_check_attach()), where
# they are younger than the program type.
_ATTACH_TYPES_SINCE: Mapping[Version, tuple[At, ...]] = {
    (5, 2): (At.CGROUP_UDP4_RECVMSG, At.CGROUP_UDP6_RECVMSG),
    (5, 8): (
        *(At.CGROUP_INET4_GETPEERNAME, At.CGROUP_INET6_GETPEERNAME),
        *(At.CGROUP_INET4_GETSOCKNAME, At.CGROUP_INET6_GETSOCKNAME),
    ),
    (5, 9): (At.CGROUP_INET_SOCK_RELEASE,),
    (5, 14): (At.SK_REUSEPORT_SELECT, At.SK_REUSEPORT_SELECT_OR_MIGRATE),
    (6, 7): (
        *(At.CGROUP_UNIX_CONNECT, At.CGROUP_UNIX_SENDMSG, At.CGROUP_UNIX_RECVMSG),
        *(At.CGROUP_UNIX_GETPEERNAME, At.CGROUP_UNIX_GETSOCKNAME),
    ),
}
# The first helper that each release added, from the one after 5.10 on.
_HELPERS_SINCE: Mapping[int, Version] = {
    156: (5, 11), 163: (5, 12), 164: (5, 13), 166: (5, 14), 169: (5, 15), 176: (5, 16),
    180: (5, 17), 186: (5, 18), 194: (5, 19), 204: (6, 0), 208: (6, 1), 210: (6, 2),
}  # fmt: skip
_HELPERS_END = 212


def _turned(table: Mapping[Version, tuple[_E, ...]]) -> dict[int, Version]:
    return {kind: since for since, kinds in table.items() for kind in kinds}


MAP_TYPE_SINCE: Mapping[int, Version] = _turned(_MAPS_SINCE)
PROGRAM_TYPE_SINCE: Mapping[int, Version] = _turned(_PROGRAMS_SINCE)
ATTACH_TYPE_SINCE: Mapping[int, Version] = _turned(_ATTACH_TYPES_SINCE)
PROGRAM_FLAGS_SINCE: Mapping[int, Version] = {BPF_F_XDP_HAS_FRAGS: (5, 18)}

# Not a kind of map or program, but as old as one: bpf-to-bpf calls (cc8b0b92a169), global
# data (d8eca5bbb2be) and kernel functions as helpers (e6ac2450d6de).
CALLS_SINCE = (4, 16)
GLOBAL_DATA_SINCE = (5, 2)
KFUNC_SINCE = (5, 13)
STRUCT_OPS_LINK_SINCE = (6, 4)  # 68b04864ca42

# And of instructions: pointers to functions (69c087ba6225), atomic ones other than to add
# (5ca419f2864a) and what compilers call cpu v4 (1f9a1ea821ff).
FUNCTION_POINTERS_SINCE = (5, 13)
ATOMICS_SINCE = (5, 12)
CPU_V4_SINCE = (6, 6)


def helper_since(number: int) -> Version | None:
    """The first Linux with a helper function; None for those of 5.10 and of the future."""
    if number >= _HELPERS_END:
        return None
    return max((since for first, since in _HELPERS_SINCE.items() if first <= number), default=None)


def in_words(since: Version | None) -> str:
    """As in " (Linux 6.4 or later)", to go into a message; "" where nothing is known."""
    return "" if since is None else f" (Linux {since[0]}.{since[1]} or later)"

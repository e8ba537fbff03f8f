"""The part of include/uapi/linux/bpf.h that this package speaks.

Each command of bpf(2) that takes arguments has a struct here that knows its
command, so the two cannot be mismatched; the C header keeps them all in one
`union bpf_attr`.  A struct may stop before the header's does: the kernel reads
what is missing as zero.  tests/kernel/test_uapi.py compares every offset with
the running kernel's own BTF.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from enum import IntEnum
from typing import ClassVar

BPF_OBJ_NAME_LEN = 16  # with the final NUL
BPF_TAG_SIZE = 8

# Flags of BPF_MAP_UPDATE_ELEM.
BPF_ANY = 0
BPF_NOEXIST = 1
BPF_EXIST = 2
BPF_F_LOCK = 4  # of BPF_MAP_LOOKUP_ELEM too

# Flags of BPF_MAP_CREATE.
BPF_F_NO_PREALLOC = 1 << 0
BPF_F_NO_COMMON_LRU = 1 << 1
BPF_F_NUMA_NODE = 1 << 2
BPF_F_RDONLY = 1 << 3
BPF_F_WRONLY = 1 << 4
BPF_F_STACK_BUILD_ID = 1 << 5
BPF_F_RDONLY_PROG = 1 << 7
BPF_F_MMAPABLE = 1 << 10
BPF_F_VTYPE_BTF_OBJ_FD = 1 << 15
BPF_F_TOKEN_FD = 1 << 16
BPF_F_RB_OVERWRITE = 1 << 19

# Or-ed into the command: a struct bpf_common_attr follows its attr (Linux 7.2).
BPF_COMMON_ATTRS = 1 << 16

# Flags of a program attached to a cgroup; BPF_PROG_QUERY reports them.
BPF_F_ALLOW_OVERRIDE = 1 << 0
BPF_F_ALLOW_MULTI = 1 << 1

# Flags of attaching and of BPF_LINK_UPDATE: the program to replace, or to stand beside.
BPF_F_REPLACE = 1 << 2
BPF_F_BEFORE = 1 << 3
BPF_F_AFTER = 1 << 4
BPF_F_LINK = 1 << 13  # of a struct_ops map too: it takes effect by link

# Flag of BPF_PROG_QUERY: with what ancestors pass on.
BPF_F_QUERY_EFFECTIVE = 1 << 0

# Flags inside some kinds of BPF_LINK_CREATE.
BPF_F_KPROBE_MULTI_RETURN = 1 << 0
BPF_F_UPROBE_MULTI_RETURN = 1 << 0
BPF_F_NETFILTER_IP_DEFRAG = 1 << 0

# src_reg of the two-slot load instruction that names a map.
BPF_PSEUDO_MAP_FD = 1
BPF_PSEUDO_MAP_VALUE = 2

# The length word of a ring buffer record.
BPF_RINGBUF_BUSY_BIT = 1 << 31
BPF_RINGBUF_DISCARD_BIT = 1 << 30
BPF_RINGBUF_HDR_SZ = 8


class Cmd(IntEnum):
    """enum bpf_cmd: BPF_*."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    BTF_GET_NEXT_ID = 23
    MAP_LOOKUP_BATCH = 24
    MAP_LOOKUP_AND_DELETE_BATCH = 25
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    ENABLE_STATS = 32
    ITER_CREATE = 33
    LINK_DETACH = 34
    PROG_BIND_MAP = 35


class LinkType(IntEnum):
    """enum bpf_link_type: BPF_LINK_TYPE_*."""

    UNSPEC = 0
    RAW_TRACEPOINT = 1
    TRACING = 2
    CGROUP = 3
    ITER = 4
    NETNS = 5
    XDP = 6
    PERF_EVENT = 7
    KPROBE_MULTI = 8
    STRUCT_OPS = 9
    NETFILTER = 10
    TCX = 11
    UPROBE_MULTI = 12
    NETKIT = 13
    SOCKMAP = 14


class PerfEventType(IntEnum):
    """enum bpf_perf_event_type: BPF_PERF_EVENT_*."""

    UNSPEC = 0
    UPROBE = 1
    URETPROBE = 2
    KPROBE = 3
    KRETPROBE = 4
    TRACEPOINT = 5
    EVENT = 6


class Attr(ctypes.Structure):
    """The arguments of one command.

    Attributes:
        CMD: The command they belong to.
        MEMBER: Name of the struct inside `union bpf_attr`; "" where it has none.
    """

    CMD: ClassVar[Cmd]
    MEMBER: ClassVar[str] = ""


class MapCreate(Attr):
    CMD = Cmd.MAP_CREATE
    _fields_ = (
        ("map_type", u32),
        ("key_size", u32),
        ("value_size", u32),
        ("max_entries", u32),
        ("map_flags", u32),
        ("inner_map_fd", u32),
        ("numa_node", u32),
        ("map_name", ctypes.c_char * BPF_OBJ_NAME_LEN),
        ("map_ifindex", u32),
        ("btf_fd", u32),
        ("btf_key_type_id", u32),
        ("btf_value_type_id", u32),
        ("btf_vmlinux_value_type_id", u32),
        ("map_extra", u64),
        ("value_type_btf_obj_fd", ctypes.c_int32),
    )


class _MapElem(Attr):
    """The commands on one element share a layout."""

    _fields_ = (
        ("map_fd", u32),
        ("key", u64),
        ("value", u64),
        ("flags", u64),
    )


class MapLookupElem(_MapElem):
    CMD = Cmd.MAP_LOOKUP_ELEM


class MapUpdateElem(_MapElem):
    CMD = Cmd.MAP_UPDATE_ELEM


class MapDeleteElem(_MapElem):
    CMD = Cmd.MAP_DELETE_ELEM


class MapLookupAndDeleteElem(_MapElem):
    CMD = Cmd.MAP_LOOKUP_AND_DELETE_ELEM


class MapFreeze(Attr):
    CMD = Cmd.MAP_FREEZE
    _fields_ = (("map_fd", u32),)


class MapGetNextKey(Attr):
    CMD = Cmd.MAP_GET_NEXT_KEY
    _fields_ = (
        ("map_fd", u32),
        ("key", u64),
        ("next_key", u64),
    )


class MapBatch(Attr):
    """The commands on many elements share a layout."""

    MEMBER = "batch"
    _fields_ = (
        ("in_batch", u64),
        ("out_batch", u64),
        ("keys", u64),
        ("values", u64),
        ("count", u32),
        ("map_fd", u32),
        ("elem_flags", u64),
        ("flags", u64),
    )


class MapLookupBatch(MapBatch):
    CMD = Cmd.MAP_LOOKUP_BATCH


class MapLookupAndDeleteBatch(MapBatch):
    CMD = Cmd.MAP_LOOKUP_AND_DELETE_BATCH


class MapUpdateBatch(MapBatch):
    CMD = Cmd.MAP_UPDATE_BATCH


class MapDeleteBatch(MapBatch):
    CMD = Cmd.MAP_DELETE_BATCH


class ProgLoad(Attr):
    CMD = Cmd.PROG_LOAD
    _fields_ = (
        ("prog_type", u32),
        ("insn_cnt", u32),
        ("insns", u64),
        ("license", u64),
        ("log_level", u32),
        ("log_size", u32),
        ("log_buf", u64),
        ("kern_version", u32),
        ("prog_flags", u32),
        ("prog_name", ctypes.c_char * BPF_OBJ_NAME_LEN),
        ("prog_ifindex", u32),
        ("expected_attach_type", u32),
        ("prog_btf_fd", u32),
        ("func_info_rec_size", u32),
        ("func_info", u64),
        ("func_info_cnt", u32),
        ("line_info_rec_size", u32),
        ("line_info", u64),
        ("line_info_cnt", u32),
        ("attach_btf_id", u32),
        ("attach_prog_fd", u32),
        ("core_relo_cnt", u32),
        ("fd_array", u64),
        ("core_relos", u64),
        ("core_relo_rec_size", u32),
        ("log_true_size", u32),
    )


class _Obj(Attr):
    """Pinning and opening a pin share a layout."""

    _fields_ = (
        ("pathname", u64),
        ("bpf_fd", u32),
        ("file_flags", u32),
    )


class ObjPin(_Obj):
    CMD = Cmd.OBJ_PIN


class ObjGet(_Obj):
    CMD = Cmd.OBJ_GET


class _ProgAttachment(Attr):
    _fields_ = (
        ("target_fd", u32),
        ("attach_bpf_fd", u32),
        ("attach_type", u32),
        ("attach_flags", u32),
        ("replace_bpf_fd", u32),
        ("relative_fd", u32),
        ("expected_revision", u64),
    )


class ProgAttach(_ProgAttachment):
    CMD = Cmd.PROG_ATTACH


class ProgDetach(_ProgAttachment):
    CMD = Cmd.PROG_DETACH


class ProgTestRun(Attr):
    CMD = Cmd.PROG_TEST_RUN
    MEMBER = "test"
    _fields_ = (
        ("prog_fd", u32),
        ("retval", u32),
        ("data_size_in", u32),
        ("data_size_out", u32),
        ("data_in", u64),
        ("data_out", u64),
        ("repeat", u32),
        ("duration", u32),
        ("ctx_size_in", u32),
        ("ctx_size_out", u32),
        ("ctx_in", u64),
        ("ctx_out", u64),
        ("flags", u32),
        ("cpu", u32),
        ("batch_size", u32),
    )


class _GetNextId(Attr):
    _fields_ = (
        ("start_id", u32),
        ("next_id", u32),
        ("open_flags", u32),
    )


class ProgGetNextId(_GetNextId):
    CMD = Cmd.PROG_GET_NEXT_ID


class MapGetNextId(_GetNextId):
    CMD = Cmd.MAP_GET_NEXT_ID


class LinkGetNextId(_GetNextId):
    CMD = Cmd.LINK_GET_NEXT_ID


class BtfGetNextId(_GetNextId):
    CMD = Cmd.BTF_GET_NEXT_ID


class ProgGetFdById(_GetNextId):
    CMD = Cmd.PROG_GET_FD_BY_ID


class MapGetFdById(_GetNextId):
    CMD = Cmd.MAP_GET_FD_BY_ID


class LinkGetFdById(_GetNextId):
    CMD = Cmd.LINK_GET_FD_BY_ID


class BtfGetFdById(_GetNextId):
    CMD = Cmd.BTF_GET_FD_BY_ID


class ObjGetInfoByFd(Attr):
    CMD = Cmd.OBJ_GET_INFO_BY_FD
    MEMBER = "info"
    _fields_ = (
        ("bpf_fd", u32),
        ("info_len", u32),
        ("info", u64),
    )


class ProgQuery(Attr):
    CMD = Cmd.PROG_QUERY
    MEMBER = "query"
    _fields_ = (
        ("target_fd", u32),
        ("attach_type", u32),
        ("query_flags", u32),
        ("attach_flags", u32),
        ("prog_ids", u64),
        ("prog_cnt", u32),
        ("prog_attach_flags", u64),
        ("link_ids", u64),
        ("link_attach_flags", u64),
        ("revision", u64),
    )


class RawTracepointOpen(Attr):
    CMD = Cmd.RAW_TRACEPOINT_OPEN
    MEMBER = "raw_tracepoint"
    _fields_ = (
        ("name", u64),
        ("prog_fd", u32),
        ("cookie", u64),
    )


class BtfLoad(Attr):
    CMD = Cmd.BTF_LOAD
    _fields_ = (
        ("btf", u64),
        ("btf_log_buf", u64),
        ("btf_size", u32),
        ("btf_log_size", u32),
        ("btf_log_level", u32),
    )


class _CreateIter(ctypes.Structure):
    _fields_ = (("iter_info", u64), ("iter_info_len", u32))


class _CreatePerfEvent(ctypes.Structure):
    _fields_ = (("bpf_cookie", u64),)


class _CreateKprobeMulti(ctypes.Structure):
    _fields_ = (("flags", u32), ("cnt", u32), ("syms", u64), ("addrs", u64), ("cookies", u64))


class _CreateTracing(ctypes.Structure):
    _fields_ = (("target_btf_id", u32), ("cookie", u64))


class _CreateNetfilter(ctypes.Structure):
    _fields_ = (("pf", u32), ("hooknum", u32), ("priority", ctypes.c_int32), ("flags", u32))


class _CreateOrdered(ctypes.Structure):
    _fields_ = (("relative_fd", u32), ("expected_revision", u64))


class _CreateUprobeMulti(ctypes.Structure):
    _fields_ = (
        ("path", u64),
        ("offsets", u64),
        ("ref_ctr_offsets", u64),
        ("cookies", u64),
        ("cnt", u32),
        ("flags", u32),
        ("pid", u32),
    )


class _CreateDetail(ctypes.Union):
    """What BPF_LINK_CREATE wants to know for each kind of link."""

    _anonymous_ = ("iter",)
    _fields_ = (
        ("target_btf_id", u32),
        ("iter", _CreateIter),
        ("perf_event", _CreatePerfEvent),
        ("kprobe_multi", _CreateKprobeMulti),
        ("tracing", _CreateTracing),
        ("netfilter", _CreateNetfilter),
        ("tcx", _CreateOrdered),
        ("uprobe_multi", _CreateUprobeMulti),
        ("netkit", _CreateOrdered),
        ("cgroup", _CreateOrdered),
    )


class LinkCreate(Attr):
    CMD = Cmd.LINK_CREATE
    MEMBER = "link_create"
    _anonymous_ = ("detail",)
    _fields_ = (
        ("prog_fd", u32),
        ("target_fd", u32),
        ("attach_type", u32),
        ("flags", u32),
        ("detail", _CreateDetail),
    )


class LinkUpdate(Attr):
    CMD = Cmd.LINK_UPDATE
    MEMBER = "link_update"
    _fields_ = (
        ("link_fd", u32),
        ("new_prog_fd", u32),
        ("flags", u32),
        ("old_prog_fd", u32),
    )


class LinkDetach(Attr):
    CMD = Cmd.LINK_DETACH
    MEMBER = "link_detach"
    _fields_ = (("link_fd", u32),)


class IterCreate(Attr):
    CMD = Cmd.ITER_CREATE
    MEMBER = "iter_create"
    _fields_ = (
        ("link_fd", u32),
        ("flags", u32),
    )


class EnableStats(Attr):
    CMD = Cmd.ENABLE_STATS
    MEMBER = "enable_stats"
    _fields_ = (("type", u32),)


class ProgBindMap(Attr):
    CMD = Cmd.PROG_BIND_MAP
    MEMBER = "prog_bind_map"
    _fields_ = (
        ("prog_fd", u32),
        ("map_fd", u32),
        ("flags", u32),
    )


class CommonAttr(ctypes.Structure):
    """struct bpf_common_attr: where a command that takes BPF_COMMON_ATTRS writes its log."""

    _fields_ = (
        ("log_buf", u64),
        ("log_size", u32),
        ("log_level", u32),
        ("log_true_size", u32),
    )


class Info(ctypes.Structure):
    """What BPF_OBJ_GET_INFO_BY_FD fills in.

    Attributes:
        STRUCT: The kernel's name of the struct.
    """

    STRUCT: ClassVar[str]


class MapInfo(Info):
    STRUCT = "bpf_map_info"
    _fields_ = (
        ("type", u32),
        ("id", u32),
        ("key_size", u32),
        ("value_size", u32),
        ("max_entries", u32),
        ("map_flags", u32),
        ("name", ctypes.c_char * BPF_OBJ_NAME_LEN),
        ("ifindex", u32),
        ("btf_vmlinux_value_type_id", u32),
        ("netns_dev", u64),
        ("netns_ino", u64),
        ("btf_id", u32),
        ("btf_key_type_id", u32),
        ("btf_value_type_id", u32),
        ("btf_vmlinux_id", u32),
        ("map_extra", u64),
    )


class ProgInfo(Info):
    STRUCT = "bpf_prog_info"
    _fields_ = (
        ("type", u32),
        ("id", u32),
        ("tag", ctypes.c_uint8 * BPF_TAG_SIZE),
        ("jited_prog_len", u32),
        ("xlated_prog_len", u32),
        ("jited_prog_insns", u64),
        ("xlated_prog_insns", u64),
        ("load_time", u64),
        ("created_by_uid", u32),
        ("nr_map_ids", u32),
        ("map_ids", u64),
        ("name", ctypes.c_char * BPF_OBJ_NAME_LEN),
        ("ifindex", u32),
        ("gpl_compatible", u32),  # a bit-field of one bit
        ("netns_dev", u64),
        ("netns_ino", u64),
        ("nr_jited_ksyms", u32),
        ("nr_jited_func_lens", u32),
        ("jited_ksyms", u64),
        ("jited_func_lens", u64),
        ("btf_id", u32),
        ("func_info_rec_size", u32),
        ("func_info", u64),
        ("nr_func_info", u32),
        ("nr_line_info", u32),
        ("line_info", u64),
        ("jited_line_info", u64),
        ("nr_jited_line_info", u32),
        ("line_info_rec_size", u32),
        ("jited_line_info_rec_size", u32),
        ("nr_prog_tags", u32),
        ("prog_tags", u64),
        ("run_time_ns", u64),
        ("run_cnt", u64),
        ("recursion_misses", u64),
        ("verified_insns", u32),
        ("attach_btf_obj_id", u32),
        ("attach_btf_id", u32),
    )


class BtfInfo(Info):
    STRUCT = "bpf_btf_info"
    _fields_ = (
        ("btf", u64),
        ("btf_size", u32),
        ("id", u32),
        ("name", u64),
        ("name_len", u32),
        ("kernel_btf", u32),
    )


class _InfoRawTracepoint(ctypes.Structure):
    _fields_ = (("tp_name", u64), ("tp_name_len", u32), ("cookie", u64))


class _InfoTracing(ctypes.Structure):
    _fields_ = (
        ("attach_type", u32),
        ("target_obj_id", u32),
        ("target_btf_id", u32),
        ("cookie", u64),
    )


class _InfoCgroup(ctypes.Structure):
    _fields_ = (("cgroup_id", u64), ("attach_type", u32))


class _IterMap(ctypes.Structure):
    _fields_ = (("map_id", u32),)


class _IterCgroup(ctypes.Structure):
    _fields_ = (("cgroup_id", u64), ("order", u32))


class _IterTask(ctypes.Structure):
    _fields_ = (("tid", u32), ("pid", u32))


class _IterTarget(ctypes.Union):
    _fields_ = (("cgroup", _IterCgroup), ("task", _IterTask))


class _InfoIter(ctypes.Structure):
    _anonymous_ = ("target",)
    _fields_ = (
        ("target_name", u64),
        ("target_name_len", u32),
        ("map", _IterMap),
        ("target", _IterTarget),
    )


class _InfoNetns(ctypes.Structure):
    _fields_ = (("netns_ino", u32), ("attach_type", u32))


class _InfoXdp(ctypes.Structure):
    _fields_ = (("ifindex", u32),)


class _InfoDevice(ctypes.Structure):
    _fields_ = (("ifindex", u32), ("attach_type", u32))


class _InfoStructOps(ctypes.Structure):
    _fields_ = (("map_id", u32),)


class _InfoKprobeMulti(ctypes.Structure):
    _fields_ = (
        ("addrs", u64),
        ("count", u32),
        ("flags", u32),
        ("missed", u64),
        ("cookies", u64),
    )


class _InfoUprobeMulti(ctypes.Structure):
    _fields_ = (
        ("path", u64),
        ("offsets", u64),
        ("ref_ctr_offsets", u64),
        ("cookies", u64),
        ("path_size", u32),
        ("count", u32),
        ("flags", u32),
        ("pid", u32),
    )


class _PerfUprobe(ctypes.Structure):
    _fields_ = (("file_name", u64), ("name_len", u32), ("offset", u32), ("cookie", u64))


class _PerfKprobe(ctypes.Structure):
    _fields_ = (
        ("func_name", u64),
        ("name_len", u32),
        ("offset", u32),
        ("addr", u64),
        ("missed", u64),
        ("cookie", u64),
    )


class _PerfTracepoint(ctypes.Structure):
    _fields_ = (("tp_name", u64), ("name_len", u32), ("cookie", u64))


class _PerfEvent(ctypes.Structure):
    _fields_ = (("config", u64), ("type", u32), ("cookie", u64))


class _PerfTarget(ctypes.Union):
    _fields_ = (
        ("uprobe", _PerfUprobe),
        ("kprobe", _PerfKprobe),
        ("tracepoint", _PerfTracepoint),
        ("event", _PerfEvent),
    )


class _InfoPerfEvent(ctypes.Structure):
    _anonymous_ = ("target",)
    _fields_ = (("type", u32), ("target", _PerfTarget))


class _InfoSockmap(ctypes.Structure):
    _fields_ = (("map_id", u32), ("attach_type", u32))


class _LinkDetail(ctypes.Union):
    """What the kernel says of each kind of link."""

    _fields_ = (
        ("raw_tracepoint", _InfoRawTracepoint),
        ("tracing", _InfoTracing),
        ("cgroup", _InfoCgroup),
        ("iter", _InfoIter),
        ("netns", _InfoNetns),
        ("xdp", _InfoXdp),
        ("struct_ops", _InfoStructOps),
        ("netfilter", _CreateNetfilter),
        ("kprobe_multi", _InfoKprobeMulti),
        ("uprobe_multi", _InfoUprobeMulti),
        ("perf_event", _InfoPerfEvent),
        ("tcx", _InfoDevice),
        ("netkit", _InfoDevice),
        ("sockmap", _InfoSockmap),
    )


class LinkInfo(Info):
    STRUCT = "bpf_link_info"
    _anonymous_ = ("detail",)
    _fields_ = (
        ("type", u32),
        ("id", u32),
        ("prog_id", u32),
        ("detail", _LinkDetail),
    )


class _IterOverMap(ctypes.Structure):
    _fields_ = (("map_fd", u32),)


class _IterOverCgroup(ctypes.Structure):
    _fields_ = (("order", u32), ("cgroup_fd", u32), ("cgroup_id", u64))


class _IterOverTask(ctypes.Structure):
    _fields_ = (("tid", u32), ("pid", u32), ("pid_fd", u32))


class IterLinkInfo(ctypes.Union):
    """union bpf_iter_link_info: what to iterate over."""

    _fields_ = (("map", _IterOverMap), ("cgroup", _IterOverCgroup), ("task", _IterOverTask))


class PerfEventAttr(ctypes.Structure):
    """struct perf_event_attr, include/uapi/linux/perf_event.h, its first 72 bytes.

    PERF_ATTR_SIZE_VER1: every kernel takes it.  config1 and config2 are where a probe is.
    """

    _fields_ = (
        ("type", u32),
        ("size", u32),
        ("config", u64),
        ("sample_period", u64),
        ("sample_type", u64),
        ("read_format", u64),
        ("flags", u64),
        ("wakeup_events", u32),
        ("bp_type", u32),
        ("config1", u64),
        ("config2", u64),
    )


class FuncInfoRecord(ctypes.Structure):
    """struct bpf_func_info."""

    _fields_ = (
        ("insn_off", u32),
        ("type_id", u32),
    )


class LineInfoRecord(ctypes.Structure):
    """struct bpf_line_info; line_col is the line in the upper 22 bits, then the column."""

    _fields_ = (
        ("insn_off", u32),
        ("file_name_off", u32),
        ("line_off", u32),
        ("line_col", u32),
    )

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

# Flags of BPF_MAP_CREATE.
BPF_F_NO_PREALLOC = 1 << 0
BPF_F_NUMA_NODE = 1 << 2
BPF_F_RDONLY_PROG = 1 << 7
BPF_F_MMAPABLE = 1 << 10
BPF_F_INNER_MAP = 1 << 12

# Flags of a program attached to a cgroup; BPF_PROG_QUERY reports them.
BPF_F_ALLOW_OVERRIDE = 1 << 0
BPF_F_ALLOW_MULTI = 1 << 1

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
    BTF_LOAD = 18
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    ITER_CREATE = 33
    LINK_DETACH = 34


class LinkType(IntEnum):
    """enum bpf_link_type: BPF_LINK_TYPE_*; those this package makes."""

    CGROUP = 3
    ITER = 4


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


class MapLookupBatch(Attr):
    CMD = Cmd.MAP_LOOKUP_BATCH
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


class ProgGetFdById(_GetNextId):
    CMD = Cmd.PROG_GET_FD_BY_ID


class MapGetFdById(_GetNextId):
    CMD = Cmd.MAP_GET_FD_BY_ID


class LinkGetFdById(_GetNextId):
    CMD = Cmd.LINK_GET_FD_BY_ID


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


class LinkCreate(Attr):
    CMD = Cmd.LINK_CREATE
    MEMBER = "link_create"
    _fields_ = (
        ("prog_fd", u32),
        ("target_fd", u32),
        ("attach_type", u32),
        ("flags", u32),
        ("iter_info", u64),
        ("iter_info_len", u32),
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
    )


class CgroupLinkInfo(Info):
    """struct bpf_link_info of a cgroup link; the `cgroup` member of its union follows."""

    STRUCT = "bpf_link_info"
    _fields_ = (
        ("type", u32),
        ("id", u32),
        ("prog_id", u32),
        ("cgroup_id", u64),
        ("attach_type", u32),
    )


class IterLinkInfoMap(ctypes.Structure):
    """union bpf_iter_link_info, its `map` member."""

    _fields_ = (("map_fd", u32),)


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

"""What the running kernel can do, found by doing it.

Never by its version: distributions move features in both directions.  A probe
has three answers.  YES and NO are remembered; UNKNOWN, as when we lack the
privilege to try, is asked again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import sys
from collections.abc import Callable
from enum import Enum
from functools import wraps
from mmap import PAGESIZE
from struct import pack
from typing import ParamSpec, TypeVar

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.format.btf import BtfFeature
from accel.bpf.format.insn import CALL, EXIT, Instruction, encode
from accel.bpf.kinds import AttachType, MapType, ProgramType

P = ParamSpec("P")
T = TypeVar("T")

KERNEL_BTF = "/sys/kernel/btf/vmlinux"


class Answer(Enum):
    """What a probe found out."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"

    def __bool__(self) -> bool:
        """True for YES alone: what is not known to work is not used."""
        return self is Answer.YES


def remembered(probe: Callable[P, Answer]) -> Callable[P, Answer]:
    """Ask the kernel once per question, but again after UNKNOWN."""
    answers: dict[object, Answer] = {}

    @wraps(probe)
    def ask(*args: P.args, **kwargs: P.kwargs) -> Answer:
        question = (args, tuple(sorted(kwargs.items())))
        if question in answers:
            return answers[question]
        answer = probe(*args, **kwargs)
        if answer is not Answer.UNKNOWN:
            answers[question] = answer
        return answer

    return ask


# --- memory accounting ---------------------------------------------------------------------


@remembered
def memlock_charged() -> Answer:
    """Whether maps and programs count against RLIMIT_MEMLOCK.

    They did until "bpf: Eliminate rlimit-based memory accounting" (5.11).  Found
    by creating a tiny map while this process's soft limit is 0, which lasts
    some microseconds and is the only way to see it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        _tiny_map(MapType.ARRAY).close()
    except BpfError as error:
        if error.errno == errno.EPERM and syscall.explain_eperm() is None:
            return Answer.YES
        return Answer.UNKNOWN
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    return Answer.NO


_DEVICE_MAPS = (MapType.DEVMAP, MapType.DEVMAP_HASH)


def within_memlock(create: Callable[[], T], *, map_type: int | None = None) -> T:
    """Run `create`, which makes a map or program; raise RLIMIT_MEMLOCK if it needs that.

    The limit is touched only after a refusal that may be about it, on a kernel that
    charges memory to it, and then stays raised: what we created goes on counting.

    Args:
        map_type: Of the map that is made.

    Raises:
        BpfError: `create` failed; with the limit as remedy when that was it.
    """
    try:
        return create()
    except BpfError as error:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        # dev_map_init_map(), kernel/bpf/devmap.c, says EINVAL from Linux 5.4 to 5.10.
        is_odd = error.errno == errno.EINVAL and map_type in _DEVICE_MAPS
        if (
            not (is_odd or error.errno == errno.EPERM)
            or limit == resource.RLIM_INFINITY
            or memlock_charged() is not Answer.YES
        ):
            raise
        if not _raise_memlock():
            raise BpfError(
                error.action,
                error.errno,
                remedy=f"raise RLIMIT_MEMLOCK, now {limit} bytes: this kernel charges BPF "
                "memory to it",
            ) from None
    return create()


def _raise_memlock() -> bool:
    """Lift RLIMIT_MEMLOCK as far as we may; False when it was there already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infinite = resource.RLIM_INFINITY
    if soft == infinite:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (infinite, infinite))
    except (ValueError, OSError):  # no CAP_SYS_RESOURCE
        if soft == hard:
            return False
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return True


# --- maps ----------------------------------------------------------------------------------

# (key_size, value_size, max_entries, flags) where it is not (4, 4, 1, 0).
_MAP_SHAPES: dict[int, tuple[int, int, int, int]] = {
    MapType.STACK_TRACE: (4, 8, 1, 0),
    MapType.LPM_TRIE: (8, 8, 1, uapi.BPF_F_NO_PREALLOC),
    MapType.SOCKHASH: (4, 8, 1, 0),
    MapType.CGROUP_STORAGE: (16, 8, 0, 0),
    MapType.PERCPU_CGROUP_STORAGE: (16, 8, 0, 0),
    MapType.QUEUE: (0, 4, 1, 0),
    MapType.STACK: (0, 4, 1, 0),
    MapType.BLOOM_FILTER: (0, 4, 1, 0),
    MapType.RINGBUF: (0, 0, PAGESIZE, 0),
    MapType.USER_RINGBUF: (0, 0, PAGESIZE, 0),
    MapType.SK_STORAGE: (4, 4, 0, uapi.BPF_F_NO_PREALLOC),
    MapType.INODE_STORAGE: (4, 4, 0, uapi.BPF_F_NO_PREALLOC),
    MapType.TASK_STORAGE: (4, 4, 0, uapi.BPF_F_NO_PREALLOC),
    MapType.CGRP_STORAGE: (4, 4, 0, uapi.BPF_F_NO_PREALLOC),
    MapType.ARENA: (0, 0, 1, uapi.BPF_F_MMAPABLE),
}
_STORAGES = (
    MapType.SK_STORAGE,
    MapType.INODE_STORAGE,
    MapType.TASK_STORAGE,
    MapType.CGRP_STORAGE,
)
_MAPS_OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)


def _tiny_map(
    map_type: int, *, flags: int = 0, btf: Fd | None = None, inner: Fd | None = None
) -> Fd:
    key_size, value_size, max_entries, own_flags = _MAP_SHAPES.get(map_type, (4, 4, 1, 0))
    attr = uapi.MapCreate(
        map_type=map_type,
        key_size=key_size,
        value_size=value_size,
        max_entries=max_entries,
        map_flags=own_flags | flags,
    )
    if btf is not None:
        attr.btf_fd, attr.btf_key_type_id, attr.btf_value_type_id = btf.fileno(), 1, 1
    if inner is not None:
        attr.inner_map_fd = inner.fileno()
    return syscall.map_create(attr, f"create a map of type {map_type} to see whether it works")


@remembered
def map_type(number: int) -> Answer:
    """Whether the kernel has this BPF_MAP_TYPE_*; UNKNOWN for struct_ops, which needs a real one."""
    if number == MapType.STRUCT_OPS:
        return Answer.UNKNOWN
    try:
        if number in _STORAGES:
            with _load_btf(_btf(_INT)) as btf:
                within_memlock(lambda: _tiny_map(number, btf=btf)).close()
        elif number in _MAPS_OF_MAPS:
            with within_memlock(lambda: _tiny_map(MapType.ARRAY)) as inner:
                within_memlock(lambda: _tiny_map(number, inner=inner)).close()
        else:
            within_memlock(lambda: _tiny_map(number), map_type=number).close()
    except BpfError as error:
        # find_and_alloc_map(), kernel/bpf/syscall.c: EINVAL for a type it does not know.
        return Answer.NO if error.errno == errno.EINVAL else Answer.UNKNOWN
    return Answer.YES


@remembered
def struct_ops_links() -> Answer:
    """Whether a table of callbacks can be attached by link (BPF_F_LINK, 6.4).

    Asked for one that is none of the kernel's, which it finds out only after it has looked at
    the flags (bpf_struct_ops_map_alloc(), kernel/bpf/bpf_struct_ops.c).
    """
    answers = {}
    for flags in (0, uapi.BPF_F_LINK):
        attr = uapi.MapCreate(
            map_type=MapType.STRUCT_OPS,
            key_size=4,
            value_size=4,
            max_entries=1,
            map_flags=flags,
            btf_vmlinux_value_type_id=1,
        )
        try:
            syscall.map_create(attr, "create callbacks of no use to see whether it works").close()
        except BpfError as error:
            answers[flags] = error.errno
    if answers.get(0) != errno.EOPNOTSUPP:
        return Answer.UNKNOWN
    return Answer.NO if answers[uapi.BPF_F_LINK] == errno.EINVAL else Answer.YES


@remembered
def mmapable_arrays() -> Answer:
    """Whether an array map can be mapped into user space (BPF_F_MMAPABLE, 5.5)."""
    try:
        within_memlock(lambda: _tiny_map(MapType.ARRAY, flags=uapi.BPF_F_MMAPABLE)).close()
    except BpfError as error:
        return Answer.NO if error.errno == errno.EINVAL else Answer.UNKNOWN
    return Answer.YES


@remembered
def lookup_batch() -> Answer:
    """Whether a hash map can be read many elements at a time (BPF_MAP_LOOKUP_BATCH, 5.6)."""
    try:
        with within_memlock(lambda: _tiny_map(MapType.HASH)) as fd:
            room = (ctypes.c_char * 64)()
            attr = uapi.MapLookupBatch(
                map_fd=fd.fileno(),
                out_batch=syscall.address(room),
                keys=syscall.address(room) + 16,
                values=syscall.address(room) + 32,
                count=1,
            )
            syscall.map_lookup_batch(attr, "read an empty map in one call to see whether it works")
    except BpfError as error:
        refused = error.errno in (errno.EINVAL, errno.EOPNOTSUPP)
        return Answer.NO if refused else Answer.UNKNOWN
    return Answer.YES


# --- programs ------------------------------------------------------------------------------

_LOG_BYTES = 64 * 1024
_BPF_F_SLEEPABLE = 1 << 4

# Types that must name what they are loaded for (bpf_prog_load_check_attach()).
_LOADED_FOR: dict[int, int] = {
    ProgramType.CGROUP_SOCK_ADDR: AttachType.CGROUP_INET4_CONNECT,
    ProgramType.CGROUP_SOCKOPT: AttachType.CGROUP_SETSOCKOPT,
    ProgramType.SK_LOOKUP: AttachType.SK_LOOKUP,
    ProgramType.SK_REUSEPORT: AttachType.SK_REUSEPORT_SELECT,
    ProgramType.NETFILTER: AttachType.NETFILTER,
}


def assemble(*instructions: Instruction) -> bytes:
    """Instructions for the running kernel."""
    return b"".join(encode(instruction, sys.byteorder) for instruction in instructions)


def mov(register: int, value: int) -> Instruction:
    """`register = value`"""
    return Instruction(0xB7, register, 0, 0, value)


_EXIT = Instruction(EXIT, 0, 0, 0, 0)


def _try_program(
    program_type: int, instructions: bytes, *, attach_type: int | None = None, flags: int = 0
) -> tuple[int, str]:
    """Load a program and drop it: (0 or the errno, the verifier's log)."""
    if attach_type is None:
        attach_type = _LOADED_FOR.get(program_type, 0)
    code = (ctypes.c_char * len(instructions)).from_buffer_copy(instructions)
    log = (ctypes.c_char * _LOG_BYTES)()
    license = ctypes.create_string_buffer(b"GPL")
    attr = uapi.ProgLoad(
        prog_type=program_type,
        insn_cnt=len(instructions) // 8,
        insns=syscall.address(code),
        license=syscall.address(license),
        log_level=1,
        log_size=_LOG_BYTES,
        log_buf=syscall.address(log),
        expected_attach_type=attach_type,
        prog_flags=_BPF_F_SLEEPABLE if program_type == ProgramType.SYSCALL else flags,
    )
    action = f"load a program of type {program_type} to see whether it works"
    try:
        within_memlock(lambda: syscall.prog_load(attr, action)).close()
    except BpfError as error:
        return error.errno, log.value.decode("utf-8", "replace")
    return 0, ""


@remembered
def program_type(number: int) -> Answer:
    """Whether the kernel has this BPF_PROG_TYPE_*.

    Some types want more than a probe can give (a function to trace, say).  Then
    the verifier's complaint is the proof: for an unknown type it is never started.
    """
    refusal, log = _try_program(number, assemble(mov(0, 0), _EXIT))
    if refusal == 0 or log:
        return Answer.YES
    return Answer.NO if refusal == errno.EINVAL else Answer.UNKNOWN


@remembered
def program_shape(number: int, attach_type: int, flags: int) -> Answer:
    """Whether programs of this type may be loaded for that attach type, with those BPF_F_* flags.

    UNKNOWN of types whose simplest program does not load in any shape.
    """
    code = assemble(mov(0, 1), _EXIT)
    if _try_program(number, code)[0]:
        return Answer.UNKNOWN
    refusal, log = _try_program(number, code, attach_type=attach_type, flags=flags)
    if refusal == 0 or log:
        return Answer.YES
    return Answer.NO if refusal == errno.EINVAL else Answer.UNKNOWN


# Arguments to call a helper of unknown prototype with; most take one of these.
_STACK = Instruction(0xBF, 0, 10, 0, 0)  # r0 = r10, the destination filled in below
_ARGUMENTS: tuple[bytes, ...] = (
    b"",
    assemble(*(mov(register, 0) for register in (2, 3, 4, 5))),
    assemble(
        Instruction(0x7A, 10, 0, -8, 0),
        _STACK._replace(dst=1),
        Instruction(0x07, 1, 0, 0, -8),
        mov(2, 8),
        *(mov(register, 0) for register in (3, 4, 5)),
    ),
    assemble(
        Instruction(0x7A, 10, 0, -8, 0),
        _STACK._replace(dst=2),
        Instruction(0x07, 2, 0, 0, -8),
        mov(3, 8),
        *(mov(register, 0) for register in (4, 5)),
    ),
)

# Before it looks at any argument the verifier asks whether this program type may
# call this helper (check_helper_call()).  So a complaint about an argument, or
# about what was returned, says yes.
_COMPLAINT_OF_ARGUMENT = (
    r"\bR[0-5] (type=|!read_ok|min value|max value|unbounded|invalid|must be|leaks|is not|pointer)"
    r"|\barg#\d|Unreleased reference|reference leak|expected=|invalid (in)?direct (read|access)"
    r"|invalid stack type|a non-(known )?const"
)
_COMPLAINT_OF_HELPER = (
    r"unknown func|invalid func|cannot use helper|helper call is not allowed|"
    r"cannot call GPL-restricted"
)


@remembered
def helper(program_type: int, number: int) -> Answer:
    """Whether programs of this type may call helper `number` (BPF_FUNC_*).

    A program that makes the call is loaded.  Where none of our guesses at the
    arguments is accepted, the log must say something we recognise as being
    about them, or about the helper; wording we do not know is UNKNOWN, since
    taking it for consent is how other probes came to see every helper
    everywhere on new kernels.
    """
    answer = Answer.UNKNOWN
    call = Instruction(CALL, 0, 0, 0, number)
    for arguments in _ARGUMENTS:
        refusal, log = _try_program(program_type, arguments + assemble(call, mov(0, 0), _EXIT))
        if refusal == 0:
            return Answer.YES
        if re.search(_COMPLAINT_OF_HELPER, log):
            return Answer.NO
        if re.search(_COMPLAINT_OF_ARGUMENT, log):
            answer = Answer.YES
    return answer


@remembered
def cgroup_links() -> Answer:
    """Whether programs attach to cgroups by link (BPF_LINK_CREATE, 5.7)."""
    return _links(AttachType.CGROUP_SOCK_OPS)


@remembered
def xdp_links() -> Answer:
    """Whether XDP programs attach to devices by link (5.9, with BPF_XDP itself)."""
    return _links(AttachType.XDP)


@remembered
def perf_links() -> Answer:
    """Whether programs attach to perf events by link (bpf_perf_link_attach(), 5.15)."""
    return _links(AttachType.PERF_EVENT, ProgramType.TRACEPOINT)


@remembered
def tcx_links() -> Answer:
    """Whether SCHED_CLS programs attach to devices by link (tcx_link_attach(), 6.6)."""
    return _links(AttachType.TCX_INGRESS, ProgramType.SCHED_CLS)


@remembered
def sockmap_links() -> Answer:
    """Whether programs attach to sockmaps by link (sock_map_link_create(), 6.10)."""
    return _links(AttachType.SK_MSG_VERDICT, ProgramType.SK_MSG)


_NO_FD = 0xFFFFFFFF


def _links(attach_type: int, program_type: int | None = None) -> Answer:
    """Whether the kernel has links of this kind, asked with what cannot be attached.

    One that has them looks at the bad descriptor (EBADF) or the bad ifindex (ENODEV) it is
    given; one that has not never gets as far.

    Args:
        program_type: Of a program to ask with; None where the kernels without such links do
            not know the attach type, and so do not look at the program.
    """
    action = "create a link to see whether it works"
    try:
        if program_type is None:
            _create_link(_NO_FD, attach_type, action)
        else:
            with within_memlock(lambda: _tiny_program(program_type)) as program:
                _create_link(program.fileno(), attach_type, action)
    except BpfError as error:
        if error.action == action:
            if error.errno in (errno.EBADF, errno.ENODEV):
                return Answer.YES
            if error.errno == errno.EINVAL:
                return Answer.NO
    return Answer.UNKNOWN


def _create_link(program: int, attach_type: int, action: str) -> None:
    attr = uapi.LinkCreate(prog_fd=program, target_fd=_NO_FD, attach_type=attach_type)
    syscall.link_create(attr, action).close()


def _tiny_program(program_type: int) -> Fd:
    instructions = assemble(mov(0, 0), _EXIT)
    code = (ctypes.c_char * len(instructions)).from_buffer_copy(instructions)
    license = ctypes.create_string_buffer(b"GPL")
    attr = uapi.ProgLoad(
        prog_type=program_type,
        insn_cnt=len(instructions) // 8,
        insns=syscall.address(code),
        license=syscall.address(license),
    )
    return syscall.prog_load(attr, f"load a program of type {program_type} to attach it")


def kernel_btf() -> Answer:
    """Whether the kernel tells its own types (CONFIG_DEBUG_INFO_BTF)."""
    return Answer.YES if os.path.exists(KERNEL_BTF) else Answer.NO


# --- BTF -----------------------------------------------------------------------------------

_STRINGS = b"\0n\0?.n\0"  # "n" at offset 1, the name of almost everything below


def _btf_type(kind: int, size_or_type: int, *rest: int, name: int = 0, vlen: int = 0) -> bytes:
    """struct btf_type and what follows it, as in include/uapi/linux/btf.h."""
    return pack(f"={3 + len(rest)}I", name, kind << 24 | vlen, size_or_type, *rest)


_INT = _btf_type(1, 4, 1 << 24 | 32, name=1)  # type 1: a signed int of 32 bits
_BTF_FEATURES: dict[BtfFeature, bytes] = {
    BtfFeature.FUNC: _btf_type(13, 0) + _btf_type(12, 2, name=1),
    BtfFeature.FUNC_GLOBAL: _btf_type(13, 0) + _btf_type(12, 2, name=1, vlen=1),
    BtfFeature.DATASEC: _btf_type(14, 1, 0, name=1) + _btf_type(15, 4, 2, 0, 4, name=1, vlen=1),
    BtfFeature.FLOAT: _btf_type(16, 4, name=1),
    BtfFeature.DECL_TAG: _btf_type(14, 1, 0, name=1) + _btf_type(17, 2, 0xFFFFFFFF, name=1),
    BtfFeature.TYPE_TAG: _btf_type(18, 1, name=1) + _btf_type(2, 2),
    BtfFeature.ENUM64: _btf_type(19, 8, 1, 1, 0, name=1, vlen=1),
    BtfFeature.SECTION_NAMES: _btf_type(14, 1, 0, name=1)
    + _btf_type(15, 4, 2, 0, 4, name=3, vlen=1),
}


def _btf(types: bytes) -> bytes:
    """A whole BTF blob in this machine's byte order."""
    header = pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(_STRINGS))
    return header + types + _STRINGS


def _load_btf(data: bytes) -> Fd:
    action = "load BTF to see whether it works"
    return within_memlock(lambda: syscall.btf_load(data, action))


@remembered
def btf(feature: BtfFeature) -> Answer:
    """Whether the kernel takes BTF that uses `feature`."""
    try:
        _load_btf(_btf(_INT + _BTF_FEATURES[feature])).close()
    except BpfError as error:
        return Answer.NO if error.errno == errno.EINVAL else Answer.UNKNOWN
    return Answer.YES


def btf_features() -> frozenset[BtfFeature]:
    """All the features for which btf() says YES."""
    return frozenset(feature for feature in BtfFeature if btf(feature))

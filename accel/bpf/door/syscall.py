"""bpf(2): one function per command, and the only user of the C library.

Thin on purpose.  A function here packs arguments, calls the kernel, and turns
a failure into BpfError; it keeps no state and makes no decision.  Everything
friendlier is built above it, in map.py, program.py and link.py.

Sizes are the caller's duty: the kernel reads and writes key_size and value_size
bytes at the addresses it is given, whatever we allocated.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from typing import Protocol, TypeVar

from accel.bpf.door import uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError

# CDLL, not PyDLL: the interpreter lock is dropped around the call, so a slow
# verifier run in a worker thread does not stop the event loop.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p

# __NR_bpf, from each architecture's syscall table.
_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "ppc64": 361,
    "ppc64le": 361,
    "s390x": 351,
}
_NUMBER = _NUMBERS.get(os.uname().machine) if sys.maxsize > 2**32 else None

# __NR_perf_event_open, from the same tables.
_PERF_NUMBERS = {
    "x86_64": 298,
    "aarch64": 241,
    "riscv64": 241,
    "ppc64": 319,
    "ppc64le": 319,
    "s390x": 331,
}
_PERF_FLAG_FD_CLOEXEC = 1 << 3
_CLONE_NEWNET = 0x40000000

# "Not supported" inside the kernel (include/linux/errno.h); it was never meant
# to reach user space and the C library has no name for it, but bpf(2) lets it out.
_ENOTSUPP = 524

# include/uapi/linux/capability.h
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21
_CAP_PERFMON = 38
_CAP_BPF = 39

# PROC_USER_INIT_INO, include/linux/proc_ns.h: the initial user namespace's inode.
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD

_LOCKDOWN = "/sys/kernel/security/lockdown"

# include/uapi/asm-generic/mman-common.h; (void *) -1 as ctypes gives it.
_MAP_FIXED_NOREPLACE = 0x100000
_MAP_FAILED = ctypes.c_void_p(-1).value

# Only what is always right; a wrong hint costs more than none.
_REMEDIES = {
    (uapi.Cmd.MAP_UPDATE_ELEM, errno.E2BIG): "raise the map's max_entries before it is created",
}


class HasFileno(Protocol):
    """Whatever holds a descriptor: Fd, Map, Program, Link."""

    def fileno(self) -> int: ...


_I = TypeVar("_I", bound=uapi.Info)


def bpf(attr: uapi.Attr, action: str) -> int:
    """Run the command that `attr` belongs to.

    Args:
        attr: Arguments; the caller keeps the buffers it points to alive.
        action: What the caller is doing, for the error message.

    Returns:
        The kernel's return value: a new descriptor, or 0.

    Raises:
        BpfError: The kernel said no.
    """
    if _NUMBER is None:
        raise BpfError(
            f"{action}: no known number of bpf(2) on a {os.uname().machine} machine"
            f" with {ctypes.sizeof(ctypes.c_void_p) * 8}-bit Python",
            errno.ENOSYS,
            remedy=f"run a 64-bit Python on one of {', '.join(_NUMBERS)}",
        )
    result: int = _libc.syscall(
        ctypes.c_long(_NUMBER),
        ctypes.c_int(attr.CMD),
        ctypes.byref(attr),
        ctypes.c_uint(ctypes.sizeof(attr)),
    )
    if result < 0:
        raise _error(attr.CMD, action, ctypes.get_errno())
    return result


def _error(cmd: uapi.Cmd, action: str, number: int) -> BpfError:
    if number == _ENOTSUPP:
        number = errno.EOPNOTSUPP
    if number == errno.EPERM:
        return BpfError(action, number, remedy=explain_eperm())
    if number == errno.ENOSYS:
        return BpfError(action, number, remedy="run a kernel built with CONFIG_BPF_SYSCALL=y")
    return BpfError(action, number, remedy=_REMEDIES.get((cmd, number)))


def explain_eperm() -> str | None:
    """What in this process's circumstances makes bpf(2) say EPERM, or None.

    Facts only: missing capabilities, a user namespace, kernel lockdown.
    """
    missing = missing_capabilities(_effective_capabilities())
    if missing:
        return f"give this process {' and '.join(missing)} (before Linux 5.8: CAP_SYS_ADMIN)"
    if _in_user_namespace():
        return (
            "run outside the user namespace this process is in: "
            "its capabilities do not count for bpf(2)"
        )
    if _lockdown() == "confidentiality":
        return (
            "boot with lockdown=integrity: under lockdown=confidentiality "
            "the kernel refuses programs that read its memory"
        )
    return None


def missing_capabilities(effective: int) -> list[str]:
    """Names of the capabilities our commands need and the set `effective` lacks.

    CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON (bpf_capable() and
    perfmon_capable(), include/linux/capability.h).
    """
    needed = {"CAP_NET_ADMIN": _CAP_NET_ADMIN}
    if not effective >> _CAP_SYS_ADMIN & 1:
        needed |= {"CAP_BPF": _CAP_BPF, "CAP_PERFMON": _CAP_PERFMON}
    return [name for name, bit in needed.items() if not effective >> bit & 1]


def _effective_capabilities() -> int:
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            status = file.read()
    except OSError:
        return -1  # nothing known, so nothing missing
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return -1


def _in_user_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE
    except OSError:
        return False


def _lockdown() -> str | None:
    """The active lockdown mode, or None: "none integrity [confidentiality]"."""
    try:
        with open(_LOCKDOWN, encoding="ascii") as file:
            modes = file.read()
    except OSError:
        return None
    return modes.partition("[")[2].partition("]")[0] or None


def address(buffer: ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Where `buffer` lives, as the attr structs want it; 0 for None."""
    return 0 if buffer is None else ctypes.addressof(buffer)


def in_memory(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """`data` in memory of known address."""
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


def map_create(attr: uapi.MapCreate, action: str) -> Fd:
    """BPF_MAP_CREATE."""
    return Fd(bpf(attr, action))


def map_create_log(attr: uapi.MapCreate, log_bytes: int) -> tuple[Fd | None, str]:
    """BPF_MAP_CREATE once more, for its log: (the descriptor if it now worked, the log).

    A kernel without BPF_COMMON_ATTRS takes the command for one it does not know and
    leaves the log empty.
    """
    if _NUMBER is None:
        return None, ""
    log = (ctypes.c_char * log_bytes)()
    common = uapi.CommonAttr(log_buf=address(log), log_size=log_bytes, log_level=1)
    result: int = _libc.syscall(
        ctypes.c_long(_NUMBER),
        ctypes.c_int(attr.CMD | uapi.BPF_COMMON_ATTRS),
        ctypes.byref(attr),
        ctypes.c_uint(ctypes.sizeof(attr)),
        ctypes.byref(common),
        ctypes.c_uint(ctypes.sizeof(common)),
    )
    if result < 0:
        return None, log.value.decode("utf-8", "replace")
    return Fd(result), ""


def map_lookup_elem(
    map: HasFileno, key: bytes, value_bytes: int, action: str, flags: int = 0
) -> bytes | None:
    """BPF_MAP_LOOKUP_ELEM.

    Args:
        key: Exactly key_size bytes.
        value_bytes: What the kernel will write: value_size, or for a per-CPU map
            value_size rounded up to 8, times the possible CPUs.
        flags: BPF_F_LOCK or 0.

    Returns:
        The value, or None when the key is absent.
    """
    key_buffer = in_memory(key)
    value = (ctypes.c_char * value_bytes)()
    attr = uapi.MapLookupElem(
        map_fd=map.fileno(), key=address(key_buffer), value=address(value), flags=flags
    )
    return value.raw if _found(attr, action) else None


def map_update_elem(map: HasFileno, key: bytes, value: bytes, flags: int, action: str) -> None:
    """BPF_MAP_UPDATE_ELEM; `value` as long as map_lookup_elem() says."""
    key_buffer, value_buffer = in_memory(key), in_memory(value)
    bpf(
        uapi.MapUpdateElem(
            map_fd=map.fileno(), key=address(key_buffer), value=address(value_buffer), flags=flags
        ),
        action,
    )


def map_delete_elem(map: HasFileno, key: bytes, action: str) -> bool:
    """BPF_MAP_DELETE_ELEM.  False when the key was absent."""
    key_buffer = in_memory(key)
    return _found(uapi.MapDeleteElem(map_fd=map.fileno(), key=address(key_buffer)), action)


def map_get_next_key(map: HasFileno, key: bytes | None, key_size: int, action: str) -> bytes | None:
    """BPF_MAP_GET_NEXT_KEY.

    Args:
        key: The key before; None, or one that is no longer there, asks for the first.

    Returns:
        The key after, or None at the end.
    """
    key_buffer = None if key is None else in_memory(key)
    next_key = (ctypes.c_char * key_size)()
    attr = uapi.MapGetNextKey(
        map_fd=map.fileno(), key=address(key_buffer), next_key=address(next_key)
    )
    return next_key.raw if _found(attr, action) else None


def map_lookup_and_delete_elem(
    map: HasFileno, key: bytes | None, value_bytes: int, flags: int, action: str
) -> bytes | None:
    """BPF_MAP_LOOKUP_AND_DELETE_ELEM; a queue or stack has no keys and wants None.

    Returns:
        The value that was there, or None.
    """
    key_buffer = None if key is None else in_memory(key)
    value = (ctypes.c_char * value_bytes)()
    attr = uapi.MapLookupAndDeleteElem(
        map_fd=map.fileno(), key=address(key_buffer), value=address(value), flags=flags
    )
    return value.raw if _found(attr, action) else None


def map_push_elem(map: HasFileno, value: bytes, flags: int, action: str) -> None:
    """BPF_MAP_UPDATE_ELEM of a map without keys."""
    buffer = in_memory(value)
    bpf(uapi.MapUpdateElem(map_fd=map.fileno(), value=address(buffer), flags=flags), action)


def map_peek_elem(map: HasFileno, value: bytes, action: str) -> bytes | None:
    """BPF_MAP_LOOKUP_ELEM of a map without keys.

    Args:
        value: value_size bytes: what a bloom filter is asked about, anything for others.

    Returns:
        What is there, or None.
    """
    buffer = in_memory(value)
    attr = uapi.MapLookupElem(map_fd=map.fileno(), value=address(buffer))
    return buffer.raw if _found(attr, action) else None


def map_lookup_batch(attr: uapi.MapLookupBatch | uapi.MapLookupAndDeleteBatch, action: str) -> bool:
    """BPF_MAP_LOOKUP(_AND_DELETE)_BATCH.  False when this was the last.

    `attr.count` says how many came.
    """
    return _found(attr, action)


def map_write_batch(attr: uapi.MapUpdateBatch | uapi.MapDeleteBatch, action: str) -> None:
    """BPF_MAP_{UPDATE,DELETE}_BATCH; `attr.count` says how many were done, on failure too."""
    bpf(attr, action)


def map_freeze(map: HasFileno, action: str) -> None:
    """BPF_MAP_FREEZE: no more writes from user space."""
    bpf(uapi.MapFreeze(map_fd=map.fileno()), action)


def prog_load(attr: uapi.ProgLoad, action: str) -> Fd:
    """BPF_PROG_LOAD.

    The verifier gives up with EAGAIN when a signal is pending (do_check(),
    kernel/bpf/verifier.c).  A timer that fires faster than the program verifies
    would make that endless, so the second try holds signals back.
    """
    try:
        return Fd(bpf(attr, action))
    except BpfError as error:
        if error.errno != errno.EAGAIN:
            raise
    import signal  # its enums cost every import of this package a millisecond

    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        return Fd(bpf(attr, action))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prog_attach(
    target: HasFileno,
    program: HasFileno,
    attach_type: int,
    flags: int,
    action: str,
    *,
    replace: HasFileno | None = None,
) -> None:
    """BPF_PROG_ATTACH.

    Args:
        replace: Whose place it takes, with BPF_F_REPLACE among the flags.
    """
    bpf(
        uapi.ProgAttach(
            target_fd=target.fileno(),
            attach_bpf_fd=program.fileno(),
            attach_type=attach_type,
            attach_flags=flags,
            replace_bpf_fd=0 if replace is None else replace.fileno(),
        ),
        action,
    )


def prog_detach(target: HasFileno, program: HasFileno, attach_type: int, action: str) -> None:
    """BPF_PROG_DETACH."""
    bpf(
        uapi.ProgDetach(
            target_fd=target.fileno(), attach_bpf_fd=program.fileno(), attach_type=attach_type
        ),
        action,
    )


def prog_test_run(attr: uapi.ProgTestRun, action: str) -> None:
    """BPF_PROG_TEST_RUN; what came of it is in `attr`."""
    bpf(attr, action)


def prog_map_ids(program: HasFileno, count: int, action: str) -> tuple[int, ...]:
    """Ids of the maps a program uses; BPF_OBJ_GET_INFO_BY_FD said how many."""
    ids = (ctypes.c_uint32 * count)()
    info = uapi.ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids))
    _fill_info(program, info, action)
    return tuple(ids[: info.nr_map_ids])


def prog_bind_map(program: HasFileno, map: HasFileno, action: str) -> None:
    """BPF_PROG_BIND_MAP: the map lives as long as the program, though no instruction uses it."""
    bpf(uapi.ProgBindMap(prog_fd=program.fileno(), map_fd=map.fileno()), action)


def enable_stats(kind: int, action: str) -> Fd:
    """BPF_ENABLE_STATS: counted while the descriptor is open."""
    return Fd(bpf(uapi.EnableStats(type=kind), action))


def prog_query(attr: uapi.ProgQuery, action: str) -> None:
    """BPF_PROG_QUERY as `attr` asks it; the answers are in `attr` and where it points."""
    bpf(attr, action)


def obj_pin(obj: HasFileno, path: str, action: str) -> None:
    """BPF_OBJ_PIN."""
    pathname = in_memory(os.fsencode(path) + b"\0")
    bpf(uapi.ObjPin(pathname=address(pathname), bpf_fd=obj.fileno()), action)


def obj_get(path: str, action: str) -> Fd:
    """BPF_OBJ_GET."""
    pathname = in_memory(os.fsencode(path) + b"\0")
    return Fd(bpf(uapi.ObjGet(pathname=address(pathname)), action))


def obj_get_info_by_fd(obj: HasFileno, kind: type[_I], action: str) -> _I:
    """BPF_OBJ_GET_INFO_BY_FD."""
    info = kind()
    _fill_info(obj, info, action)
    return info


def _fill_info(obj: HasFileno, info: uapi.Info, action: str) -> None:
    bpf(
        uapi.ObjGetInfoByFd(
            bpf_fd=obj.fileno(), info_len=ctypes.sizeof(info), info=ctypes.addressof(info)
        ),
        action,
    )


def get_next_id(
    kind: type[uapi.ProgGetNextId | uapi.MapGetNextId | uapi.LinkGetNextId | uapi.BtfGetNextId],
    start: int,
    action: str,
) -> int | None:
    """BPF_{PROG,MAP,LINK,BTF}_GET_NEXT_ID: the first id above `start`, or None."""
    attr = kind(start_id=start)
    return int(attr.next_id) if _found(attr, action) else None


def get_fd_by_id(
    kind: type[uapi.ProgGetFdById | uapi.MapGetFdById | uapi.LinkGetFdById | uapi.BtfGetFdById],
    number: int,
    action: str,
) -> Fd:
    """BPF_{PROG,MAP,LINK,BTF}_GET_FD_BY_ID."""
    return Fd(bpf(kind(start_id=number), action))


def btf_load(data: bytes, action: str) -> Fd:
    """BPF_BTF_LOAD, without a log."""
    buffer = in_memory(data)
    return Fd(bpf(uapi.BtfLoad(btf=address(buffer), btf_size=len(data)), action))


def btf_load_log(data: bytes, log_bytes: int, action: str) -> tuple[Fd | None, str]:
    """BPF_BTF_LOAD once more, for its log: (the descriptor if it now worked, the log)."""
    buffer, log = in_memory(data), (ctypes.c_char * log_bytes)()
    attr = uapi.BtfLoad(
        btf=address(buffer),
        btf_size=len(data),
        btf_log_buf=address(log),
        btf_log_size=log_bytes,
        btf_log_level=1,
    )
    try:
        return Fd(bpf(attr, action)), ""
    except BpfError:
        return None, log.value.decode("utf-8", "replace")


def btf_info(btf: HasFileno, action: str) -> tuple[str, bool, int]:
    """Of a BTF: (its name, whether it is the kernel's or a module's, its size in bytes)."""
    name = (ctypes.c_char * 64)()  # MODULE_NAME_LEN is 56
    info = uapi.BtfInfo(name=ctypes.addressof(name), name_len=ctypes.sizeof(name))
    _fill_info(btf, info, action)
    return name.value.decode("utf-8", "backslashreplace"), bool(info.kernel_btf), info.btf_size


def btf_data(btf: HasFileno, size: int, action: str) -> bytes:
    """The `size` bytes of a BTF, as btf_info() says."""
    buffer = (ctypes.c_char * size)()
    _fill_info(btf, uapi.BtfInfo(btf=ctypes.addressof(buffer), btf_size=size), action)
    return buffer.raw


def link_create(attr: uapi.LinkCreate, action: str) -> Fd:
    """BPF_LINK_CREATE."""
    return Fd(bpf(attr, action))


def link_update(
    link: HasFileno, new: HasFileno, action: str, *, old: HasFileno | None = None
) -> None:
    """BPF_LINK_UPDATE: the program, or struct_ops map, is exchanged atomically.

    Args:
        old: What must be in its place now; None for whatever is.
    """
    attr = uapi.LinkUpdate(link_fd=link.fileno(), new_prog_fd=new.fileno())
    if old is not None:
        attr.flags, attr.old_prog_fd = uapi.BPF_F_REPLACE, old.fileno()
    bpf(attr, action)


def link_detach(link: HasFileno, action: str) -> None:
    """BPF_LINK_DETACH."""
    bpf(uapi.LinkDetach(link_fd=link.fileno()), action)


def link_info(link: HasFileno, info: uapi.LinkInfo, action: str) -> None:
    """BPF_OBJ_GET_INFO_BY_FD of a link; `info` may point to room for names."""
    _fill_info(link, info, action)


def raw_tracepoint_open(name: str | None, program: HasFileno, cookie: int, action: str) -> Fd:
    """BPF_RAW_TRACEPOINT_OPEN; without a name, for what the program was loaded for."""
    text = None if name is None else in_memory(name.encode() + b"\0")
    attr = uapi.RawTracepointOpen(name=address(text), prog_fd=program.fileno(), cookie=cookie)
    return Fd(bpf(attr, action))


def iter_create(link: HasFileno, action: str) -> Fd:
    """BPF_ITER_CREATE: a descriptor to read the iterator's output from, once."""
    return Fd(bpf(uapi.IterCreate(link_fd=link.fileno()), action))


def perf_event_open(attr: uapi.PerfEventAttr, pid: int, cpu: int, action: str) -> Fd:
    """perf_event_open(2), for a process or, with -1, all; on one CPU or, with -1, all.

    Raises:
        BpfError: The kernel said no, or the number of this system call is not known.
    """
    number = _PERF_NUMBERS.get(os.uname().machine) if _NUMBER is not None else None
    if number is None:
        raise BpfError(
            action,
            errno.ENOSYS,
            remedy=f"run a 64-bit Python on one of {', '.join(_PERF_NUMBERS)}",
        )
    attr.size = ctypes.sizeof(attr)
    result: int = _libc.syscall(
        ctypes.c_long(number),
        ctypes.byref(attr),
        ctypes.c_int(pid),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )
    if result < 0:
        raise BpfError(action, ctypes.get_errno())
    return Fd(result)


def enter_netns(namespace: HasFileno, action: str) -> None:
    """setns(2): this thread's network namespace is `namespace` from now on."""
    if _libc.setns(ctypes.c_int(namespace.fileno()), ctypes.c_int(_CLONE_NEWNET)) != 0:
        raise BpfError(action, ctypes.get_errno())


def mmap_at(map: HasFileno, size: int, where: int, action: str) -> int:
    """mmap(2), shared, of a map's first `size` bytes; the mmap module cannot say where.

    Args:
        where: The address it must have, which must be free; 0 lets the kernel choose.

    Returns:
        Its address, for munmap().
    """
    flags = mmap.MAP_SHARED | (_MAP_FIXED_NOREPLACE if where else 0)
    result: int | None = _libc.mmap(
        ctypes.c_void_p(where),
        ctypes.c_size_t(size),
        ctypes.c_int(mmap.PROT_READ | mmap.PROT_WRITE),
        ctypes.c_int(flags),
        ctypes.c_int(map.fileno()),
        ctypes.c_long(0),
    )
    if result is None or result == _MAP_FAILED:
        raise BpfError(action, ctypes.get_errno())
    if where and result != where:  # before Linux 4.17 the address was only a wish
        munmap(result, size)
        raise BpfError(action, errno.EEXIST)
    return result


def munmap(where: int, size: int) -> None:
    """munmap(2)."""
    _libc.munmap(ctypes.c_void_p(where), ctypes.c_size_t(size))


def _found(attr: uapi.Attr, action: str) -> bool:
    """Run a command whose ENOENT is an answer, not an error."""
    try:
        bpf(attr, action)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True

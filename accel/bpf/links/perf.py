"""Attaching through perf events: tracepoints, kprobes, uprobes, samples; and to many at once.

A probe is a perf event of a special kind, made for the program and gone with its link.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.uapi import PerfEventType
from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.kinds import AttachType
from accel.bpf.links.link import EmulatedLink, Link, by_link
from accel.bpf.links.link_info import LinkInfo, PerfEventDetails
from accel.bpf.loading.kernel import SYSCALL_PREFIXES
from accel.bpf.loading.program import Program

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

# include/uapi/linux/perf_event.h
PERF_TYPE_TRACEPOINT = 2
PERF_FLAG_FREQ = 1 << 10
_IOC_ENABLE = 0x2400
_IOC_SET_BPF = 0x40042408

_SOURCES = Path("/sys/bus/event_source/devices")
# Where tracefs is, for kernels that mount it themselves, and as debugfs has it.
_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

# What attaches programs of these attach types.
_MANY_AT_ONCE: dict[int | None, str] = {
    AttachType.TRACE_KPROBE_MULTI: "attach_kprobe_multi",
    AttachType.TRACE_KPROBE_SESSION: "attach_kprobe_multi",
    AttachType.TRACE_UPROBE_MULTI: "attach_uprobe_multi",
    AttachType.TRACE_UPROBE_SESSION: "attach_uprobe_multi",
}


# --- one place -----------------------------------------------------------------------------


def attach_perf_event(
    program: Program, event: Fd, *, cookie: int = 0, details: PerfEventDetails | None = None
) -> Link:
    """Run a program at each occurrence of a perf event, and start the event.

    Args:
        event: A descriptor from perf_event_open(); to be closed afterwards, since without a
            link (before Linux 5.15) its last descriptor keeps the program running.
        cookie: What bpf_get_attach_cookie() gives to the program (Linux 5.15).
        details: What the event is, for kernels that keep no link and so cannot tell.

    Raises:
        BpfError: EINVAL when the program is not for this kind of event.
    """
    action = f"attach program {program.name} to a perf event"
    attr = uapi.LinkCreate(
        prog_fd=program.fileno(), target_fd=event.fileno(), attach_type=AttachType.PERF_EVENT
    )
    attr.perf_event.bpf_cookie = cookie
    what = f"of program {program.name}"
    known = details or PerfEventDetails(PerfEventType.EVENT, "", 0, 0)
    try:
        if cookie:  # which only links have
            link = Link(syscall.link_create(attr, action), what)
        else:
            link = by_link(
                attr,
                action,
                what,
                has_links=probe.perf_links,
                otherwise=lambda: _EventAttachment(program, event, what, known).begin(action),
            )
    except BpfError as error:
        raise _explain(error, program) from None
    try:
        _ioctl(event, _IOC_ENABLE, 0, action)
    except BpfError:
        link.close()
        raise
    return link


def _explain(error: BpfError, program: Program) -> BpfError:
    way = _MANY_AT_ONCE.get(program.attach_type)
    if error.errno != errno.EINVAL or way is None:
        return error
    return BpfError(
        error.action,
        error.errno,
        remedy=f"use {way}(): the program was loaded for many places at once",
    )


class _EventAttachment(EmulatedLink):
    """A program that a perf event runs, by ioctl."""

    def __init__(self, program: Program, event: Fd, what: str, details: PerfEventDetails) -> None:
        info = LinkInfo(0, uapi.LinkType.PERF_EVENT, program.id, details)
        super().__init__(program, event, what, info)

    def _begin(self, attached: Fd, action: str) -> None:
        _ioctl(self._target, _IOC_SET_BPF, attached.fileno(), action)

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        raise BpfError(
            action, errno.EOPNOTSUPP, remedy="attach the other program beside it, then close this"
        )

    def _end(self, attached: Fd, action: str) -> None:
        # Disabling is not enough: a tracepoint's programs run whether or not their events do.
        self._target.close()


def _ioctl(event: Fd, request: int, argument: int, action: str) -> None:
    try:
        fcntl.ioctl(event.fileno(), request, argument)
    except OSError as error:
        raise BpfError(action, error.errno or errno.EIO) from error


def open_perf_event(
    event_type: int,
    config: int,
    *,
    sample_period: int = 0,
    sample_frequency: int = 0,
    pid: int = -1,
    cpu: int = -1,
) -> Fd:
    """A perf event for attach_perf_event().

    Args:
        event_type, config: PERF_TYPE_* and PERF_COUNT_* numbers.
        sample_period: Run the program at every so many of them.
        sample_frequency: Or so often per second.
        pid: Of one process, or -1 for all, and then one CPU must be said.
        cpu: One CPU, or -1 for all.

    Raises:
        BpfError: The kernel has no such event, or it may not be watched.
    """
    attr = uapi.PerfEventAttr(type=event_type, config=config, sample_period=sample_period)
    if sample_frequency:
        attr.sample_period, attr.flags = sample_frequency, PERF_FLAG_FREQ
    return syscall.perf_event_open(attr, pid, cpu, f"open perf event {event_type}:{config}")


def attach_tracepoint(program: Program, category: str, name: str, *, cookie: int = 0) -> Link:
    """Run a TRACEPOINT program at "sched", "sched_switch"; its context is as tracefs tells.

    Raises:
        BpfError: ENOENT when there is no such tracepoint, or no tracefs to look it up in.
    """
    action = f"attach program {program.name} to tracepoint {category}/{name}"
    number = _tracepoint_id(category, name, action)
    attr = uapi.PerfEventAttr(type=PERF_TYPE_TRACEPOINT, config=number, sample_period=1)
    details = PerfEventDetails(PerfEventType.TRACEPOINT, name, 0, cookie)
    # The program is run wherever the tracepoint is met, whichever CPU the event names.
    with syscall.perf_event_open(attr, -1, 0, action) as event:
        return attach_perf_event(program, event, cookie=cookie, details=details)


def _tracepoint_id(category: str, name: str, action: str) -> int:
    for place in (*_mounted("tracefs"), *_TRACEFS):
        directory = place / "events"
        if not directory.is_dir():
            continue
        try:
            return int((directory / category / name / "id").read_text())
        except OSError as error:
            raise BpfError(
                action,
                error.errno or errno.EIO,
                remedy=f"name a tracepoint below {directory}, as category and name",
            ) from error
    raise BpfError(
        action, errno.ENOENT, remedy="mount tracefs: mount -t tracefs tracefs /sys/kernel/tracing"
    )


def _mounted(file_system: str) -> list[Path]:
    """Where a file system is mounted, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    return [
        Path(line.split(" ", 5)[4])
        for line in lines
        if line.partition(" - ")[2].startswith(f"{file_system} ")
    ]


def attach_kprobe(
    program: Program, function: str, *, offset: int = 0, at_return: bool = False, cookie: int = 0
) -> Link:
    """Run a KPROBE program whenever a kernel function is called, or returns.

    Args:
        function: As /proc/kallsyms has it.
        offset: Bytes into it.

    Raises:
        BpfError: ENOENT when there is no such function; EINVAL when probes are not allowed
            there; ENODEV when the kernel has no kprobes.
    """
    where = f"{function}+{offset}" if offset else function
    action = f"attach program {program.name} to {'the return of ' * at_return}{where}"
    target = ctypes.create_string_buffer(function.encode())
    attr = _probe("kprobe", at_return, action)
    attr.config1, attr.config2 = ctypes.addressof(target), offset
    kind = PerfEventType.KRETPROBE if at_return else PerfEventType.KPROBE
    with syscall.perf_event_open(attr, -1, 0, action) as event:
        details = PerfEventDetails(kind, function, offset, cookie)
        return attach_perf_event(program, event, cookie=cookie, details=details)


def syscall_function(name: str) -> str:
    """The kernel function of a system call on this machine: "__x64_sys_openat"."""
    return f"{SYSCALL_PREFIXES.get(os.uname().machine, '')}sys_{name}"


def attach_uprobe(
    program: Program,
    path: str | os.PathLike[str],
    where: str | int,
    *,
    offset: int = 0,
    at_return: bool = False,
    pid: int | None = None,
    reference_counter: int = 0,
    cookie: int = 0,
) -> Link:
    """Run a KPROBE program whenever a function of an executable or library is called, or returns.

    Args:
        path: Of the ELF file, as this process sees it.
        where: A function's name, or its offset in the file.
        offset: Bytes further.
        pid: Of the only process, 0 for this one; None for all that run the file.
        reference_counter: Offset in the file of a counter that is raised meanwhile, as the
            semaphores of USDT; 0 for none.

    Raises:
        BpfError: ENODEV when the kernel has no uprobes; EINVAL when no instruction begins there.
        ObjectError: The file is no ELF file, or has no such function.
    """
    name = os.fspath(path)
    action = f"attach program {program.name} to {'the return of ' * at_return}{where} of {name}"
    place = _file_offset(name, where) + offset
    target = ctypes.create_string_buffer(os.fsencode(name))
    attr = _probe("uprobe", at_return, action)
    attr.config |= reference_counter << 32  # UPROBE's format/ref_ctr_offset
    attr.config1, attr.config2 = ctypes.addressof(target), place
    kind = PerfEventType.URETPROBE if at_return else PerfEventType.UPROBE
    # A process on whichever CPU it is, or one CPU whoever is there: that is all of a uprobe.
    who, cpu = (-1, 0) if pid is None else (pid, -1)
    with syscall.perf_event_open(attr, who, cpu, action) as event:
        details = PerfEventDetails(kind, name, place, cookie)
        return attach_perf_event(program, event, cookie=cookie, details=details)


def _probe(source: str, at_return: bool, action: str) -> uapi.PerfEventAttr:
    """The event of a dynamic probe: perf_kprobe_init() and perf_uprobe_init() (4.17)."""
    try:
        number = int((_SOURCES / source / "type").read_text())
        bit = (_SOURCES / source / "format" / "retprobe").read_text().strip()
    except OSError:
        raise BpfError(
            action,
            errno.ENODEV,
            remedy=f"run Linux 4.17 or later with CONFIG_{source.upper()}_EVENTS=y: "
            f"this kernel has no {source}s",
        ) from None
    attr = uapi.PerfEventAttr(type=number)
    if at_return:
        attr.config = 1 << int(bit.removeprefix("config:"))
    return attr


# --- many places ---------------------------------------------------------------------------


def attach_kprobe_multi(
    program: Program, functions: Sequence[str], *, at_return: bool = False
) -> Link:
    """Run a program whenever one of many kernel functions is called, or returns (Linux 5.18).

    Args:
        program: Loaded for kprobe.multi or kprobe.session.
        functions: As /proc/kallsyms has them; all must exist.

    Raises:
        BpfError: ESRCH when one of them does not exist, or cannot be traced.
    """
    action = f"attach program {program.name} to {len(functions)} kernel functions"
    texts = [ctypes.create_string_buffer(name.encode()) for name in functions]
    addresses = (ctypes.c_uint64 * len(texts))(*map(ctypes.addressof, texts))
    attr = uapi.LinkCreate(
        prog_fd=program.fileno(), attach_type=program.attach_type or AttachType.TRACE_KPROBE_MULTI
    )
    part = attr.kprobe_multi
    part.syms, part.cnt = ctypes.addressof(addresses), len(texts)
    part.flags = uapi.BPF_F_KPROBE_MULTI_RETURN if at_return else 0
    return Link(_create_multi(attr, action, "CONFIG_FPROBE"), f"of program {program.name}")


def attach_uprobe_multi(
    program: Program,
    path: str | os.PathLike[str],
    places: Sequence[str | int],
    *,
    at_return: bool = False,
    pid: int | None = None,
) -> Link:
    """Run a program whenever one of many functions of a file is called, or returns (Linux 6.6).

    Args:
        program: Loaded for uprobe.multi or uprobe.session.
        places: Names of functions, or offsets in the file.
        pid: Of the only process, 0 for this one; None for all that run the file.

    Raises:
        BpfError: ESRCH when there is no such process.
        ObjectError: The file is no ELF file, or lacks one of the functions.
    """
    name = os.fspath(path)
    action = f"attach program {program.name} to {len(places)} places of {name}"
    target = ctypes.create_string_buffer(os.fsencode(os.path.realpath(name)))
    offsets = (ctypes.c_uint64 * len(places))(*(_file_offset(name, place) for place in places))
    attr = uapi.LinkCreate(
        prog_fd=program.fileno(), attach_type=program.attach_type or AttachType.TRACE_UPROBE_MULTI
    )
    part = attr.uprobe_multi
    part.path, part.offsets = ctypes.addressof(target), ctypes.addressof(offsets)
    # The kernel's 0 is everybody.
    part.cnt, part.pid = len(places), 0 if pid is None else pid or os.getpid()
    part.flags = uapi.BPF_F_UPROBE_MULTI_RETURN if at_return else 0
    return Link(_create_multi(attr, action, "CONFIG_UPROBES"), f"of program {program.name}")


def _create_multi(attr: uapi.LinkCreate, action: str, option: str) -> Fd:
    try:
        return syscall.link_create(attr, action)
    except BpfError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise BpfError(
            action, error.errno, remedy=f"run a kernel built with {option}=y: this one is not"
        ) from None


def _file_offset(path: str, place: str | int) -> int:
    """Where in an ELF file a function's code is.

    Raises:
        ObjectError: The file is no ELF file, or has no such function.
    """
    if isinstance(place, int):
        return place
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with open(path, "rb") as file:
            found = _find_function(ELFFile(file), place)
    except OSError as error:
        raise ObjectError(f"read {path}: {error.strerror}") from error
    # What pyelftools lets out when a file is malformed is not of one kind.
    except (ELFError, ValueError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise ObjectError(f"read {path}: {error}", remedy="name an ELF file") from error
    if found is None:
        raise ObjectError(
            f"{path} has no function {place}", remedy="name one of its symbols, or an offset"
        )
    return found


def _find_function(file: ELFFile, name: str) -> int | None:
    from elftools.elf.sections import SymbolTableSection

    for section in file.iter_sections():
        if not isinstance(section, SymbolTableSection):
            continue
        for symbol in section.get_symbol_by_name(name) or ():
            address = symbol["st_value"]
            if symbol["st_info"]["type"] not in ("STT_FUNC", "STT_GNU_IFUNC") or not address:
                continue
            for segment in file.iter_segments("PT_LOAD"):
                start = segment["p_vaddr"]
                if start <= address < start + segment["p_filesz"]:
                    return int(address - start + segment["p_offset"])
    return None

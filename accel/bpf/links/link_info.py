"""What the kernel says of a link, and each kind of link in its own words."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from accel.bpf.door import syscall, uapi
from accel.bpf.door.ids import iter_by_id
from accel.bpf.door.uapi import LinkType, PerfEventType

_NAME_BYTES = 4096  # PATH_MAX: the longest name there is, an executable's


class CgroupDetails(NamedTuple):
    """To a cgroup.

    Attributes:
        cgroup_id: 0 once the cgroup is gone, or the link detached.
    """

    cgroup_id: int
    attach_type: int


class TracingDetails(NamedTuple):
    """To a function by its BTF id: fentry, fexit, fmod_ret, tp_btf, lsm, freplace.

    Attributes:
        target_object_id: Of the BTF the function is in, or for freplace of the program.
        target_btf_id: The function's.
        cookie: What bpf_get_attach_cookie() gives.
    """

    attach_type: int
    target_object_id: int
    target_btf_id: int
    cookie: int


class RawTracepointDetails(NamedTuple):
    """To a raw tracepoint."""

    name: str
    cookie: int


class IterDetails(NamedTuple):
    """An iterator.

    Attributes:
        target: What it walks: "bpf_map_elem", "task", "cgroup", ...
        map_id: Of the map whose elements it walks, or None.
        cgroup_id: Of the cgroup it starts at, or None.
        order: A BPF_CGROUP_ITER_* number, or None.
        tid, pid: The one thread, or process, that it walks, 0 for all; None for others.
    """

    target: str
    map_id: int | None = None
    cgroup_id: int | None = None
    order: int | None = None
    tid: int | None = None
    pid: int | None = None


class NetnsDetails(NamedTuple):
    """To a network namespace.

    Attributes:
        netns_inode: 0 once the namespace is gone.
    """

    netns_inode: int
    attach_type: int


class DeviceDetails(NamedTuple):
    """To a network device: XDP, tcx, netkit.

    Attributes:
        ifindex: 0 once the device is gone, or the link detached.
        attach_type: None for XDP.
    """

    ifindex: int
    attach_type: int | None


class StructOpsDetails(NamedTuple):
    """A table of kernel callbacks.

    Attributes:
        map_id: Of the map that holds it; 0 once detached.
    """

    map_id: int


class NetfilterDetails(NamedTuple):
    """To a netfilter hook.

    Attributes:
        family: NFPROTO_*: 2 for IPv4, 10 for IPv6.
        hook: NF_INET_*.
        priority: Lower runs first.
    """

    family: int
    hook: int
    priority: int
    flags: int


class KprobeMultiDetails(NamedTuple):
    """To many kernel functions.

    Attributes:
        functions: How many.
        missed: Events the program was not run for.
    """

    functions: int
    flags: int
    missed: int


class UprobeMultiDetails(NamedTuple):
    """To many places of one executable.

    Attributes:
        places: How many.
        pid: Of the only process, or 0 for all.
    """

    path: str
    places: int
    flags: int
    pid: int


class PerfEventDetails(NamedTuple):
    """To a perf event: kprobe, uprobe, tracepoint, or another.

    Attributes:
        kind: A BPF_PERF_EVENT_* number.
        name: Function, path of the executable, or tracepoint; "" for other events.
        offset: Bytes from the function's, or the file's, start; 0 for others.
    """

    kind: PerfEventType
    name: str
    offset: int
    cookie: int


class SockmapDetails(NamedTuple):
    """To the sockets of a map."""

    map_id: int
    attach_type: int


Details = (
    CgroupDetails
    | TracingDetails
    | RawTracepointDetails
    | IterDetails
    | NetnsDetails
    | DeviceDetails
    | StructOpsDetails
    | NetfilterDetails
    | KprobeMultiDetails
    | UprobeMultiDetails
    | PerfEventDetails
    | SockmapDetails
)


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link.

    Attributes:
        id: Unique until reboot; 0 for an attachment that the kernel has no link of.
        type: A BPF_LINK_TYPE_* number.
        program_id: Of the program it attaches now; 0 for struct_ops.
        details: What is said of its kind alone; None for a kind unknown to us.
    """

    id: int
    type: int
    program_id: int
    details: Details | None

    @property
    def cgroup_id(self) -> int | None:
        """Of a cgroup link; 0 once the cgroup is gone.  None for other links."""
        return self.details.cgroup_id if isinstance(self.details, CgroupDetails) else None

    @property
    def attach_type(self) -> int | None:
        """A BPF_* attach type, or None where the kernel tells none."""
        return getattr(self.details, "attach_type", None)


def link_info(link: syscall.HasFileno, what: str) -> LinkInfo:
    """Ask the kernel about a link.

    Args:
        what: The link in words, for messages.
    """
    action = f"ask about link {what}"
    raw = uapi.LinkInfo()
    syscall.link_info(link, raw, action)
    name = ""
    if raw.type in _NAMES:
        # Only now is it known where in the union the buffer for the name goes.
        room = ctypes.create_string_buffer(_NAME_BYTES)
        raw = _with_room(raw.type, room)
        syscall.link_info(link, raw, action)
        name = room.value.decode("utf-8", "surrogateescape")
    describe = _DETAILS.get(raw.type)
    details = None if describe is None else describe(raw, name)
    return LinkInfo(raw.id, raw.type, raw.prog_id, details)


def iter_links() -> Iterator[LinkInfo]:
    """Every link on this machine, by id; one that goes meanwhile is left out.

    Raises:
        BpfError: Listing needs CAP_SYS_ADMIN.
    """
    return iter_by_id(
        uapi.LinkGetNextId,
        uapi.LinkGetFdById,
        "list BPF links",
        lambda fd, number: link_info(fd, str(number)),
        # EAGAIN: the link is being made, and has no id yet (bpf_link_by_id()).
        passed_over=(errno.ENOENT, errno.EAGAIN),
    )


# Where each kind wants the address and size of a buffer for a name.  Those of a perf event
# are at the same place whichever event it is.
_NAMES = {
    LinkType.RAW_TRACEPOINT: ("raw_tracepoint", "tp_name", "tp_name_len"),
    LinkType.ITER: ("iter", "target_name", "target_name_len"),
    LinkType.UPROBE_MULTI: ("uprobe_multi", "path", "path_size"),
    LinkType.PERF_EVENT: ("perf_event", "tracepoint.tp_name", "tracepoint.name_len"),
}


def _with_room(link_type: int, room: ctypes.Array[ctypes.c_char]) -> uapi.LinkInfo:
    """The question with a buffer for the name."""
    raw = uapi.LinkInfo()
    part, address, size = _NAMES[LinkType(link_type)]
    _set(getattr(raw, part), address, ctypes.addressof(room))
    _set(getattr(raw, part), size, len(room))
    return raw


def _set(struct: ctypes.Structure, field: str, value: int) -> None:
    outer, _, inner = field.rpartition(".")
    setattr(getattr(struct, outer) if outer else struct, inner, value)


def _tracing(raw: uapi.LinkInfo, _: str) -> Details:
    part = raw.tracing
    return TracingDetails(part.attach_type, part.target_obj_id, part.target_btf_id, part.cookie)


def _iter(raw: uapi.LinkInfo, target: str) -> Details:
    part = raw.iter
    if target == "cgroup":
        return IterDetails(target, cgroup_id=part.cgroup.cgroup_id, order=part.cgroup.order)
    if target.startswith("task"):
        return IterDetails(target, tid=part.task.tid, pid=part.task.pid)
    return IterDetails(target, map_id=part.map.map_id or None)


def _device(raw: uapi.LinkInfo, _: str) -> Details:
    part = raw.netkit if raw.type == LinkType.NETKIT else raw.tcx
    return DeviceDetails(part.ifindex, part.attach_type)


def _netfilter(raw: uapi.LinkInfo, _: str) -> Details:
    part = raw.netfilter
    return NetfilterDetails(part.pf, part.hooknum, part.priority, part.flags)


def _uprobe_multi(raw: uapi.LinkInfo, path: str) -> Details:
    part = raw.uprobe_multi
    return UprobeMultiDetails(path, part.count, part.flags, part.pid)


def _perf_event(raw: uapi.LinkInfo, name: str) -> Details:
    part = raw.perf_event
    kind = PerfEventType(part.type) if part.type in list(PerfEventType) else PerfEventType.UNSPEC
    if kind in (PerfEventType.KPROBE, PerfEventType.KRETPROBE):
        return PerfEventDetails(kind, name, part.kprobe.offset, part.kprobe.cookie)
    if kind in (PerfEventType.UPROBE, PerfEventType.URETPROBE):
        return PerfEventDetails(kind, name, part.uprobe.offset, part.uprobe.cookie)
    if kind is PerfEventType.TRACEPOINT:
        return PerfEventDetails(kind, name, 0, part.tracepoint.cookie)
    return PerfEventDetails(kind, "", 0, part.event.cookie)


_DETAILS: dict[int, Callable[[uapi.LinkInfo, str], Details]] = {
    LinkType.RAW_TRACEPOINT: lambda raw, name: RawTracepointDetails(
        name, raw.raw_tracepoint.cookie
    ),
    LinkType.TRACING: _tracing,
    LinkType.CGROUP: lambda raw, _: CgroupDetails(raw.cgroup.cgroup_id, raw.cgroup.attach_type),
    LinkType.ITER: _iter,
    LinkType.NETNS: lambda raw, _: NetnsDetails(raw.netns.netns_ino, raw.netns.attach_type),
    LinkType.XDP: lambda raw, _: DeviceDetails(raw.xdp.ifindex, None),
    LinkType.PERF_EVENT: _perf_event,
    LinkType.KPROBE_MULTI: lambda raw, _: KprobeMultiDetails(
        raw.kprobe_multi.count, raw.kprobe_multi.flags, raw.kprobe_multi.missed
    ),
    LinkType.STRUCT_OPS: lambda raw, _: StructOpsDetails(raw.struct_ops.map_id),
    LinkType.NETFILTER: _netfilter,
    LinkType.TCX: _device,
    LinkType.UPROBE_MULTI: _uprobe_multi,
    LinkType.NETKIT: _device,
    LinkType.SOCKMAP: lambda raw, _: SockmapDetails(raw.sockmap.map_id, raw.sockmap.attach_type),
}

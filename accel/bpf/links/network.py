"""Attaching to network devices and hooks by link: XDP, tcx, netkit, netfilter.

Devices are those of this thread's network namespace.  What kernels without these links
have instead is in netlink.py.
"""

from __future__ import annotations

import errno
import os
import socket
from enum import IntEnum
from typing import Literal

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.links import netlink
from accel.bpf.links.link import Link, by_link
from accel.bpf.links.link_info import DeviceDetails, iter_links
from accel.bpf.links.order import ANYWHERE, Order
from accel.bpf.loading.prog_load import type_name
from accel.bpf.loading.program import Program

Mode = Literal["generic", "driver", "offload"]
Direction = Literal["ingress", "egress"]

# include/uapi/linux/if_link.h: XDP_FLAGS_*_MODE; 0 leaves it to the kernel.
_MODES: dict[Mode | None, int] = {None: 0, "generic": 1 << 1, "driver": 1 << 2, "offload": 1 << 3}

_TCX: dict[Direction, AttachType] = {
    "ingress": AttachType.TCX_INGRESS,
    "egress": AttachType.TCX_EGRESS,
}


class Hook(IntEnum):
    """enum nf_inet_hooks: NF_INET_*."""

    PRE_ROUTING = 0
    LOCAL_IN = 1
    FORWARD = 2
    LOCAL_OUT = 3
    POST_ROUTING = 4


def attach_xdp(program: Program, device: str | int, *, mode: Mode | None = None) -> Link:
    """Run an XDP program on every packet a network device receives.

    By link; on kernels before 5.9 by netlink, with the manners of one while this process
    lives, which that attachment outlives: `ip link set dev NAME xdp off` ends it then.

    Args:
        device: Name or ifindex.
        mode: "driver" in the device's driver, "generic" after it, "offload" on the device;
            None for the first that works.

    Raises:
        BpfError: EBUSY when the device has an XDP program; EOPNOTSUPP when its driver has
            no XDP, or not for this mode.
    """
    action = f"attach program {program.name} to {device}"
    ifindex = find_device(device, action)
    attr = uapi.LinkCreate(
        prog_fd=program.fileno(),
        target_fd=ifindex,
        attach_type=AttachType.XDP,
        flags=_MODES[mode],
    )
    try:
        return by_link(
            attr,
            action,
            f"of program {program.name} to {device}",
            has_links=probe.xdp_links,
            otherwise=lambda: netlink.attach_xdp(program, ifindex, _MODES[mode], action),
        )
    except BpfError as error:
        raise _explain_xdp(error, program, ifindex, mode) from None


def _explain_xdp(error: BpfError, program: Program, ifindex: int, mode: Mode | None) -> BpfError:
    remedy = error.remedy
    if error.errno in (errno.EBUSY, errno.EEXIST):
        holder = _xdp_link_of(ifindex)
        remedy = (
            f"close link {holder}, which has the device"
            if holder
            else "detach the device's XDP program first: ip link set dev NAME xdp off"
        )
    elif error.errno == errno.EOPNOTSUPP and mode != "generic":
        remedy = "try mode='generic', which needs nothing of the driver"
    elif error.errno == errno.ERANGE:
        remedy = 'load a program of SEC("xdp.frags"), or lower the device\'s MTU'
    elif error.errno == errno.EINVAL and program.type != ProgramType.XDP:
        remedy = f"attach an XDP program; this is a {type_name(program.type)}"
    return BpfError(error.action, error.errno, remedy=remedy)


def _xdp_link_of(ifindex: int) -> int | None:
    """Id of the link that has a device; it may be one of the same number elsewhere."""
    try:
        for info in iter_links():
            if info.type == uapi.LinkType.XDP and info.details == DeviceDetails(ifindex, None):
                return info.id
    except BpfError:
        return None
    return None


def attach_tc(program: Program, device: str | int, direction: Direction) -> Link:
    """Run a SCHED_CLS program on what a device receives ("ingress") or sends ("egress").

    By tcx link; on kernels before 6.6 as a direct-action filter of the clsact qdisc, with
    the manners of a link while this process lives, which that filter outlives: see
    attach_clsact().

    Raises:
        BpfError: ENODEV when there is no such device.
    """
    try:
        return attach_tcx(program, device, direction)
    except NotSupported:
        return attach_clsact(program, device, direction)


def attach_tcx(
    program: Program, device: str | int, direction: Direction, *, order: Order = ANYWHERE
) -> Link:
    """Run a SCHED_CLS program on what a device receives or sends, by tcx link (Linux 6.6).

    Args:
        order: Its place among the tcx programs of this device and direction.

    Raises:
        BpfError: ESTALE when the programs are not those of the expected revision.
        NotSupported: The kernel has no tcx.
    """
    return _attach_ordered(program, device, _TCX[direction], order, direction)


def attach_netkit(
    program: Program, device: str | int, *, peer: bool = False, order: Order = ANYWHERE
) -> Link:
    """Run a SCHED_CLS program on what a netkit device, or its peer, sends (Linux 6.7).

    Args:
        device: The primary device.
        peer: Run it for the peer, which is usually in another namespace.
        order: Its place among the programs there.

    Raises:
        BpfError: ENXIO or EACCES when the device is no primary netkit device.
    """
    attach_type = AttachType.NETKIT_PEER if peer else AttachType.NETKIT_PRIMARY
    return _attach_ordered(program, device, attach_type, order, "netkit")


def _attach_ordered(
    program: Program, device: str | int, attach_type: AttachType, order: Order, side: str
) -> Link:
    action = f"attach program {program.name} to {side} of {device}"
    attr = uapi.LinkCreate(
        prog_fd=program.fileno(), target_fd=find_device(device, action), attach_type=attach_type
    )
    order.fill(attr, attr.tcx)
    try:
        fd = syscall.link_create(attr, action)
    except BpfError as error:
        raise _explain_ordered(error, program, attach_type, order) from None
    return Link(fd, f"of program {program.name} to {side} of {device}")


def _explain_ordered(
    error: BpfError, program: Program, attach_type: AttachType, order: Order
) -> BpfError:
    remedy = error.remedy
    if error.errno == errno.ESTALE:
        remedy = "query() again: programs came or went since that revision"
    elif error.errno == errno.ENOENT and order.anchor is not None:
        remedy = f"stand beside a program of the same device: {order.anchor!r} is not there"
    elif error.errno == errno.ERANGE:
        remedy = "detach one of the 63 programs already there"
    elif error.errno == errno.EINVAL and program.type != ProgramType.SCHED_CLS:
        remedy = f"attach a SCHED_CLS program; this is a {type_name(program.type)}"
    elif error.errno == errno.EINVAL and probe.tcx_links() is probe.Answer.NO:
        since = (6, 6) if attach_type in _TCX.values() else (6, 7)
        return NotSupported(f"{error.action} by link", since, errno=errno.EINVAL)
    return BpfError(error.action, error.errno, remedy=remedy)


def attach_clsact(
    program: Program,
    device: str | int,
    direction: Direction,
    *,
    priority: int = 1,
) -> Link:
    """Run a SCHED_CLS program as a direct-action filter of a device's clsact qdisc.

    The qdisc is made when the device has none, and removed with the last filter this process
    has there, if it was made by this process and others have none there.  Filter and qdisc
    stay if this process dies: `tc qdisc del dev NAME clsact` ends them then.

    Args:
        priority: Lower runs first; 1 to 65535.

    Raises:
        BpfError: EEXIST when the device has an ingress qdisc instead.
    """
    action = f"attach program {program.name} to {direction} of {device}"
    ifindex = find_device(device, action)
    return netlink.attach_clsact(
        program, ifindex, _TCX[direction], priority=priority, action=action
    )


def attach_netfilter(
    program: Program,
    *,
    family: int = socket.AF_INET,
    hook: Hook | int,
    priority: int = 0,
    defragment: bool = False,
) -> Link:
    """Run a NETFILTER program at a hook of this thread's network namespace (Linux 6.4).

    Args:
        family: AF_INET or AF_INET6.
        priority: Lower runs first; the two extremes are the kernel's own.
        defragment: Put fragments together before, for which `priority` must be above
            that of connection tracking's defragmentation, -400.

    Raises:
        BpfError: EINVAL for a hook or priority that is not allowed; EAFNOSUPPORT.
    """
    action = f"attach program {program.name} to netfilter hook {int(hook)}"
    attr = uapi.LinkCreate(prog_fd=program.fileno(), attach_type=AttachType.NETFILTER)
    part = attr.netfilter
    part.pf, part.hooknum, part.priority = family, hook, priority
    part.flags = uapi.BPF_F_NETFILTER_IP_DEFRAG if defragment else 0
    fd = syscall.link_create(attr, action)
    return Link(fd, f"of program {program.name} to netfilter hook {int(hook)}")


def find_device(device: str | int, action: str) -> int:
    """The ifindex of a device of this thread's network namespace.

    Raises:
        BpfError: ENODEV when there is none of that name.
    """
    if isinstance(device, int):
        return device
    try:
        return socket.if_nametoindex(device)
    except OSError as error:
        raise BpfError(
            action,
            error.errno or errno.ENODEV,
            remedy=f"name a device of this network namespace ({os.readlink('/proc/thread-self/ns/net')})",
        ) from None

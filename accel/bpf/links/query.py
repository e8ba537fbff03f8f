"""What is attached to a target, asked of the kernel (BPF_PROG_QUERY)."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, NamedTuple

from accel.bpf.door import syscall, uapi
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType
from accel.bpf.links.descriptors import open_path
from accel.bpf.links.network import find_device
from accel.bpf.maps.map import Map

_FIRST_ROOM = 64
_ON_DEVICES = (
    AttachType.TCX_INGRESS,
    AttachType.TCX_EGRESS,
    AttachType.NETKIT_PRIMARY,
    AttachType.NETKIT_PEER,
)


class Attached(NamedTuple):
    """One program attached to a target.

    Attributes:
        link_id: Of the link that attaches it; 0 without one, None where the kernel does
            not tell.
    """

    program_id: int
    link_id: int | None


class Attachments(NamedTuple):
    """What is attached to a target, in the order in which it runs.

    Attributes:
        flags: Of a cgroup: BPF_F_ALLOW_MULTI and its like; 0 for other targets.
        revision: Counts the changes of the row, for Order.at_revision(); 0 where the
            kernel keeps no count.
    """

    programs: tuple[Attached, ...]
    flags: int
    revision: int


def query(
    target: str | int | os.PathLike[str] | Map[Any, Any],
    attach_type: int,
    *,
    effective: bool = False,
) -> Attachments:
    """Ask which programs of one attach type a target has.

    Args:
        target: A cgroup's directory; a network namespace as /proc/PID/ns/net; for tcx and
            netkit a device of this thread's network namespace, by name or ifindex; a
            sockmap or sockhash.
        effective: Of a cgroup, also what its ancestors pass on.

    Raises:
        BpfError: EINVAL when that attach type is not for such a target.
    """
    action = f"ask what is attached to {target}"
    attr = uapi.ProgQuery(attach_type=attach_type)
    if effective:
        attr.query_flags = uapi.BPF_F_QUERY_EFFECTIVE
    if isinstance(target, Map):
        attr.target_fd = target.fileno()
        return _ask(attr, action, tells_links=False)
    if attach_type in _ON_DEVICES:
        device = target if isinstance(target, int) else os.fspath(target)
        attr.target_fd = find_device(device, action)
        return _ask(attr, action, tells_links=True)
    if isinstance(target, int):
        raise BpfError(action, errno.EINVAL, remedy="name the target by its path")
    with open_path(target, action) as fd:
        attr.target_fd = fd.fileno()
        return _ask(attr, action, tells_links=False)


def _ask(attr: uapi.ProgQuery, action: str, *, tells_links: bool) -> Attachments:
    room = _FIRST_ROOM
    while True:
        programs, links = (ctypes.c_uint32 * room)(), (ctypes.c_uint32 * room)()
        attr.prog_ids, attr.prog_cnt, attr.attach_flags = ctypes.addressof(programs), room, 0
        if tells_links:
            attr.link_ids = ctypes.addressof(links)
        try:
            syscall.prog_query(attr, action)
        except BpfError as error:
            if error.errno != errno.ENOSPC or attr.prog_cnt <= room:
                raise
            room = attr.prog_cnt
            continue
        count = attr.prog_cnt
        link_ids = links[:count] if tells_links else [None] * count
        return Attachments(
            tuple(map(Attached, programs[:count], link_ids)), attr.attach_flags, attr.revision
        )

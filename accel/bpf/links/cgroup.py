"""Attaching to cgroups: by link, and as kernels before 5.7 do it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from accel.bpf.door import pin, probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.links.descriptors import open_path
from accel.bpf.links.link import EmulatedLink, Link, by_link
from accel.bpf.links.link_info import CgroupDetails, LinkInfo
from accel.bpf.links.order import ANYWHERE, Order
from accel.bpf.links.query import query
from accel.bpf.loading.prog_load import type_name
from accel.bpf.loading.program import Program

# Program types that attach in one way only, for programs opened from pins.
_ONLY_ATTACH_TYPE: dict[int, int] = {
    ProgramType.SOCK_OPS: AttachType.CGROUP_SOCK_OPS,
    ProgramType.CGROUP_DEVICE: AttachType.CGROUP_DEVICE,
    ProgramType.CGROUP_SYSCTL: AttachType.CGROUP_SYSCTL,
}


def attach_cgroup(
    program: Program,
    cgroup: str | os.PathLike[str],
    *,
    attach_type: int | None = None,
    order: Order = ANYWHERE,
) -> Link:
    """Attach a program to a cgroup v2 directory and all below it, beside what is there.

    A kernel without cgroup links (before 5.7) gets it by BPF_PROG_ATTACH.  That attachment
    has the same manners while this process lives, but cannot be pinned, and stays if this
    process dies.

    Args:
        attach_type: A BPF_CGROUP_* attach type; None for the program's own.
        order: Its place among the programs of this cgroup (Linux 6.17).

    Raises:
        BpfError: With the reason where it can be found: not a cgroup v2
            directory, or another program that tolerates no second.
    """
    path = os.fspath(cgroup)
    action = f"attach program {program.name} to cgroup {path}"
    wanted = program.attach_type if attach_type is None else attach_type
    if wanted is None:
        wanted = _ONLY_ATTACH_TYPE.get(program.type)
    if wanted is None:
        raise BpfError(
            f"{action}: a {type_name(program.type)} program attaches in several ways",
            errno.EINVAL,
            remedy="say which, by attach_type",
        )
    what = f"of program {program.name} to cgroup {path}"
    with _open_cgroup(path, action) as directory:
        attr = uapi.LinkCreate(
            prog_fd=program.fileno(), target_fd=directory.fileno(), attach_type=wanted
        )
        order.fill(attr, attr.cgroup)
        try:
            if order != ANYWHERE:
                return Link(syscall.link_create(attr, action), what)
            return by_link(
                attr,
                action,
                what,
                has_links=probe.cgroup_links,
                otherwise=lambda: _MultiAttachment(program, directory, what, wanted).begin(action),
            )
        except BpfError as error:
            raise _explain(error, path, wanted, order) from None


class _MultiAttachment(EmulatedLink):
    """A program attached by BPF_PROG_ATTACH, beside what else tolerates company."""

    def __init__(self, program: Program, directory: Fd, what: str, attach_type: int) -> None:
        details = CgroupDetails(os.fstat(directory.fileno()).st_ino, attach_type)
        info = LinkInfo(0, uapi.LinkType.CGROUP, program.id, details)
        super().__init__(program, directory, what, info)
        self._attach_type = attach_type

    def _begin(self, attached: Fd, action: str) -> None:
        syscall.prog_attach(
            self._target, attached, self._attach_type, uapi.BPF_F_ALLOW_MULTI, action
        )

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        flags = uapi.BPF_F_ALLOW_MULTI | uapi.BPF_F_REPLACE
        try:
            syscall.prog_attach(
                self._target, program, self._attach_type, flags, action, replace=old
            )
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            raise BpfError(
                action,
                error.errno,
                remedy="close this and attach anew: kernels before 5.6 exchange no program in "
                "place, and none one of another type",
            ) from None

    def _end(self, attached: Fd, action: str) -> None:
        syscall.prog_detach(self._target, attached, self._attach_type, action)


def _open_cgroup(path: str, action: str) -> Fd:
    remedy = f"create the cgroup {path}, or name another"
    return open_path(path, action, directory=True, remedy=remedy)


def _explain(error: BpfError, path: str, attach_type: int, order: Order) -> BpfError:
    """The same error with what the circumstances say about it."""
    remedy = None
    if not _on_cgroup2(path):
        remedy = f"name a cgroup v2 directory; {path} is none (mount -t cgroup2)"
    elif error.errno in (errno.EPERM, errno.EBUSY):
        remedy = _find_rival(path, attach_type)
    elif error.errno == errno.E2BIG:
        remedy = "detach one of the 64 programs already there"
    elif error.errno == errno.ESTALE:
        remedy = "query() again: programs came or went since that revision"
    elif error.errno == errno.ENOENT and order.anchor is not None:
        remedy = f"stand beside a program of the same cgroup: {order.anchor!r} is not there"
    elif error.errno == errno.EINVAL and order != ANYWHERE:
        remedy = "run Linux 6.17 or later to order programs of a cgroup, or give no order"
    return BpfError(error.action, error.errno, remedy=remedy) if remedy else error


def _on_cgroup2(path: str) -> bool:
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
        return os.stat(path).st_dev in pin.devices_of(mounts, "cgroup2")
    except OSError:
        return True  # nothing known, so nothing blamed


def _find_rival(path: str, attach_type: int) -> str | None:
    """Who keeps us from attaching to `path`.

    A link shares a cgroup only with programs attached with BPF_F_ALLOW_MULTI,
    and an ancestor's program attached with no flag at all admits none below it
    (hierarchy_allows_attach() and __cgroup_bpf_attach(), kernel/bpf/cgroup.c).
    """
    cgroup = Path(path).resolve()
    for place in (cgroup, *cgroup.parents):
        if not _on_cgroup2(str(place)):
            return None
        try:
            attached = query(place, attach_type)
        except BpfError:
            return None
        tolerant = uapi.BPF_F_ALLOW_MULTI
        if place != cgroup:
            tolerant |= uapi.BPF_F_ALLOW_OVERRIDE
        if attached.programs and not attached.flags & tolerant:
            ids = ", ".join(str(program.program_id) for program in attached.programs)
            return (
                f"detach program {ids} from cgroup {place}: "
                "it was attached without BPF_F_ALLOW_MULTI and tolerates no other"
            )
    return None

"""Attaching: programs to cgroups, to sockhashes, to iterators."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.bpf import pin, probe, syscall, uapi
from accel.bpf.closing import Closing
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.fd import Fd
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.map import Map
from accel.bpf.program import Program, type_name

# Program types that attach in one way only, for programs opened from pins.
_ONLY_ATTACH_TYPE: dict[int, int] = {
    ProgramType.SOCK_OPS: AttachType.CGROUP_SOCK_OPS,
    ProgramType.CGROUP_DEVICE: AttachType.CGROUP_DEVICE,
    ProgramType.CGROUP_SYSCTL: AttachType.CGROUP_SYSCTL,
}

_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link.

    Attributes:
        id: Unique until reboot.
        type: A BPF_LINK_TYPE_* number.
        program_id: Of the program it attaches now.
        cgroup_id: Of the cgroup; 0 once that is gone; None for other links.
        attach_type: A BPF_* attach type of a cgroup link, or None.
    """

    id: int
    type: int
    program_id: int
    cgroup_id: int | None
    attach_type: int | None


class Link(Closing):
    """One attachment, held by a descriptor; without descriptors and pins it ends."""

    def __init__(self, fd: Fd, what: str) -> None:
        """Not for direct use: see attach_cgroup(), attach_iter() and from_pin()."""
        self._fd = fd
        self._what = what

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Link:
        """Open a pinned link.

        Raises:
            BpfError: Nothing is pinned there, or it may not be opened.
            ShapeError: It is no link.
        """
        return cls(pin.open_pin(path, "link"), f"pinned at {os.fspath(path)}")

    @property
    def closed(self) -> bool:
        return self._fd.closed

    def fileno(self) -> int:
        return self._fd.fileno()

    def info(self) -> LinkInfo:
        """What the kernel says of it."""
        raw = syscall.obj_get_info_by_fd(
            self._fd, uapi.CgroupLinkInfo, f"ask about link {self._what}"
        )
        is_cgroup = raw.type == uapi.LinkType.CGROUP
        return LinkInfo(
            id=raw.id,
            type=raw.type,
            program_id=raw.prog_id,
            cgroup_id=raw.cgroup_id if is_cgroup else None,
            attach_type=raw.attach_type if is_cgroup else None,
        )

    def update(self, program: Program) -> None:
        """Exchange the program atomically: no event meets neither, or both.

        Raises:
            BpfError: ENOLINK when what it was attached to is gone.
        """
        action = f"put program {program.name} into link {self._what}"
        try:
            syscall.link_update(self._fd, program, action)
        except BpfError as error:
            if error.errno != errno.ENOLINK:
                raise
            raise BpfError(
                action, error.errno, remedy="attach anew: the cgroup of this link was removed"
            ) from None

    def detach(self) -> None:
        """End the attachment now, whoever else holds the link; the link stays as a husk.

        Detaching twice, or after the cgroup went, does nothing.
        """
        syscall.link_detach(self._fd, f"detach link {self._what}")

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpf file system, under which it outlives this process."""
        pin.pin(self._fd, path, f"link {self._what}")

    def close(self) -> None:
        """Let go of it; if nothing else holds it, the attachment ends."""
        self._fd.close()

    def __repr__(self) -> str:
        return f"<Link {self._what}{', closed' if self.closed else ''}>"


# --- cgroups -------------------------------------------------------------------------------


def attach_cgroup(
    program: Program, cgroup: str | os.PathLike[str], *, attach_type: int | None = None
) -> Link:
    """Attach a program to a cgroup v2 directory and all below it, beside what is there.

    Args:
        attach_type: A BPF_CGROUP_* attach type; None for the program's own.

    Raises:
        BpfError: With the reason where it can be found: not a cgroup v2
            directory, or another program that tolerates no second.
        NotSupported: The kernel has no cgroup links.
    """
    path = os.fspath(cgroup)
    action = f"attach program {program.name} to cgroup {path}"
    wanted = attach_type or program.attach_type or _ONLY_ATTACH_TYPE.get(program.type)
    if wanted is None:
        raise BpfError(
            f"{action}: a {type_name(program.type)} program attaches in several ways",
            errno.EINVAL,
            remedy="say which, by attach_type",
        )
    with _open_directory(path, action) as directory:
        attr = uapi.LinkCreate(
            prog_fd=program.fileno(), target_fd=directory.fileno(), attach_type=wanted
        )
        try:
            fd = syscall.link_create(attr, action)
        except BpfError as error:
            raise _explain_cgroup(error, path, wanted) from None
    return Link(fd, f"of program {program.name} to cgroup {path}")


def _open_directory(path: str, action: str) -> Fd:
    try:
        return Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise BpfError(
            action, error.errno or errno.EIO, remedy=f"create the cgroup {path}, or name another"
        ) from error


def _explain_cgroup(error: BpfError, path: str, attach_type: int) -> BpfError:
    """The same error with what the circumstances say about it."""
    if not _on_cgroup2(path):
        return BpfError(
            error.action,
            error.errno,
            remedy=f"name a cgroup v2 directory; {path} is none (mount -t cgroup2)",
        )
    if error.errno in (errno.EPERM, errno.EBUSY):
        rival = _find_rival(path, attach_type)
        if rival is not None:
            return BpfError(error.action, error.errno, remedy=rival)
    if error.errno == errno.E2BIG:
        return BpfError(
            error.action, error.errno, remedy="detach one of the 64 programs already there"
        )
    if error.errno == errno.EINVAL and probe.cgroup_links() is probe.Answer.NO:
        return NotSupported("attach programs to cgroups by link", (5, 7))
    return error


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
        with _open_directory(str(place), f"look at cgroup {place}") as directory:
            try:
                flags, ids = syscall.prog_query(
                    directory, attach_type, f"ask what is attached to cgroup {place}"
                )
            except BpfError:
                return None
        tolerant = uapi.BPF_F_ALLOW_MULTI
        if place != cgroup:
            tolerant |= uapi.BPF_F_ALLOW_OVERRIDE
        if ids and not flags & tolerant:
            return (
                f"detach program {', '.join(map(str, ids))} from cgroup {place}: "
                "it was attached without BPF_F_ALLOW_MULTI and tolerates no other"
            )
    return None


# --- sockhashes ----------------------------------------------------------------------------


def attach_sk_msg(program: Program, map: Map[Any, Any]) -> None:
    """Run an sk_msg program on every message of sockets that enter `map` from now on.

    Takes the place of any other; there is no link and nothing to close.  A
    socket keeps the program it found when it was inserted.

    Raises:
        BpfError: EOPNOTSUPP when the map holds no sockets; EBUSY when a link
            holds the place.
    """
    action = f"attach program {program.name} to map {map.name}"
    try:
        syscall.prog_attach(map, program, AttachType.SK_MSG_VERDICT, 0, action)
    except BpfError as error:
        if error.errno != errno.EBUSY:
            raise
        raise BpfError(
            action, error.errno, remedy="close the link that attaches another program to this map"
        ) from None


def detach_sk_msg(program: Program, map: Map[Any, Any]) -> None:
    """Take the program off the map; sockets already in it keep it.

    Raises:
        BpfError: ENOENT when another program, or none, is attached.
    """
    syscall.prog_detach(
        map,
        program,
        AttachType.SK_MSG_VERDICT,
        f"detach program {program.name} from map {map.name}",
    )


# --- iterators -----------------------------------------------------------------------------


def attach_iter(program: Program, map: Map[Any, Any] | None = None) -> Link:
    """Make an iterator of a program; read_iter() runs it.

    Args:
        map: What to iterate over, for iterators over a map's elements.

    Raises:
        BpfError: EINVAL when this iterator needs a map, or another kind of one.
    """
    over = "" if map is None else f" over map {map.name}"
    attr = uapi.LinkCreate(prog_fd=program.fileno(), attach_type=AttachType.TRACE_ITER)
    target = uapi.IterLinkInfoMap()
    if map is not None:
        target.map_fd = map.fileno()
        attr.iter_info = ctypes.addressof(target)
        attr.iter_info_len = ctypes.sizeof(target)
    fd = syscall.link_create(attr, f"attach iterator {program.name}{over}")
    return Link(fd, f"of iterator {program.name}{over}")


def read_iter(link: Link) -> Iterator[bytes]:
    """Run the iterator once and yield what it writes, in chunks.

    A chunk may end anywhere: records continue in the next.

    Raises:
        BpfError: The iterator failed on its way.
    """
    with syscall.iter_create(link, f"run {link!r}") as fd:
        while True:
            try:
                chunk = os.read(fd.fileno(), _READ_BYTES)
            except BlockingIOError:
                # bpf_seq_read() pauses after 1,000,000 objects without output.
                continue
            except OSError as error:
                raise BpfError(f"read {link!r}", error.errno or errno.EIO) from error
            if not chunk:
                return
            yield chunk

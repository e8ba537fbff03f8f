"""Links: attachments that have an owner, can be pinned, and change programs in place.

What makes them is in attach.py and the modules for each family of targets.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

from accel.bpf.closing import Closing
from accel.bpf.door import pin, probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.uapi import LinkType
from accel.bpf.errors import BpfError
from accel.bpf.links.descriptors import duplicate
from accel.bpf.links.link_info import LinkInfo, link_info
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map

# What a link of that type is attached to, and may outlive.
_TARGETS: dict[int, str] = {
    LinkType.CGROUP: "cgroup",
    LinkType.NETNS: "network namespace",
    LinkType.XDP: "network device",
    LinkType.TCX: "network device",
    LinkType.NETKIT: "network device",
    LinkType.SOCKMAP: "map",
}
# Types whose struct bpf_link_ops, or its update_prog, is made to refuse.
_NOT_UPDATED = (
    LinkType.RAW_TRACEPOINT,
    LinkType.TRACING,
    LinkType.PERF_EVENT,
    LinkType.KPROBE_MULTI,
    LinkType.NETFILTER,
    LinkType.UPROBE_MULTI,
)

# How the kernel says that what was to be detached or replaced is not there.
_GONE = (errno.ENOENT, errno.ENODEV)


class Link(Closing):
    """One attachment, held by a descriptor; without descriptors and pins it ends."""

    def __init__(self, fd: Fd, what: str) -> None:
        """Not for direct use: see attach(), from_pin() and from_id()."""
        self._fd = fd
        self._what = what

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Link:
        """Open a pinned link.

        Raises:
            BpfError: Nothing is pinned there, or it may not be opened.
            ShapeError: It is no link.
        """
        return Link(pin.open_pin(path, "link"), f"pinned at {os.fspath(path)}")

    @classmethod
    def from_id(cls, number: int) -> Link:
        """Open a link by the kernel's number for it, as iter_links() tells it.

        Raises:
            BpfError: ENOENT when there is none; EPERM without CAP_SYS_ADMIN.
        """
        action = f"open link {number}"
        return Link(syscall.get_fd_by_id(uapi.LinkGetFdById, number, action), str(number))

    @property
    def closed(self) -> bool:
        return self._fd.closed

    def fileno(self) -> int:
        return self._fd.fileno()

    def info(self) -> LinkInfo:
        """What the kernel says of it."""
        return link_info(self._fd, self._what)

    def update(self, program: Program, *, expected: Program | None = None) -> None:
        """Exchange the program atomically: no event meets neither, or both.

        Args:
            expected: Only if this program is in its place now.

        Raises:
            BpfError: ENOLINK when what it was attached to is gone; EPERM when another
                than the expected program is there; EINVAL or EOPNOTSUPP for kinds of
                links that keep their program for life, as those of tracing.
        """
        action = f"put program {program.name} into link {self._what}"
        self._exchange(program, expected, action)

    def update_map(self, map: Map[Any, Any], *, expected: Map[Any, Any] | None = None) -> None:
        """Exchange the table of callbacks of a struct_ops link atomically.

        Args:
            map: With its table written, by write_struct_ops().

        Raises:
            BpfError: It is no struct_ops link, or the map is not ready for one.
        """
        self._exchange(map, expected, f"put map {map.name} into link {self._what}")

    def _exchange(
        self, new: syscall.HasFileno, expected: syscall.HasFileno | None, action: str
    ) -> None:
        try:
            syscall.link_update(self._fd, new, action, old=expected)
        except BpfError as error:
            remedy = self._why_not_updated(error.errno, expected is not None)
            raise BpfError(action, error.errno, remedy=remedy or error.remedy) from None

    def _why_not_updated(self, number: int, conditional: bool) -> str | None:
        link_type = self.info().type
        if number == errno.ENOLINK:
            target = _TARGETS.get(link_type, "target")
            return f"attach anew: the {target} of this link was removed"
        if number in (errno.EINVAL, errno.EOPNOTSUPP) and link_type in _NOT_UPDATED:
            return (
                f"attach the other program beside it, then close this: a {LinkType(link_type).name}"
                " link keeps its program for life"
            )
        if number == errno.EPERM and conditional:
            return "look at info() again: another program is in its place than was expected"
        return None

    def detach(self) -> None:
        """End the attachment now, whoever else holds the link; the link stays as a husk.

        Detaching twice, or after the target went, does nothing.

        Raises:
            BpfError: EOPNOTSUPP for kinds that end only when nobody holds them, as
                those of tracing.
        """
        action = f"detach link {self._what}"
        try:
            syscall.link_detach(self._fd, action)
        except BpfError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise BpfError(
                action,
                error.errno,
                remedy="close it and remove its pins: a link of this kind, or any on this kernel, "
                "ends when nobody holds it",
            ) from None

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpf file system, under which it outlives this process."""
        pin.pin(self._fd, path, f"link {self._what}")

    def close(self) -> None:
        """Let go of it; if nothing else holds it, the attachment ends."""
        self._fd.close()

    def __repr__(self) -> str:
        return f"<Link {self._what}{', closed' if self.closed else ''}>"


def by_link(
    attr: uapi.LinkCreate,
    action: str,
    what: str,
    *,
    has_links: Callable[[], probe.Answer],
    otherwise: Callable[[], Link],
) -> Link:
    """Attach by link; on a kernel that has none of this kind, in the older way.

    EINVAL says that there are no such links, and much besides.  So the kernel is asked, lest
    the older way do what the newer refused for a reason.

    Args:
        what: The link in words, as in "of program watch to eth0".
        has_links: The probe for this kind.

    Raises:
        BpfError: The kernel refused the link, or the older way.
    """
    try:
        return Link(syscall.link_create(attr, action), what)
    except BpfError as error:
        if error.errno != errno.EINVAL or has_links() is not probe.Answer.NO:
            raise
    return otherwise()


class EmulatedLink(Link):
    """An attachment the kernel has no link of, in the manners of one.

    It ends with close(), at the end of a `with`, but not when this process dies: what is
    attached without a link stays until somebody detaches it.
    """

    def __init__(
        self,
        attached: Program | Map[Any, Any],
        target: syscall.HasFileno,
        what: str,
        info: LinkInfo,
    ) -> None:
        """Not for direct use: see attach().  begin() attaches.

        Args:
            attached, target: May be closed by their owners from now on.
            info: With the id 0.
        """
        with ExitStack() as undo:
            fd = undo.enter_context(duplicate(attached, f"make link {what}"))
            self._target = undo.enter_context(duplicate(target, f"make link {what}"))
            super().__init__(fd, what)
            undo.pop_all()
        self._info = info
        self._attached = False

    def begin(self, action: str) -> Self:
        """Attach.  All else that may fail was done before, so it is attached and held, or neither.

        Raises:
            BpfError: The kernel refused; the link is closed.
        """
        try:
            self._begin(self._fd, action)
        except BaseException:
            self.close()
            raise
        self._attached = True
        return self

    def fileno(self) -> int:
        """Nothing stands behind it.

        Raises:
            BpfError: Always.
        """
        raise self._no_link("take the descriptor of")

    def info(self) -> LinkInfo:
        """What is known of it; it has no id."""
        return self._info

    def update(self, program: Program, *, expected: Program | None = None) -> None:
        """Exchange the program; not atomic for every kind.

        In a map of sockets there is none for a moment: sockets that enter it just then get
        none.  What others attached in the place meanwhile is left alone.

        Raises:
            BpfError: ENOLINK when this link's program is attached no more; EPERM when that,
                or its being another, differs from what was expected; EOPNOTSUPP for kinds
                that keep their program for life.
        """
        action = f"put program {program.name} into link {self._what}"
        if not self._attached:
            raise BpfError(action, errno.ENOLINK, remedy="attach anew: it was detached")
        if expected is not None and expected.id != self._info.program_id:
            raise BpfError(action, errno.EPERM, remedy="look at info() again")
        info = replace(self._info, program_id=program.id)
        fresh = duplicate(program, action)
        try:
            self._replace(program, self._fd, action)
        except BaseException as error:
            fresh.close()
            if not isinstance(error, BpfError) or error.errno not in _GONE:
                raise
            raise BpfError(
                action,
                errno.ENOLINK if expected is None else errno.EPERM,
                remedy="attach anew: others detached this link's program, or put theirs there",
            ) from None
        before, self._fd, self._info = self._fd, fresh, info
        before.close()

    def update_map(self, map: Map[Any, Any], *, expected: Map[Any, Any] | None = None) -> None:
        raise self._no_link(f"put map {map.name} into")

    def detach(self) -> None:
        """End the attachment; a second time does nothing."""
        if not self._attached:
            return
        try:
            self._end(self._fd, f"detach link {self._what}")
        except BpfError as error:
            # Somebody else detached it, or its target went: what we wanted.
            if error.errno not in _GONE:
                raise
        self._attached = False

    def pin(self, path: str | os.PathLike[str]) -> None:
        raise self._no_link("pin")

    def close(self) -> None:
        """End the attachment."""
        if self.closed:
            return
        try:
            self.detach()
        finally:
            self._fd.close()
            self._target.close()

    @abstractmethod
    def _begin(self, attached: Fd, action: str) -> None:
        """Attach it to `self._target`."""

    @abstractmethod
    def _replace(self, program: Program, old: Fd, action: str) -> None:
        """Put `program` where the one behind `old` is; ENOENT and ENODEV say it is not there."""

    @abstractmethod
    def _end(self, attached: Fd, action: str) -> None:
        """Detach it; ENOENT and ENODEV say that there is nothing to detach."""

    def _no_link(self, wish: str) -> BpfError:
        return BpfError(
            f"{wish} link {self._what}",
            errno.EOPNOTSUPP,
            remedy="keep it open in this process: the kernel has no link of this attachment",
        )

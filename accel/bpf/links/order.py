"""Where among the programs of one target a new one goes: first, last, or beside another."""

from __future__ import annotations

from typing import Any, NamedTuple

from accel.bpf.door import uapi
from accel.bpf.links.link import Link
from accel.bpf.loading.program import Program


class Order(NamedTuple):
    """A place in the row of programs; see first(), last(), before() and after().

    Attributes:
        flags: BPF_F_BEFORE or BPF_F_AFTER; 0 leaves it to the kernel, which appends.
        anchor: What to stand beside; None for the end of the row.
        revision: Only if the row has not changed since query() told this; 0 for any.
    """

    flags: int = 0
    anchor: Program | Link | None = None
    revision: int = 0

    @classmethod
    def first(cls) -> Order:
        """Before all that are there now."""
        return cls(uapi.BPF_F_BEFORE)

    @classmethod
    def last(cls) -> Order:
        """After all that are there now."""
        return cls(uapi.BPF_F_AFTER)

    @classmethod
    def before(cls, anchor: Program | Link) -> Order:
        """Right before a program, or that of a link."""
        return cls(uapi.BPF_F_BEFORE, anchor)

    @classmethod
    def after(cls, anchor: Program | Link) -> Order:
        """Right after a program, or that of a link."""
        return cls(uapi.BPF_F_AFTER, anchor)

    def at_revision(self, revision: int) -> Order:
        """The same place, but only if the row is still as query() told."""
        return self._replace(revision=revision)

    def fill(self, attr: uapi.LinkCreate, part: Any) -> None:
        """Ask for this place.

        Args:
            part: The part of `attr` for the kind of link: tcx, netkit or cgroup.
        """
        attr.flags |= self.flags
        part.expected_revision = self.revision
        if self.anchor is None:
            return
        part.relative_fd = self.anchor.fileno()
        if isinstance(self.anchor, Link):
            attr.flags |= uapi.BPF_F_LINK


ANYWHERE = Order()

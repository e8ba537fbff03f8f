"""Iterators: programs that the kernel runs over its objects when somebody reads."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from enum import IntEnum
from typing import Any

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.kinds import AttachType
from accel.bpf.links.descriptors import open_path
from accel.bpf.links.link import Link
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map

_READ_BYTES = 64 * 1024


class CgroupOrder(IntEnum):
    """enum bpf_cgroup_iter_order: BPF_CGROUP_ITER_*."""

    SELF_ONLY = 1
    """The cgroup alone."""
    DESCENDANTS_PRE = 2
    """It and all below, parents first."""
    DESCENDANTS_POST = 3
    """It and all below, children first."""
    ANCESTORS_UP = 4
    """It and all above, up to the root."""


def attach_iter(
    program: Program,
    map: Map[Any, Any] | None = None,
    *,
    cgroup: str | os.PathLike[str] | None = None,
    order: CgroupOrder = CgroupOrder.DESCENDANTS_PRE,
    tid: int = 0,
    pid: int = 0,
) -> Link:
    """Make an iterator of a program; read_iter() runs it.

    At most one of map, cgroup, tid and pid, as the iterator's kind wants it.

    Args:
        map: What to iterate over, for iterators over a map's elements.
        cgroup: Where to begin, for iterators over cgroups.
        order: Which way from there.
        tid, pid: The only thread, or process, for iterators over tasks, their files and
            memory areas; as this process's pid namespace numbers them.

    Raises:
        BpfError: EINVAL when this iterator needs a map, or another kind of one; ESRCH
            when there is no such task.
        NotSupported: The kernel iterates over all tasks only.
    """
    if sum((map is not None, cgroup is not None, tid != 0, pid != 0)) > 1:
        raise BpfError(
            f"attach iterator {program.name}",
            errno.EINVAL,
            remedy="name one of map, cgroup, tid and pid, not several",
        )
    with ExitStack() as held:
        target, over = uapi.IterLinkInfo(), ""
        if map is not None:
            over = f" over map {map.name}"
            target.map.map_fd = map.fileno()
        elif cgroup is not None:
            over = f" over cgroup {os.fspath(cgroup)}"
            directory = open_path(cgroup, f"attach iterator {program.name}{over}", directory=True)
            target.cgroup.cgroup_fd = held.enter_context(directory).fileno()
            target.cgroup.order = order
        elif tid or pid:
            over = f" over task {tid or pid}"
            target.task.tid, target.task.pid = tid, pid
        fd = _create(program, target if over else None, f"attach iterator {program.name}{over}")
    return Link(fd, f"of iterator {program.name}{over}")


def _create(program: Program, target: uapi.IterLinkInfo | None, action: str) -> Fd:
    attr = uapi.LinkCreate(prog_fd=program.fileno(), attach_type=AttachType.TRACE_ITER)
    if target is not None:
        attr.iter_info = ctypes.addressof(target)
        attr.iter_info_len = ctypes.sizeof(target)
    try:
        return syscall.link_create(attr, action)
    except BpfError as error:
        if error.errno != errno.E2BIG:
            raise
        # Kernels that know of maps alone find more said than they can read.
        raise NotSupported(action, (6, 1), errno=errno.E2BIG) from None


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

"""Registering struct_ops: tables of kernel callbacks that programs fill."""

from __future__ import annotations

import errno
from struct import pack
from typing import Any

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType
from accel.bpf.links.link import EmulatedLink, Link
from accel.bpf.links.link_info import LinkInfo, StructOpsDetails
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map

_ONLY_KEY = pack("=I", 0)


def attach_struct_ops(map: Map[Any, Any], value: bytes | None = None) -> Link:
    """Have the kernel use a table of callbacks.

    A table of section ".struct_ops.link" takes effect as a link and can be exchanged by
    Link.update_map().  One of ".struct_ops" is registered until the link is closed; that
    one cannot be pinned, but the map can, and keeps it.

    Args:
        map: Of type STRUCT_OPS.
        value: Its only value, ready, with the descriptors of the programs filled in; None
            for what load() made ready, the contents of the map's spec.

    Raises:
        BpfError: EEXIST when a table of that name is registered; EINVAL when the kernel
            misses a callback; EBUSY when the table is registered, or was used before and
            `value` is given: a table of ".struct_ops.link" may be attached again, but stays
            as it was first written.
    """
    if not map.info().flags & uapi.BPF_F_LINK:
        return _Registered(map, _table(map, value)).begin(_writing(map))
    write_struct_ops(map, value)
    action = f"attach struct_ops {map.name}"
    attr = uapi.LinkCreate(prog_fd=map.fileno(), attach_type=AttachType.STRUCT_OPS)
    try:
        return Link(syscall.link_create(attr, action), f"of struct_ops {map.name}")
    except BpfError as error:
        raise _explain(error) from None


def write_struct_ops(map: Map[Any, Any], value: bytes | None = None) -> None:
    """Write a table into its map, for attach_struct_ops() or before Link.update_map().

    One of ".struct_ops" is registered by that.  The arguments and errors are those of
    attach_struct_ops().
    """
    try:
        _write(map, _table(map, value), _writing(map))
    except BpfError as error:
        # Written before, and never changed since: bpf_struct_ops_map_update_elem().
        again = error.errno == errno.EBUSY and map.info().flags & uapi.BPF_F_LINK
        if not again or value is not None:
            raise


def _writing(map: Map[Any, Any]) -> str:
    return f"write struct_ops {map.name}"


def _table(map: Map[Any, Any], value: bytes | None) -> bytes:
    ready = map.spec.contents if value is None else value
    if ready is None:
        raise BpfError(
            _writing(map), errno.EINVAL, remedy="give the value: this map was not made by load()"
        )
    return ready


def _write(map: syscall.HasFileno, table: bytes, action: str) -> None:
    try:
        syscall.map_update_elem(map, _ONLY_KEY, table, 0, action)
    except BpfError as error:
        raise _explain(error) from None


def _explain(error: BpfError) -> BpfError:
    remedies = {
        errno.EEXIST: "give the table another name: the kernel has one of that name",
        errno.EBUSY: "load the object again: a table of callbacks is registered once",
    }
    remedy = remedies.get(error.errno)
    return BpfError(error.action, error.errno, remedy=remedy) if remedy else error


class _Registered(EmulatedLink):
    """A table that was registered by writing it into its map."""

    def __init__(self, map: Map[Any, Any], table: bytes) -> None:
        info = LinkInfo(0, uapi.LinkType.STRUCT_OPS, 0, StructOpsDetails(map.info().id))
        super().__init__(map, map, f"of struct_ops {map.name}", info)
        self._table = table

    def _begin(self, attached: Fd, action: str) -> None:
        _write(attached, self._table, action)

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        raise BpfError(
            action, errno.EOPNOTSUPP, remedy="close this, and register another table of callbacks"
        )

    def _end(self, attached: Fd, action: str) -> None:
        if not syscall.map_delete_elem(attached, _ONLY_KEY, action):
            raise BpfError(action, errno.ENOENT)

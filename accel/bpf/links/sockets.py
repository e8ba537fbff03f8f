"""Attaching to sockets: those in a map, single ones, and those a network namespace looks up."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.links.descriptors import open_path
from accel.bpf.links.link import EmulatedLink, Link, by_link
from accel.bpf.links.link_info import LinkInfo, SockmapDetails
from accel.bpf.loading.prog_load import type_name
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map

# include/uapi/asm-generic/socket.h
_SO_ATTACH_BPF = 50
_SO_DETACH_BPF = 27
_SO_ATTACH_REUSEPORT_EBPF = 52
_SO_DETACH_REUSEPORT_BPF = 68

_NETNS_ATTACH_TYPES: dict[int, int] = {
    ProgramType.SK_LOOKUP: AttachType.SK_LOOKUP,
    ProgramType.FLOW_DISSECTOR: AttachType.FLOW_DISSECTOR,
}


# --- sockets in a map ----------------------------------------------------------------------


def attach_sk_msg(program: Program, map: Map[Any, Any]) -> None:
    """Run an sk_msg program on every message of sockets that enter `map` from now on.

    Takes the place of any other; there is no link and nothing to close: the attachment is the
    map's, and lives as long as the map, which may be pinned, whoever made it may die.  Where
    it is to end with its owner, attach_sockmap() returns one.  A socket keeps the program it
    found when it was inserted.

    Raises:
        BpfError: EOPNOTSUPP when the map holds no sockets; EBUSY when a link
            holds the place.
    """
    action = f"attach program {program.name} to map {map.name}"
    try:
        syscall.prog_attach(map, program, AttachType.SK_MSG_VERDICT, 0, action)
    except BpfError as error:
        raise _explain_sockmap(error) from None


def attach_sk_skb(program: Program, map: Map[Any, Any]) -> None:
    """Run a stream verdict on what sockets receive that enter `map` from now on.

    As lasting as attach_sk_msg(); attach_sockmap() returns a link.

    Raises:
        BpfError: EOPNOTSUPP when the map holds no sockets; EBUSY when a link holds the place.
    """
    action = f"attach program {program.name} to map {map.name}"
    try:
        syscall.prog_attach(map, program, AttachType.SK_SKB_STREAM_VERDICT, 0, action)
    except BpfError as error:
        raise _explain_sockmap(error) from None


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


def attach_sockmap(program: Program, map: Map[Any, Any], *, attach_type: int | None = None) -> Link:
    """Run an sk_msg or sk_skb program on the sockets that enter `map` from now on.

    By link (Linux 6.10), or by BPF_PROG_ATTACH with the manners of one.

    Args:
        map: A sockmap or sockhash.
        attach_type: BPF_SK_MSG_VERDICT, or BPF_SK_SKB_STREAM_PARSER, _STREAM_VERDICT or
            _VERDICT; None for the program's own.

    Raises:
        BpfError: EBUSY when another program has the place; EOPNOTSUPP or EINVAL when
            the map holds no sockets.
    """
    action = f"attach program {program.name} to map {map.name}"
    wanted = program.attach_type if attach_type is None else attach_type
    if wanted is None and program.type == ProgramType.SK_MSG:
        wanted = AttachType.SK_MSG_VERDICT
    if wanted is None:
        raise BpfError(
            f"{action}: a {type_name(program.type)} program attaches in several ways",
            errno.EINVAL,
            remedy="say which, by attach_type: stream parser, stream verdict or verdict",
        )
    attr = uapi.LinkCreate(prog_fd=program.fileno(), target_fd=map.fileno(), attach_type=wanted)
    what = f"of program {program.name} to map {map.name}"
    try:
        return by_link(
            attr,
            action,
            what,
            has_links=probe.sockmap_links,
            otherwise=lambda: _SockmapAttachment(program, map, what, wanted).begin(action),
        )
    except BpfError as error:
        raise _explain_sockmap(error) from None


def _explain_sockmap(error: BpfError) -> BpfError:
    if error.errno != errno.EBUSY:
        return error
    return BpfError(
        error.action,
        error.errno,
        remedy="close the link that attaches another program to this map",
    )


class _SockmapAttachment(EmulatedLink):
    """A program attached to a map by BPF_PROG_ATTACH."""

    def __init__(self, program: Program, map: Map[Any, Any], what: str, attach_type: int) -> None:
        details = SockmapDetails(map.info().id, attach_type)
        info = LinkInfo(0, uapi.LinkType.SOCKMAP, program.id, details)
        super().__init__(program, map, what, info)
        self._attach_type = attach_type

    def _begin(self, attached: Fd, action: str) -> None:
        syscall.prog_attach(self._target, attached, self._attach_type, 0, action)

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        # Whoever attaches takes the map's one place; only detaching asks who has it.
        self._end(old, action)
        try:
            syscall.prog_attach(self._target, program, self._attach_type, 0, action)
        except BaseException:
            self._begin(old, action)
            raise

    def _end(self, attached: Fd, action: str) -> None:
        syscall.prog_detach(self._target, attached, self._attach_type, action)


# --- single sockets ------------------------------------------------------------------------


def attach_socket(program: Program, sock: socket.socket) -> None:
    """Give a socket a program: a filter of what it receives, or a chooser of its group.

    Takes the place of any other; ends with the socket, or by detach_socket().

    Args:
        program: A SOCKET_FILTER, or an SK_REUSEPORT for a group of sockets bound with
            SO_REUSEPORT, of which `sock` is one.

    Raises:
        BpfError: EINVAL when it is a program of another type, or a socket in no group.
    """
    is_chooser = program.type == ProgramType.SK_REUSEPORT
    option = _SO_ATTACH_REUSEPORT_EBPF if is_chooser else _SO_ATTACH_BPF
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, program.fileno())
    except OSError as error:
        raise BpfError(
            f"attach program {program.name} to socket {sock.fileno()}", error.errno or errno.EIO
        ) from error


def detach_socket(program: Program, sock: socket.socket) -> None:
    """Take a program of this one's type off a socket.

    Raises:
        BpfError: ENOENT when there is none.
    """
    is_chooser = program.type == ProgramType.SK_REUSEPORT
    option = _SO_DETACH_REUSEPORT_BPF if is_chooser else _SO_DETACH_BPF
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, 0)
    except OSError as error:
        raise BpfError(
            f"detach program {program.name} from socket {sock.fileno()}", error.errno or errno.EIO
        ) from error


# --- network namespaces --------------------------------------------------------------------


def attach_netns(program: Program, netns: str | os.PathLike[str] | None = None) -> Link:
    """Have a network namespace ask an sk_lookup, or a flow_dissector program.

    Args:
        netns: As /proc/PID/ns/net or /run/netns/NAME; None for this thread's own.

    Raises:
        BpfError: E2BIG or EEXIST when the namespace has a flow dissector already, or 64
            sk_lookup programs; EINVAL when `netns` is no network namespace.
    """
    path = "/proc/thread-self/ns/net" if netns is None else os.fspath(netns)
    where = "this network namespace" if netns is None else f"network namespace {path}"
    action = f"attach program {program.name} to {where}"
    wanted = _NETNS_ATTACH_TYPES.get(program.type)
    if wanted is None:
        raise BpfError(
            action,
            errno.EINVAL,
            remedy=f"attach an SK_LOOKUP or FLOW_DISSECTOR, not a {type_name(program.type)}",
        )
    with open_path(path, action) as namespace:
        attr = uapi.LinkCreate(
            prog_fd=program.fileno(), target_fd=namespace.fileno(), attach_type=wanted
        )
        try:
            fd = syscall.link_create(attr, action)
        except BpfError as error:
            raise _explain_netns(error, program) from None
    return Link(fd, f"of program {program.name} to {where}")


def _explain_netns(error: BpfError, program: Program) -> BpfError:
    """EEXIST speaks of a program attached without link, E2BIG of too many links."""
    if error.errno not in (errno.EEXIST, errno.E2BIG):
        return error
    if program.type == ProgramType.FLOW_DISSECTOR:
        remedy = "close the link, or detach the program, that dissects flows there now"
    else:
        remedy = "detach one of the 64 programs already there"
    return BpfError(error.action, error.errno, remedy=remedy)

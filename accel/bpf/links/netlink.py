"""Attaching by netlink, as kernels without XDP and tcx links have it, in the manners of a link.

pyroute2 speaks rtnetlink.  Each conversation has a thread of its own: it is entered into
the network namespace the attachment was made in, wherever its caller is by then, and does
not disturb an event loop running in the caller's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType
from accel.bpf.links.descriptors import open_path
from accel.bpf.links.link import EmulatedLink, Link
from accel.bpf.links.link_info import DeviceDetails, LinkInfo
from accel.bpf.loading.program import Program

T = TypeVar("T")

_OWN = "/proc/thread-self/ns/net"

# include/uapi/linux/if_link.h
_XDP_UPDATE_IF_NOEXIST = 1 << 0
_XDP_REPLACE = 1 << 4
_NOTHING = -1

# include/uapi/linux/pkt_sched.h: clsact's two hooks, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_*).
_CLSACT_HANDLE = 0xFFFF0000
_HOOKS: dict[int, int] = {
    AttachType.TCX_INGRESS: 0xFFFFFFF2,
    AttachType.TCX_EGRESS: 0xFFFFFFF3,
}
# Handles tried before we give up against others who add filters at the same time.
_ATTEMPTS = 16


def _own_namespace(action: str) -> Fd:
    """The network namespace of this thread."""
    return open_path(_OWN, action)


def _identity(namespace: Fd, action: str) -> tuple[int, int]:
    """What namespaces differ in."""
    try:
        told = os.fstat(namespace.fileno())
    except OSError as error:
        raise BpfError(action, error.errno or errno.EIO) from error
    return told.st_dev, told.st_ino


def _ask(namespace: Fd, talk: Callable[[Any], T], action: str) -> T:
    """Run `talk` with an IPRoute inside a network namespace.

    Raises:
        BpfError: With netlink's answer.
    """

    # Imported here for what they cost: pyroute2 takes a fifth of a second.
    from concurrent.futures import ThreadPoolExecutor

    from pyroute2.iproute import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    def body() -> T:
        try:
            # It needs CAP_SYS_ADMIN, and a new thread is where its maker was.
            if not os.path.samestat(os.fstat(namespace.fileno()), os.stat(_OWN)):
                syscall.enter_netns(namespace, action)
            with IPRoute() as netlink:
                return talk(netlink)
        except NetlinkError as error:
            raise BpfError(action, error.code) from None
        except OSError as error:
            raise BpfError(action, error.errno or errno.EIO) from error

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink") as thread:
        return thread.submit(body).result()


class _NetlinkAttachment(EmulatedLink):
    """What both kinds have in common: a device in a namespace."""

    def __init__(
        self,
        program: Program,
        namespace: Fd,
        link_type: int,
        ifindex: int,
        attach_type: int | None,
    ) -> None:
        what = f"of program {program.name} to device {ifindex}"
        info = LinkInfo(0, link_type, program.id, DeviceDetails(ifindex, attach_type))
        super().__init__(program, namespace, what, info)
        self._ifindex = ifindex

    def _ask(self, talk: Callable[[Any], T], action: str) -> T:
        return _ask(self._target, talk, action)


# --- XDP -----------------------------------------------------------------------------------


def attach_xdp(program: Program, ifindex: int, mode: int, action: str) -> Link:
    """Give a device an XDP program.

    Args:
        mode: XDP_FLAGS_*_MODE, or 0.

    Raises:
        BpfError: EBUSY when it has one.
    """
    with _own_namespace(action) as namespace:
        return _XdpAttachment(program, namespace, ifindex, mode).begin(action)


class _XdpAttachment(_NetlinkAttachment):
    """An XDP program attached by RTM_SETLINK."""

    def __init__(self, program: Program, namespace: Fd, ifindex: int, mode: int) -> None:
        super().__init__(program, namespace, uapi.LinkType.XDP, ifindex, None)
        self._mode = mode

    def _begin(self, attached: Fd, action: str) -> None:
        def talk(netlink: Any) -> None:
            self._set(netlink, attached.fileno(), _XDP_UPDATE_IF_NOEXIST)

        self._ask(talk, action)

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        self._put(program.fileno(), old, action)

    def _end(self, attached: Fd, action: str) -> None:
        self._put(_NOTHING, attached, action)

    def _put(self, new: int, old: Fd, action: str) -> None:
        """Put another program, or none, where ours is; ENOENT when ours is not there."""
        from pyroute2.netlink.exceptions import NetlinkError

        def talk(netlink: Any) -> None:
            try:
                self._set(netlink, new, _XDP_REPLACE, old)
            except NetlinkError as error:
                if error.code == errno.EEXIST:
                    raise BpfError(action, errno.ENOENT) from None
                if error.code != errno.EINVAL:
                    raise
                # Before Linux 5.7 there is no such flag: look first, then do it.
                if self._info.program_id not in self._program_ids(netlink):
                    raise BpfError(action, errno.ENOENT) from None
                self._set(netlink, new, 0)

        self._ask(talk, action)

    def _set(self, netlink: Any, program: int, flags: int, expected: Fd | None = None) -> None:
        wanted: list[tuple[str, Any]] = [
            ("IFLA_XDP_FD", program),
            ("IFLA_XDP_FLAGS", {"value": self._mode | flags}),
        ]
        if expected is not None:
            wanted.append(("IFLA_XDP_EXPECTED_FD", expected.fileno()))
        netlink.link("set", index=self._ifindex, xdp={"attrs": wanted})

    def _program_ids(self, netlink: Any) -> set[int]:
        """Of the device's XDP programs, in whatever mode."""
        (link,) = netlink.get_links(self._ifindex)
        told = link.get_attr("IFLA_XDP")
        if told is None:
            return set()
        names = ("PROG_ID", "SKB_PROG_ID", "DRV_PROG_ID", "HW_PROG_ID")
        return {told.get_attr(f"IFLA_XDP_{name}") for name in names} - {None}


# --- clsact --------------------------------------------------------------------------------


def attach_clsact(
    program: Program, ifindex: int, attach_type: int, *, priority: int, action: str
) -> Link:
    """Add a direct-action filter to a device's clsact qdisc, which is made where missing.

    Args:
        attach_type: BPF_TCX_INGRESS or BPF_TCX_EGRESS.

    Raises:
        BpfError: EEXIST when the device has another qdisc in its place.
    """
    with _own_namespace(action) as namespace:
        place = (*_identity(namespace, action), ifindex)
        return _ClsactAttachment(program, namespace, place, attach_type, priority).begin(action)


# A device: st_dev and st_ino of its namespace, and its ifindex there.
_Place = tuple[int, int, int]

# The qdiscs we made, and how many of our filters each has.  One is looked for, made and
# removed under the lock, so that none goes while another needs it.
_made_qdiscs: dict[_Place, int] = {}
_qdiscs_lock = Lock()


class _ClsactAttachment(_NetlinkAttachment):
    """A filter of a clsact qdisc."""

    def __init__(
        self, program: Program, namespace: Fd, place: _Place, attach_type: int, priority: int
    ) -> None:
        super().__init__(program, namespace, uapi.LinkType.TCX, place[2], attach_type)
        self._place = place
        self._parent = _HOOKS[attach_type]
        self._priority = priority
        self._handle = 0
        self._name = _filter_name(program)
        self._counted = False

    def _begin(self, attached: Fd, action: str) -> None:
        def talk(netlink: Any) -> None:
            with _qdiscs_lock:
                self._enter_qdisc(netlink, action)
                try:
                    self._add_filter(netlink, attached)
                except BaseException:
                    self._leave_qdisc(netlink)
                    raise

        self._ask(talk, action)

    def _enter_qdisc(self, netlink: Any, action: str) -> None:
        if self._need_qdisc(netlink, action):
            _made_qdiscs.setdefault(self._place, 0)
        if self._place in _made_qdiscs:
            _made_qdiscs[self._place] += 1
            self._counted = True

    def _leave_qdisc(self, netlink: Any) -> None:
        """Remove the qdisc if we made it, this was our last filter, and others have none."""
        if not self._counted:
            return
        self._counted = False
        _made_qdiscs[self._place] -= 1
        if _made_qdiscs[self._place]:
            return
        del _made_qdiscs[self._place]
        used = any(
            entry["handle"]
            for parent in _HOOKS.values()
            for entry in netlink.get_filters(self._ifindex, parent=parent)
        )
        if not used:
            netlink.tc("del", "clsact", self._ifindex)

    def _need_qdisc(self, netlink: Any, action: str) -> bool:
        """Whether we had to make it."""
        from pyroute2.netlink.exceptions import NetlinkError

        try:
            netlink.tc("add", "clsact", self._ifindex)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        else:
            return True
        kinds = [
            qdisc.get("kind")
            for qdisc in netlink.get_qdiscs(self._ifindex)
            if qdisc["handle"] == _CLSACT_HANDLE
        ]
        if kinds != ["clsact"]:
            raise BpfError(
                action,
                errno.EEXIST,
                remedy=f"remove the device's {', '.join(kinds)} qdisc: clsact goes in its place",
            )
        return False

    def _add_filter(self, netlink: Any, program: Fd) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        for attempt in range(_ATTEMPTS):
            taken = {handle for handle, _ in self._filters(netlink, self._parent)}
            self._handle = next(number for number in range(1, 2**16) if number not in taken)
            try:
                self._write(netlink, "add-filter", program, self._name)
            except NetlinkError as error:
                if error.code != errno.EEXIST or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _write(self, netlink: Any, command: str, program: syscall.HasFileno, name: str) -> None:
        netlink.tc(
            command,
            "bpf",
            self._ifindex,
            handle=self._handle,
            fd=program.fileno(),
            name=name,
            parent=self._parent,
            prio=self._priority,
            direct_action=True,
        )

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        name = _filter_name(program)

        def talk(netlink: Any) -> None:
            self._require(netlink, action)
            self._write(netlink, "change-filter", program, name)

        self._ask(talk, action)
        self._name = name

    def _end(self, attached: Fd, action: str) -> None:
        def talk(netlink: Any) -> None:
            with _qdiscs_lock:
                try:
                    self._require(netlink, action)
                    netlink.tc(
                        "del-filter",
                        "bpf",
                        self._ifindex,
                        handle=self._handle,
                        parent=self._parent,
                        prio=self._priority,
                    )
                finally:
                    self._leave_qdisc(netlink)

        self._ask(talk, action)

    def _require(self, netlink: Any, action: str) -> None:
        """Do not touch a filter of others that has taken the handle."""
        if (self._handle, self._name) not in self._filters(netlink, self._parent):
            raise BpfError(action, errno.ENOENT)

    def _filters(self, netlink: Any, parent: int) -> set[tuple[int, str]]:
        """(handle, name) of the BPF filters of our priority; name "" for other filters."""
        found = set()
        for entry in netlink.get_filters(self._ifindex, parent=parent):
            options = entry.get_attr("TCA_OPTIONS")
            name = options.get_attr("TCA_BPF_NAME") if hasattr(options, "get_attr") else None
            if entry["info"] >> 16 == self._priority:
                found.add((entry["handle"], name or ""))
        return found


def _filter_name(program: Program) -> str:
    """By which we know our own filter again."""
    return f"{program.name}:{program.id}"

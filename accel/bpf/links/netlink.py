"""Attaching by netlink, as kernels without XDP and tcx links have it, in the manners of a link.

pyroute2 speaks rtnetlink.  Each conversation has a thread of its own: it is entered into
the network namespace the attachment was made in, wherever its caller is by then, and does
not disturb an event loop running in the caller's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType
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


class _Namespace:
    """The network namespace of the thread that made this."""

    def __init__(self) -> None:
        self._fd = Fd(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))

    def ask(self, talk: Callable[[Any], T], action: str) -> T:
        """Run `talk` with an IPRoute inside.

        Raises:
            BpfError: With netlink's answer.
        """

        # Imported here for what they cost: pyroute2 takes a fifth of a second.
        from concurrent.futures import ThreadPoolExecutor

        from pyroute2.iproute import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        def body() -> T:
            # It needs CAP_SYS_ADMIN, and a new thread is where its maker was.
            if not os.path.samestat(os.fstat(self._fd.fileno()), os.stat(_OWN)):
                syscall.enter_netns(self._fd, action)
            try:
                with IPRoute() as netlink:
                    return talk(netlink)
            except NetlinkError as error:
                raise BpfError(action, error.code) from None

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netlink") as thread:
            return thread.submit(body).result()

    def close(self) -> None:
        self._fd.close()


# --- XDP -----------------------------------------------------------------------------------


def attach_xdp(program: Program, ifindex: int, mode: int, action: str) -> Link:
    """Give a device an XDP program.

    Args:
        mode: XDP_FLAGS_*_MODE, or 0.

    Raises:
        BpfError: EBUSY when it has one.
    """
    attachment = _XdpAttachment(program, ifindex, mode)
    try:
        attachment.begin(program, action)
    except BaseException:
        attachment.abandon()
        raise
    return attachment


class _NetlinkAttachment(EmulatedLink):
    """What both kinds have in common: a device in a namespace."""

    def __init__(self, program: Program, what: str, link_type: int, details: DeviceDetails) -> None:
        super().__init__(program, what, LinkInfo(0, link_type, program.id, details))
        self._ifindex = details.ifindex
        self._namespace = _Namespace()

    def abandon(self) -> None:
        """Let go of what was not attached."""
        self._attached = False
        self.close()

    def _release(self) -> None:
        self._namespace.close()


class _XdpAttachment(_NetlinkAttachment):
    """An XDP program attached by RTM_SETLINK."""

    def __init__(self, program: Program, ifindex: int, mode: int) -> None:
        what = f"of program {program.name} to device {ifindex}"
        super().__init__(program, what, uapi.LinkType.XDP, DeviceDetails(ifindex, None))
        self._mode = mode

    def begin(self, program: Program, action: str) -> None:
        self._set(program.fileno(), None, _XDP_UPDATE_IF_NOEXIST, action)

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        self._set(program.fileno(), old.fileno(), _XDP_REPLACE, action)

    def _end(self, attached: Fd, action: str) -> None:
        try:
            self._set(_NOTHING, attached.fileno(), _XDP_REPLACE, action)
        except BpfError as error:
            if error.errno != errno.EEXIST:
                raise
            # Another program has the place by now: ours is detached.
            raise BpfError(action, errno.ENOENT) from None

    def _set(self, program: int, expected: int | None, flags: int, action: str) -> None:
        wanted: list[tuple[str, Any]] = [
            ("IFLA_XDP_FD", program),
            ("IFLA_XDP_FLAGS", {"value": self._mode | flags}),
        ]
        if expected is not None:
            wanted.append(("IFLA_XDP_EXPECTED_FD", expected))

        def talk(netlink: Any) -> None:
            netlink.link("set", index=self._ifindex, xdp={"attrs": wanted})

        self._namespace.ask(talk, action)


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
    attachment = _ClsactAttachment(program, ifindex, attach_type, priority)
    try:
        attachment.begin(program, action)
    except BaseException:
        attachment.abandon()
        raise
    return attachment


class _ClsactAttachment(_NetlinkAttachment):
    """A filter of a clsact qdisc."""

    def __init__(self, program: Program, ifindex: int, attach_type: int, priority: int) -> None:
        what = f"of program {program.name} to device {ifindex}"
        details = DeviceDetails(ifindex, attach_type)
        super().__init__(program, what, uapi.LinkType.TCX, details)
        self._parent = _HOOKS[attach_type]
        self._priority = priority
        self._handle = 0
        self._name = ""
        self._made_qdisc = False

    def begin(self, program: Program, action: str) -> None:
        self._namespace.ask(lambda netlink: self._add(netlink, program, action), action)

    def _add(self, netlink: Any, program: Program, action: str) -> None:
        self._made_qdisc = self._need_qdisc(netlink, action)
        try:
            self._add_filter(netlink, program)
        except BaseException:
            self._remove_qdisc(netlink)
            raise

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

    def _add_filter(self, netlink: Any, program: Program) -> None:
        from pyroute2.netlink.exceptions import NetlinkError

        for attempt in range(_ATTEMPTS):
            taken = {handle for handle, _ in self._filters(netlink, self._parent)}
            handle = next(number for number in range(1, 2**16) if number not in taken)
            try:
                self._write(netlink, "add-filter", program, handle)
            except NetlinkError as error:
                if error.code != errno.EEXIST or attempt == _ATTEMPTS - 1:
                    raise
            else:
                self._handle = handle
                return

    def _write(self, netlink: Any, command: str, program: Program, handle: int) -> None:
        name = f"{program.name}:{program.id}"  # by which we know our own again
        netlink.tc(
            command,
            "bpf",
            self._ifindex,
            handle=handle,
            fd=program.fileno(),
            name=name,
            parent=self._parent,
            prio=self._priority,
            direct_action=True,
        )
        self._name = name

    def _replace(self, program: Program, old: Fd, action: str) -> None:
        def talk(netlink: Any) -> None:
            self._require(netlink, action)
            self._write(netlink, "change-filter", program, self._handle)

        self._namespace.ask(talk, action)

    def _end(self, attached: Fd, action: str) -> None:
        def talk(netlink: Any) -> None:
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
                self._remove_qdisc(netlink)

        self._namespace.ask(talk, action)

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

    def _remove_qdisc(self, netlink: Any) -> None:
        """Remove the qdisc if we made it and nobody uses it."""
        if not self._made_qdisc:
            return
        used = any(
            entry["handle"]
            for parent in _HOOKS.values()
            for entry in netlink.get_filters(self._ifindex, parent=parent)
        )
        if not used:
            netlink.tc("del", "clsact", self._ifindex)
            self._made_qdisc = False

"""Attaching to devices and hooks, by link and by netlink, in a network namespace of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.kinds import AttachType
from accel.bpf.links import netlink
from accel.bpf.links.attach import attach
from accel.bpf.links.link import EmulatedLink, Link
from accel.bpf.links.link_info import DeviceDetails, NetfilterDetails
from accel.bpf.links.network import (
    Hook,
    attach_clsact,
    attach_netfilter,
    attach_netkit,
    attach_tc,
    attach_tcx,
    attach_xdp,
)
from accel.bpf.links.order import Order
from accel.bpf.links.query import query
from accel.bpf.loading.object import Object
from tests.kernel.attach_bed import (
    Load,
    Netns,
    attach_object,
    compiled,
    hits,
    load_attach,
    needs,
    netns,
    wait_for,
)

__all__ = ["attach_object", "compiled", "load_attach", "netns"]

pytestmark = pytest.mark.kernel

FRAME_TYPE = 0x88B5  # for experiments, IEEE 802
UNKNOWN_XDP_FLAG = 1 << 10


@pytest.fixture
def before_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """BPF_LINK_CREATE as a kernel answers that does not know the kind."""
    real = syscall.bpf

    def bpf(attr: uapi.Attr, action: str) -> int:
        if isinstance(attr, uapi.LinkCreate):
            raise BpfError(action, errno.EINVAL)
        return real(attr, action)

    monkeypatch.setattr(syscall, "bpf", bpf)
    for name in ("xdp_links", "tcx_links"):
        monkeypatch.setattr(probe, name, lambda: probe.Answer.NO)


@pytest.fixture
def no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever attaches in the older way fails."""

    def attach(*arguments: object, **options: object) -> None:
        pytest.fail("attached in the older way")

    monkeypatch.setattr(netlink, "attach_xdp", attach)
    monkeypatch.setattr(netlink, "attach_clsact", attach)


def runs(obj: Object, netns: Netns) -> bool:
    """Whether a frame meets the program."""
    before = hits(obj)
    netns.send()
    try:
        wait_for(lambda: hits(obj) > before)
    except AssertionError:
        return False
    return True


def runs_not(obj: Object, netns: Netns) -> bool:
    """Whether frames that arrived did not meet the program."""
    before = hits(obj)
    netns.call(_send_and_receive)
    return hits(obj) == before


def _send_and_receive() -> None:
    """Send frames from right to left until two arrived: all that is done with the first is done."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(FRAME_TYPE)) as receiver,
    ):
        sender.bind(("right", 0))
        receiver.bind(("left", FRAME_TYPE))
        receiver.setblocking(False)
        arrived = 0

        def two_arrived() -> bool:
            nonlocal arrived
            sender.send(b"\xff" * 12 + FRAME_TYPE.to_bytes(2, "big") + bytes(46))
            with suppress(BlockingIOError):
                while True:
                    receiver.recv(100)
                    arrived += 1
            return arrived >= 2

        wait_for(two_arrived)


# --- XDP -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "generic", "driver"])
def test_xdp_runs_until_its_link_is_closed(load_attach: Load, netns: Netns, mode: str) -> None:
    obj = load_attach("on_frame")
    program = obj.programs["on_frame"]
    link = netns.call(lambda: attach_xdp(program, "left", mode=mode))  # type: ignore[arg-type]
    with link:
        info = link.info()
        assert info.type == uapi.LinkType.XDP
        assert info.program_id == program.id
        assert info.details == DeviceDetails(
            netns.call(lambda: socket.if_nametoindex("left")), None
        )
        assert runs(obj, netns)
    assert runs_not(obj, netns)


def test_a_detached_xdp_link_has_no_device(load_attach: Load, netns: Netns) -> None:
    obj = load_attach("on_frame")
    with netns.call(lambda: attach(obj.programs["on_frame"], "left")) as link:
        link.detach()
        assert link.info().details == DeviceDetails(0, None)
        assert runs_not(obj, netns)


def test_a_device_has_one_xdp_program(load_attach: Load, netns: Netns) -> None:
    """Who has it is said, by link or without."""
    program = load_attach("on_frame").programs["on_frame"]
    with netns.call(lambda: attach_xdp(program, "left")) as link:
        with pytest.raises(BpfError, match="EBUSY") as caught:
            netns.call(lambda: attach_xdp(program, "left"))
        assert caught.value.remedy is not None
        assert caught.value.remedy.startswith("close link ")
        assert link.info().id > 0


def test_a_missing_device_is_named(load_attach: Load, netns: Netns) -> None:
    program = load_attach("on_frame").programs["on_frame"]
    with pytest.raises(BpfError, match=r"attach program on_frame to eth99: .*ENODEV") as caught:
        netns.call(lambda: attach_xdp(program, "eth99"))
    assert "network namespace (net:[" in str(caught.value.remedy)


def test_xdp_of_a_kernel_without_links(load_attach: Load, netns: Netns, before_links: None) -> None:
    """By netlink: it runs, is exchanged, and ends with close, called from elsewhere."""
    obj, other = load_attach("on_frame"), load_attach("on_frame")
    program = obj.programs["on_frame"]
    with netns.call(lambda: attach_xdp(program, "left", mode="generic")) as link:
        assert isinstance(link, EmulatedLink)
        assert link.info().id == 0
        assert link.info().program_id == program.id
        assert runs(obj, netns)
        with pytest.raises(BpfError, match="EBUSY"):
            netns.call(lambda: attach_xdp(program, "left", mode="generic"))

        link.update(other.programs["on_frame"], expected=program)
        assert runs(other, netns)
        assert link.info().program_id == other.programs["on_frame"].id
        with pytest.raises(BpfError, match="EPERM"):
            link.update(program, expected=program)
        with pytest.raises(BpfError, match=r"pin link .*ENOTSUP"):
            link.pin("/nowhere")
    assert runs_not(other, netns)
    link.close()


def test_a_refused_xdp_link_is_not_attached_in_the_older_way(
    load_attach: Load, netns: Netns, no_netlink: None
) -> None:
    needs((5, 9))
    program = load_attach("on_packet").programs["on_packet"]
    with pytest.raises(BpfError, match=r"attach program on_packet to left: .*EINVAL") as caught:
        netns.call(lambda: attach_xdp(program, "left"))
    assert caught.value.remedy == "attach an XDP program; this is a SCHED_CLS"


def test_xdp_of_a_kernel_without_conditions(
    load_attach: Load, netns: Netns, before_links: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.7 XDP_FLAGS_REPLACE is a flag like any other that no kernel knows."""
    monkeypatch.setattr(netlink, "_XDP_REPLACE", UNKNOWN_XDP_FLAG)
    obj, other = load_attach("on_frame"), load_attach("on_frame")
    program, theirs = obj.programs["on_frame"], other.programs["on_frame"]
    with netns.call(lambda: attach_xdp(program, "left", mode="generic")) as link:
        link.update(theirs)
        assert runs(other, netns)
        link.update(program)
        netns.call(lambda: _set_xdp(theirs.fileno()))
        with pytest.raises(BpfError, match="EPERM"):
            link.update(program, expected=program)
    assert runs(other, netns)
    netns.call(lambda: _set_xdp(-1))
    with netns.call(lambda: attach_xdp(program, "left", mode="generic")):
        assert runs(obj, netns)
    assert runs_not(obj, netns)


def _set_xdp(program: int) -> None:
    """As others do who ask nobody."""
    from pyroute2 import IPRoute

    wanted = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", {"value": 1 << 1})]
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex("left"), xdp={"attrs": wanted})


def test_others_xdp_program_is_left_alone(
    load_attach: Load, netns: Netns, before_links: None
) -> None:
    obj, other = load_attach("on_frame"), load_attach("on_frame")
    program, theirs = obj.programs["on_frame"], other.programs["on_frame"]
    with netns.call(lambda: attach_xdp(program, "left", mode="generic")) as link:
        netns.call(lambda: _set_xdp(theirs.fileno()))
        with pytest.raises(BpfError, match="ENOLINK"):
            link.update(program)
    assert runs(other, netns)


@pytest.mark.parametrize("call", ["dup", "open", "fstat"])
@pytest.mark.parametrize("way", [attach_xdp, attach_clsact])
def test_what_cannot_be_held_is_not_attached(
    load_attach: Load,
    netns: Netns,
    before_links: None,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[..., Link],
    call: str,
) -> None:
    """Nor is a descriptor left behind, nor another error raised."""
    name = "on_frame" if way is attach_xdp else "on_packet"
    obj = load_attach(name)
    arguments = ("left",) if way is attach_xdp else ("left", "ingress")

    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(BpfError, match="EMFILE"):
            netns.call(lambda: way(obj.programs[name], *arguments))
    assert runs_not(obj, netns)
    assert netns.call(_qdiscs) == set()


def test_netlink_works_inside_an_event_loop(
    load_attach: Load, netns: Netns, before_links: None
) -> None:
    obj = load_attach("on_frame")

    async def inside() -> Link:
        return attach_xdp(obj.programs["on_frame"], "left")

    with netns.call(lambda: asyncio.run(inside())):
        assert runs(obj, netns)


# --- tc ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "device"), [("ingress", "left"), ("egress", "right")])
@pytest.mark.parametrize("way", [attach_tcx, attach_tc, attach_clsact])
def test_tc_runs_until_its_link_is_closed(
    load_attach: Load, netns: Netns, way: Callable[..., Link], direction: str, device: str
) -> None:
    obj = load_attach("on_packet")
    with netns.call(lambda: way(obj.programs["on_packet"], device, direction)) as link:
        details = link.info().details
        assert isinstance(details, DeviceDetails)
        assert details.attach_type == AttachType[f"TCX_{direction.upper()}"]
        assert runs(obj, netns)
    assert runs_not(obj, netns)


def test_tcx_programs_stand_in_order(load_attach: Load, netns: Netns) -> None:
    programs = [load_attach("on_packet").programs["on_packet"] for _ in range(4)]
    middle, first, last, beside = programs

    def body() -> None:
        with (
            attach_tcx(middle, "left", "ingress") as link,
            attach_tcx(first, "left", "ingress", order=Order.first()),
            attach_tcx(last, "left", "ingress", order=Order.last()),
            attach_tcx(beside, "left", "ingress", order=Order.before(link)),
        ):
            row = query("left", AttachType.TCX_INGRESS)
            wanted = [first.id, beside.id, middle.id, last.id]
            assert [attached.program_id for attached in row.programs] == wanted
            assert row.programs[2].link_id == link.info().id
            stale = Order.last().at_revision(row.revision + 7)
            with pytest.raises(BpfError, match="ESTALE") as caught:
                attach_tcx(first, "left", "egress", order=stale)
            assert "query() again" in str(caught.value.remedy)
            current = Order.after(middle).at_revision(row.revision)
            with attach_tcx(
                load_attach("on_packet").programs["on_packet"], "left", "ingress", order=current
            ):
                assert query("left", AttachType.TCX_INGRESS).revision > row.revision
        assert query("left", AttachType.TCX_INGRESS).programs == ()

    netns.call(body)


def test_an_anchor_that_is_not_there(load_attach: Load, netns: Netns) -> None:
    needs((6, 6))
    one, other = (load_attach("on_packet").programs["on_packet"] for _ in range(2))
    with pytest.raises(BpfError, match="ENOENT") as caught:
        netns.call(lambda: attach_tcx(one, "left", "ingress", order=Order.before(other)))
    assert "stand beside a program of the same device" in str(caught.value.remedy)


def test_a_tcx_link_changes_its_program(load_attach: Load, netns: Netns) -> None:
    one, other = load_attach("on_packet"), load_attach("on_packet")
    programs = one.programs["on_packet"], other.programs["on_packet"]
    with netns.call(lambda: attach_tcx(programs[0], "left", "ingress")) as link:
        link.update(programs[1], expected=programs[0])
        assert runs(other, netns)
        assert hits(one) == 0
        with pytest.raises(BpfError, match="EPERM") as caught:
            link.update(programs[0], expected=programs[0])
        assert "another program" in str(caught.value.remedy)


def test_clsact_programs_share_a_device(load_attach: Load, netns: Netns) -> None:
    """The qdisc goes with the last of them; an exchange leaves the filter where it is."""
    one, two, three = (load_attach("on_packet") for _ in range(3))

    def body() -> None:
        program = one.programs["on_packet"]
        with attach_clsact(program, "left", "ingress") as first:
            with attach_clsact(two.programs["on_packet"], "left", "egress") as second:
                first.update(three.programs["on_packet"])
                assert first.info().program_id == three.programs["on_packet"].id
                second.update(program)
            with attach_clsact(two.programs["on_packet"], "left", "ingress"):
                pass
            assert _qdiscs() == {"clsact"}
        assert _qdiscs() == set()

    netns.call(body)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "last"])
def test_the_last_to_close_removes_the_qdisc(
    load_attach: Load, netns: Netns, order: tuple[int, int]
) -> None:
    programs = [load_attach("on_packet").programs["on_packet"] for _ in range(2)]

    def body() -> None:
        links = [
            attach_clsact(programs[0], "left", "ingress"),
            attach_clsact(programs[1], "left", "egress"),
        ]
        links[order[0]].close()
        assert _qdiscs() == {"clsact"}
        links[order[1]].close()
        assert _qdiscs() == set()

    netns.call(body)


def test_a_qdisc_with_filters_of_others_stays(load_attach: Load, netns: Netns) -> None:
    program = load_attach("on_packet").programs["on_packet"]

    def body() -> None:
        with attach_clsact(program, "left", "ingress"):
            _add_filter(program.fileno())
        assert _qdiscs() == {"clsact"}
        with attach_clsact(program, "left", "ingress"):
            _tc("filter", "del", "dev", "left", "egress")
        # It is theirs by now: they found it there, and left it.
        assert _qdiscs() == {"clsact"}

    netns.call(body)


def _add_filter(program: int) -> None:
    """As others do, on egress."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        index = socket.if_nametoindex("left")
        route.tc("add-filter", "bpf", index, fd=program, name="theirs", parent=0xFFFFFFF3, prio=7)


def test_a_qdisc_of_others_stays(load_attach: Load, netns: Netns) -> None:
    program = load_attach("on_packet").programs["on_packet"]

    def body() -> None:
        _tc("qdisc", "add", "dev", "left", "clsact")
        with attach_clsact(program, "left", "ingress"):
            pass
        assert _qdiscs() == {"clsact"}
        _tc("qdisc", "del", "dev", "left", "clsact")
        _tc("qdisc", "add", "dev", "left", "ingress")
        with pytest.raises(BpfError, match="EEXIST") as caught:
            attach_clsact(program, "left", "ingress")
        assert "remove the device's ingress qdisc" in str(caught.value.remedy)

    netns.call(body)


def test_what_others_removed_is_gone(load_attach: Load, netns: Netns) -> None:
    """Closing finds nothing to do, and takes nothing of theirs."""
    program = load_attach("on_packet").programs["on_packet"]
    other = load_attach("on_packet").programs["on_packet"]

    def body() -> None:
        with attach_clsact(program, "left", "ingress"):
            _tc("filter", "del", "dev", "left", "ingress")
            with attach_clsact(other, "left", "ingress") as theirs:
                assert theirs.info().program_id == other.id
        with attach_clsact(program, "left", "ingress"):
            _ip("link", "del", "left")

    netns.call(body)


def test_tc_of_a_kernel_without_links(load_attach: Load, netns: Netns, before_links: None) -> None:
    obj = load_attach("on_packet")
    link = netns.call(lambda: attach(obj.programs["on_packet"], "left", direction="ingress"))
    with link:
        assert isinstance(link, EmulatedLink)
        assert runs(obj, netns)
    assert runs_not(obj, netns)


def test_a_refused_tcx_link_is_not_attached_in_the_older_way(
    load_attach: Load, netns: Netns, no_netlink: None
) -> None:
    needs((6, 6))
    program = load_attach("on_frame").programs["on_frame"]
    with pytest.raises(BpfError, match=r"attach program on_frame to ingress .*EINVAL") as caught:
        netns.call(lambda: attach_tc(program, "left", "ingress"))
    assert caught.value.remedy == "attach a SCHED_CLS program; this is a XDP"


def test_a_refused_order_does_not_say_that_there_is_no_tcx(load_attach: Load, netns: Netns) -> None:
    needs((6, 6))
    program = load_attach("on_packet").programs["on_packet"]
    unknown = Order(flags=1 << 30)
    with pytest.raises(BpfError, match="EINVAL") as caught:
        netns.call(lambda: attach_tcx(program, "left", "ingress", order=unknown))
    assert not isinstance(caught.value, NotSupported)


def test_tc_wants_a_direction(load_attach: Load) -> None:
    with pytest.raises(BpfError, match="for which direction"):
        attach(load_attach("on_packet").programs["on_packet"], "left")


def test_netkit_wants_a_netkit_device(load_attach: Load, netns: Netns) -> None:
    program = load_attach("on_packet").programs["on_packet"]
    with pytest.raises(BpfError, match="attach program on_packet to netkit of left"):
        netns.call(lambda: attach_netkit(program, "left"))


# --- netfilter -----------------------------------------------------------------------------


def test_netfilter_drops_what_it_is_told_to(load_attach: Load, netns: Netns) -> None:
    obj = load_attach("drop_packet")
    program = obj.programs["drop_packet"]
    with netns.call(lambda: attach_netfilter(program, hook=Hook.LOCAL_OUT, priority=-5)) as link:
        assert link.info().details == NetfilterDetails(socket.AF_INET, Hook.LOCAL_OUT, -5, 0)
        with pytest.raises(PermissionError):
            netns.call(_udp)
        assert hits(obj) == 1
        with pytest.raises(BpfError, match="ENOTSUP") as caught:
            link.update(program)
        assert "keeps its program for life" in str(caught.value.remedy)
    netns.call(_udp)
    with pytest.raises(BpfError, match="needs a hook"):
        attach(program)


def _udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", 9))


def _qdiscs() -> set[str]:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        index = socket.if_nametoindex("left")
        kinds = {qdisc.get("kind") for qdisc in netlink.get_qdiscs(index)}
    return kinds - {"noqueue"}


def _tc(*words: str) -> None:
    import subprocess

    subprocess.run(["tc", *words], check=True)


def _ip(*words: str) -> None:
    import subprocess

    subprocess.run(["ip", *words], check=True)

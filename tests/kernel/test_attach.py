"""attach(): the right way for each kind, and a word about those that have none."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import iter_unpack

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.pin import unpin
from accel.bpf.door.probe import mov
from accel.bpf.door.uapi import LinkType
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.links.attach import attach
from accel.bpf.links.iterators import CgroupOrder, attach_iter, read_iter
from accel.bpf.links.link import Link
from accel.bpf.links.link_info import IterDetails, LinkInfo, iter_links
from accel.bpf.maps.map import Map
from accel.bpf.spec import MapSpec
from tests.kernel.attach_bed import Load, attach_object, compiled, load_attach
from tests.kernel.conftest import LoadProgram

__all__ = ["attach_object", "compiled", "load_attach"]

pytestmark = pytest.mark.kernel

LEAVE = Instruction(EXIT, 0, 0, 0, 0)


# --- kinds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "attach_type", "message"),
    [
        (ProgramType.SOCKET_FILTER, None, "attach_socket"),
        (ProgramType.SCHED_ACT, None, "tc filter"),
        (ProgramType.LWT_IN, None, "ip route"),
        (ProgramType.XDP, AttachType.XDP_DEVMAP, "devmap"),
    ],
)
def test_a_kind_that_is_not_attached_says_so_by_name(
    load_program: LoadProgram, type: ProgramType, attach_type: AttachType | None, message: str
) -> None:
    program = load_program(type, mov(0, 0), LEAVE, attach_type=attach_type)
    kind = type.name if attach_type is None else attach_type.name
    with pytest.raises(BpfError, match=f"{kind} programs are not attached here") as caught:
        attach(program)
    assert message in str(caught.value.remedy)


def test_a_program_to_be_run_is_not_attached(load_attach: Load) -> None:
    with pytest.raises(BpfError, match="SYSCALL programs are not attached here") as caught:
        attach(load_attach("by_hand").programs["by_hand"])
    assert "run it" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("type", "attach_type", "what"),
    [
        (ProgramType.SOCK_OPS, None, "a cgroup's directory"),
        (ProgramType.SK_MSG, None, "a map of sockets"),
        (ProgramType.XDP, None, "a device"),
        (ProgramType.SCHED_CLS, None, "a device"),
        (ProgramType.RAW_TRACEPOINT, None, "a tracepoint's name"),
        (ProgramType.TRACEPOINT, None, "category/name"),
        (ProgramType.PERF_EVENT, None, "a perf event's descriptor"),
    ],
)
def test_a_missing_target_is_named(
    load_program: LoadProgram, type: ProgramType, attach_type: AttachType | None, what: str
) -> None:
    program = load_program(type, mov(0, 0), LEAVE, attach_type=attach_type)
    with pytest.raises(BpfError, match=f"a {type.name} program needs {what}"):
        attach(program)


# --- iterators -----------------------------------------------------------------------------


def test_an_iterator_over_one_process(load_attach: Load) -> None:
    obj = load_attach("tasks")
    with attach(obj.programs["tasks"], pid=os.getpid()) as link:
        data = b"".join(read_iter(link))
        assert {number for (number,) in iter_unpack("=I", data)} == {os.getpid()}
        details = link.info().details
        assert isinstance(details, IterDetails)
        assert (details.target, details.tid, details.pid) == ("task", 0, os.getpid())
    with attach(obj.programs["tasks"]) as link:
        data = b"".join(read_iter(link))
        assert os.getpid() in {number for (number,) in iter_unpack("=I", data)}


def test_an_iterator_over_cgroups(load_attach: Load, cgroup: Path) -> None:
    """Children before or after their parents, or none."""
    (cgroup / "child").mkdir()
    own, child = cgroup.stat().st_ino, (cgroup / "child").stat().st_ino
    program = load_attach("cgroups").programs["cgroups"]
    wanted = {
        CgroupOrder.SELF_ONLY: [own],
        CgroupOrder.DESCENDANTS_PRE: [own, child],
        CgroupOrder.DESCENDANTS_POST: [child, own],
    }
    for order, ids in wanted.items():
        with attach_iter(program, cgroup=cgroup, order=order) as link:
            data = b"".join(read_iter(link))
            assert [number for (number,) in iter_unpack("=Q", data)] == ids
            assert link.info().details == IterDetails("cgroup", cgroup_id=own, order=order)
            assert link.info().cgroup_id is None


def test_a_pinned_iterator_is_read_like_a_file(load_attach: Load, bpffs: Path) -> None:
    program = load_attach("tasks").programs["tasks"]
    with attach_iter(program, pid=os.getpid()) as link:
        link.pin(bpffs / "tasks")
    assert (bpffs / "tasks").read_bytes()[:4] == os.getpid().to_bytes(4, sys.byteorder)
    unpin(bpffs / "tasks")


def test_one_thing_at_a_time_is_iterated_over(load_attach: Load, cgroup: Path) -> None:
    program = load_attach("tasks").programs["tasks"]
    with pytest.raises(BpfError, match="EINVAL") as caught:
        attach_iter(program, pid=1, tid=1)
    assert "not several" in str(caught.value.remedy)
    with pytest.raises(BpfError, match=r"over cgroup .*ENOENT"):
        attach_iter(program, cgroup=cgroup / "nothing")


# --- links ---------------------------------------------------------------------------------


@pytest.fixture
def link(load_program: LoadProgram, cgroup: Path) -> Iterator[Link]:
    program = load_program(ProgramType.SOCK_OPS, mov(0, 1), LEAVE, name="track")
    with attach(program, cgroup) as made:
        yield made


def test_every_link_is_listed(link: Link) -> None:
    assert link.info() in list(iter_links())


def test_a_link_is_opened_by_its_id(link: Link) -> None:
    number = link.info().id
    with Link.from_id(number) as again:
        assert again.info() == link.info()
        again.detach()
    assert link.info().cgroup_id == 0
    with pytest.raises(BpfError, match=r"open link 4294967295: .*ENOENT"):
        Link.from_id(0xFFFFFFFF)


def test_a_link_tells_of_its_kind(link: Link) -> None:
    info = link.info()
    assert isinstance(info, LinkInfo)
    assert info.type == LinkType.CGROUP
    assert info.attach_type == AttachType.CGROUP_SOCK_OPS


def test_a_link_changes_only_the_expected_program(link: Link, load_program: LoadProgram) -> None:
    other = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE)
    with pytest.raises(BpfError, match="EPERM") as caught:
        link.update(other, expected=other)
    assert "another program" in str(caught.value.remedy)
    link.update(other)
    link.update(other, expected=other)


def test_other_links_take_no_table_of_callbacks(link: Link) -> None:
    with (
        Map.create(MapSpec("words", MapType.HASH, 4, 4, 1)) as words,
        pytest.raises(BpfError, match="put map words into link"),
    ):
        link.update_map(words)


@pytest.mark.parametrize(
    ("ask", "since"),
    [
        (probe.xdp_links, (5, 9)),
        (probe.perf_links, (5, 15)),
        (probe.tcx_links, (6, 6)),
        (probe.sockmap_links, (6, 10)),
    ],
)
def test_links_came_when_they_came(ask: Callable[[], probe.Answer], since: tuple[int, int]) -> None:
    answer = ask()
    assert answer is not probe.Answer.UNKNOWN
    if answer is probe.Answer.NO:
        raise NotSupported(ask.__name__, since)


def test_links_are_not_known_where_asking_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(attr: uapi.Attr, action: str) -> int:
        raise BpfError(action, errno.EINVAL if attr.CMD is uapi.Cmd.PROG_LOAD else errno.EPERM)

    monkeypatch.setattr(syscall, "bpf", refuse)
    for ask in (probe.xdp_links, probe.perf_links):
        assert ask.__wrapped__() is probe.Answer.UNKNOWN  # type: ignore[attr-defined]

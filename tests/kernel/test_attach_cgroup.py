"""Attaching to a cgroup, as new kernels and as old ones do it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import mov
from accel.bpf.errors import BpfError
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.links.attach import attach
from accel.bpf.links.cgroup import attach_cgroup
from accel.bpf.links.link import EmulatedLink
from accel.bpf.links.link_info import CgroupDetails
from accel.bpf.links.order import Order
from accel.bpf.links.query import query
from accel.bpf.loading.program import Program
from tests.kernel.attach_bed import Load, attach_object, compiled, hits, load_attach
from tests.kernel.conftest import LoadProgram, cgroup2_mount

__all__ = ["attach_object", "compiled", "load_attach"]

pytestmark = pytest.mark.kernel

LEAVE = Instruction(EXIT, 0, 0, 0, 0)


@pytest.fixture
def sock_ops(load_program: LoadProgram) -> Program:
    return load_program(ProgramType.SOCK_OPS, mov(0, 1), LEAVE, name="track")


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bpf(2) what Linux 5.6 has of attaching to cgroups."""
    real = syscall.bpf

    def bpf(attr: uapi.Attr, action: str) -> int:
        if isinstance(attr, uapi.LinkCreate):
            raise BpfError(action, errno.EINVAL)
        return real(attr, action)

    monkeypatch.setattr(syscall, "bpf", bpf)
    monkeypatch.setattr(probe, "cgroup_links", lambda: probe.Answer.NO)


@contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    """This process in the cgroup."""
    root = cgroup2_mount()
    assert root is not None
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))


def ids(cgroup: Path) -> list[int]:
    attached = query(cgroup, AttachType.CGROUP_SOCK_OPS).programs
    return [program.program_id for program in attached]


def connect() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        pass


def test_it_decides_over_what_is_inside(load_attach: Load, cgroup: Path) -> None:
    obj = load_attach("refuse")
    with inside(cgroup):
        with attach(obj.programs["refuse"], cgroup), pytest.raises(PermissionError):
            connect()
        connect()
    assert hits(obj) == 1


def test_a_kernel_without_links_attaches_all_the_same(
    load_attach: Load, cgroup: Path, without_links: None
) -> None:
    obj = load_attach("refuse")
    program = obj.programs["refuse"]
    with inside(cgroup):
        with attach_cgroup(program, cgroup) as link:
            assert isinstance(link, EmulatedLink)
            info = link.info()
            assert (info.id, info.program_id) == (0, program.id)
            assert info.cgroup_id == cgroup.stat().st_ino
            assert info.details == CgroupDetails(
                cgroup.stat().st_ino, AttachType.CGROUP_INET4_CONNECT
            )
            with pytest.raises(PermissionError):
                connect()
        connect()
    link.close()


def test_emulated_links_share_a_cgroup_and_change_programs(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path, without_links: None
) -> None:
    """Whoever made the program may have let go of it by then."""
    other = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE, name="other")
    third = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE, name="third")
    with attach_cgroup(sock_ops, cgroup) as link, attach_cgroup(other, cgroup):
        link.update(third)
        sock_ops.close()
        assert sorted(ids(cgroup)) == sorted((third.id, other.id))
        assert link.info().program_id == third.id
        link.detach()
        link.detach()
        assert ids(cgroup) == [other.id]
        with pytest.raises(BpfError, match="ENOLINK"):
            link.update(third)
    assert ids(cgroup) == []


def test_what_an_emulated_link_cannot_do_it_says(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path, bpffs: Path, without_links: None
) -> None:
    other_type = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE)
    with attach_cgroup(sock_ops, cgroup) as link:
        for wish in (lambda: link.pin(bpffs / "link"), link.fileno):
            with pytest.raises(BpfError, match="ENOTSUP") as caught:
                wish()
            assert "the kernel has no link of this attachment" in str(caught.value.remedy)
        with pytest.raises(BpfError, match="EINVAL") as caught:
            link.update(other_type)
        assert "attach anew" in str(caught.value.remedy)
        assert ids(cgroup) == [sock_ops.id]


def test_what_others_detached_is_not_exchanged(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path, without_links: None
) -> None:
    other = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE, name="other")
    with attach_cgroup(sock_ops, cgroup) as link:
        with Fd(os.open(cgroup, os.O_RDONLY)) as directory:
            syscall.prog_detach(directory, sock_ops, AttachType.CGROUP_SOCK_OPS, "take away")
        with pytest.raises(BpfError, match="EPERM"):
            link.update(other, expected=sock_ops)
        with pytest.raises(BpfError, match="ENOLINK"):
            link.update(other)
        assert ids(cgroup) == []


@pytest.mark.parametrize("left", [0, 1])
def test_what_cannot_be_held_is_not_attached(
    sock_ops: Program,
    cgroup: Path,
    without_links: None,
    monkeypatch: pytest.MonkeyPatch,
    left: int,
) -> None:
    real, room = os.dup, [left]

    def dup(number: int) -> int:
        if not room[0]:
            raise OSError(errno.EMFILE, "too many open files")
        room[0] -= 1
        return real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", dup)
        with pytest.raises(BpfError, match="EMFILE"):
            attach_cgroup(sock_ops, cgroup)
    assert ids(cgroup) == []


def test_an_emulated_link_of_a_removed_cgroup_closes(
    sock_ops: Program, cgroup: Path, without_links: None
) -> None:
    child = cgroup / "child"
    child.mkdir()
    with attach_cgroup(sock_ops, child):
        child.rmdir()


def test_a_rival_is_named_without_links_too(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path, without_links: None
) -> None:
    rival = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE, name="rival")
    with Fd(os.open(cgroup, os.O_RDONLY)) as directory:
        syscall.prog_attach(directory, rival, AttachType.CGROUP_SOCK_OPS, 0, "occupy")
        with pytest.raises(BpfError, match="EPERM") as caught:
            attach_cgroup(sock_ops, cgroup)
        assert f"detach program {rival.id}" in str(caught.value.remedy)
        syscall.prog_detach(directory, rival, AttachType.CGROUP_SOCK_OPS, "leave")


def test_programs_stand_in_order(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path
) -> None:
    """From Linux 6.17 on; before, an order is refused rather than forgotten."""
    first = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE, name="first")
    with attach_cgroup(sock_ops, cgroup) as link:
        if not query(cgroup, AttachType.CGROUP_SOCK_OPS).revision:
            with pytest.raises(BpfError, match="EINVAL") as caught:
                attach_cgroup(first, cgroup, order=Order.before(link))
            assert "Linux 6.17" in str(caught.value.remedy)
            return
        with attach_cgroup(first, cgroup, order=Order.before(link)):
            assert ids(cgroup) == [first.id, sock_ops.id]
            revision = query(cgroup, AttachType.CGROUP_SOCK_OPS).revision
            with pytest.raises(BpfError, match="ESTALE") as caught:
                attach_cgroup(first, cgroup, order=Order.last().at_revision(revision + 1))
            assert "query() again" in str(caught.value.remedy)


def test_what_ancestors_pass_on_is_effective(sock_ops: Program, cgroup: Path) -> None:
    child = cgroup / "child"
    child.mkdir()
    with attach_cgroup(sock_ops, cgroup):
        kind = AttachType.CGROUP_SOCK_OPS
        assert query(child, kind).programs == ()
        effective = query(child, kind, effective=True).programs
        assert sock_ops.id in [program.program_id for program in effective]
        assert query(cgroup, kind).flags & uapi.BPF_F_ALLOW_MULTI


def test_a_target_of_another_kind_is_refused(cgroup: Path, tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="ask what is attached"):
        query(tmp_path, AttachType.CGROUP_SOCK_OPS)
    with pytest.raises(BpfError, match=r"ask what is attached to 1: .*EINVAL"):
        query(1, AttachType.CGROUP_SOCK_OPS)
    with pytest.raises(BpfError, match="ENOENT"):
        query(cgroup / "nothing", AttachType.CGROUP_SOCK_OPS)

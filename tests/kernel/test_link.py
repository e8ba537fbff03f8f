"""Attaching to cgroups, sockhashes and iterators, and what stands in the way."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

import pytest

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import mov
from accel.bpf.errors import BpfError, ShapeError
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.links.cgroup import attach_cgroup
from accel.bpf.links.iterators import attach_iter, read_iter
from accel.bpf.links.link import Link
from accel.bpf.links.query import query
from accel.bpf.links.sockets import attach_sk_msg, detach_sk_msg
from accel.bpf.loading.object import Object, load
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import MapSpec
from tests.kernel.conftest import LoadProgram

pytestmark = pytest.mark.kernel

SOCKHASH = MapSpec("sockets", MapType.SOCKHASH, key_size=8, value_size=8, max_entries=4)
LEAVE = Instruction(EXIT, 0, 0, 0, 0)


@pytest.fixture
def sock_ops(load_program: LoadProgram) -> Program:
    return load_program(ProgramType.SOCK_OPS, mov(0, 1), LEAVE, name="track")


@pytest.fixture
def sk_msg(load_program: LoadProgram) -> Program:
    return load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE, name="pass")


@pytest.fixture
def sockets() -> Iterator[Map[bytes, bytes]]:
    with Map.create(SOCKHASH) as made:
        yield made


def attached(cgroup: Path) -> tuple[int, ...]:
    programs = query(cgroup, AttachType.CGROUP_SOCK_OPS).programs
    return tuple(program.program_id for program in programs)


@contextmanager
def occupied(cgroup: Path, program: Program, flags: int) -> Iterator[None]:
    """The cgroup as others leave it who attach without a link."""
    with Fd(os.open(cgroup, os.O_RDONLY)) as directory:
        syscall.prog_attach(directory, program, AttachType.CGROUP_SOCK_OPS, flags, "occupy")
        try:
            yield
        finally:
            syscall.prog_detach(directory, program, AttachType.CGROUP_SOCK_OPS, "leave")


def test_a_link_lasts_as_long_as_it_is_held(sock_ops: Program, cgroup: Path) -> None:
    with attach_cgroup(sock_ops, cgroup) as link:
        info = link.info()
        assert attached(cgroup) == (sock_ops.id,)
        assert info.program_id == sock_ops.id
        assert info.cgroup_id == cgroup.stat().st_ino
        assert info.attach_type == AttachType.CGROUP_SOCK_OPS
        assert info.type == uapi.LinkType.CGROUP

    assert attached(cgroup) == ()


def test_links_share_a_cgroup(sock_ops: Program, cgroup: Path) -> None:
    with attach_cgroup(sock_ops, cgroup), attach_cgroup(sock_ops, cgroup):
        assert len(attached(cgroup)) == 2


def test_the_program_is_exchanged_in_place(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path
) -> None:
    other = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE)
    with attach_cgroup(sock_ops, cgroup) as link:
        number = link.info().id
        link.update(other)

        assert attached(cgroup) == (other.id,)
        assert link.info().id == number


def test_a_detached_link_is_a_husk(sock_ops: Program, cgroup: Path) -> None:
    with attach_cgroup(sock_ops, cgroup) as link:
        link.detach()
        link.detach()

        assert attached(cgroup) == ()
        assert link.info().cgroup_id == 0


def test_a_pinned_link_outlives_its_holder(sock_ops: Program, cgroup: Path, bpffs: Path) -> None:
    with attach_cgroup(sock_ops, cgroup) as link:
        link.pin(bpffs / "link")
    assert attached(cgroup) == (sock_ops.id,)

    with Link.from_pin(bpffs / "link") as again:
        assert again.info().program_id == sock_ops.id
        again.detach()
    assert attached(cgroup) == ()
    with pytest.raises(ShapeError, match="it is a link, expected a map"):
        Map.from_pin(bpffs / "link")


def test_a_removed_cgroup_ends_the_attachment(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path
) -> None:
    """The link stays, but cannot be updated; the message says so."""
    child = cgroup / "child"
    child.mkdir()
    other = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE)
    with attach_cgroup(sock_ops, child) as link:
        child.rmdir()
        with pytest.raises(BpfError, match="ENOLINK") as caught:  # noqa: PT012
            for _ in range(1_000_000):  # the kernel detaches in its own time
                link.update(other)
        assert caught.value.remedy == "attach anew: the cgroup of this link was removed"
        link.detach()


def test_what_is_no_cgroup_is_said_to_be_none(sock_ops: Program, tmp_path: Path) -> None:
    with pytest.raises(BpfError) as caught:
        attach_cgroup(sock_ops, tmp_path)
    assert f"{tmp_path} is none" in str(caught.value.remedy)
    with pytest.raises(BpfError, match="ENOENT") as caught:
        attach_cgroup(sock_ops, tmp_path / "nothing")
    assert "create the cgroup" in str(caught.value.remedy)


@pytest.mark.parametrize("below", [False, True], ids=["same cgroup", "cgroup below"])
def test_whoever_tolerates_no_other_is_named(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path, below: bool
) -> None:
    rival = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE)
    place = cgroup / "child" if below else cgroup
    place.mkdir(exist_ok=True)
    with occupied(cgroup, rival, 0), pytest.raises(BpfError, match="EPERM") as caught:
        attach_cgroup(sock_ops, place)

    assert caught.value.remedy is not None
    assert f"detach program {rival.id} from cgroup {cgroup}" in caught.value.remedy


def test_overridable_programs_above_are_no_rivals(
    sock_ops: Program, load_program: LoadProgram, cgroup: Path
) -> None:
    rival = load_program(ProgramType.SOCK_OPS, mov(0, 0), LEAVE)
    child = cgroup / "child"
    child.mkdir()
    with occupied(cgroup, rival, uapi.BPF_F_ALLOW_OVERRIDE), attach_cgroup(sock_ops, child):
        assert attached(child) == (sock_ops.id,)


def test_a_program_for_something_else_is_refused(sk_msg: Program, cgroup: Path) -> None:
    with pytest.raises(BpfError, match="SK_MSG program attaches in several ways"):
        attach_cgroup(sk_msg, cgroup)
    with pytest.raises(BpfError, match="EINVAL"):
        attach_cgroup(sk_msg, cgroup, attach_type=AttachType.CGROUP_SOCK_OPS)


def test_sk_msg_is_attached_and_detached(sk_msg: Program, sockets: Map[bytes, bytes]) -> None:
    attach_sk_msg(sk_msg, sockets)
    detach_sk_msg(sk_msg, sockets)

    with pytest.raises(BpfError, match=r"detach program pass from map sockets: .*ENOENT"):
        detach_sk_msg(sk_msg, sockets)


def test_sk_msg_judges_messages_of_sockets_in_the_map(
    load_program: LoadProgram, sockets: Map[bytes, bytes]
) -> None:
    """SK_DROP: the sender learns of it, so the program ran."""
    attach_sk_msg(load_program(ProgramType.SK_MSG, mov(0, 0), LEAVE), sockets)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        client.send(b"before")
        sockets.update(b"8 bytes!", pack("=Q", client.fileno()))
        with pytest.raises(PermissionError):
            client.send(b"after")


def test_sk_msg_wants_a_map_of_sockets(sk_msg: Program) -> None:
    with (
        Map.create(MapSpec("words", MapType.HASH, 4, 4, 1)) as words,
        pytest.raises(BpfError, match="attach program pass to map words") as caught,
    ):
        attach_sk_msg(sk_msg, words)
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)


@pytest.fixture
def over_sockets(loading_object: Path) -> Iterator[Object]:
    """An object with an iterator over a map's elements."""
    try:
        obj = load(open_object(loading_object), programs=["list"])
    except BpfError as error:
        if error.errno == errno.EPERM and syscall.explain_eperm() is None:
            pytest.skip("this kernel loads no iterator over the elements of a map")
        raise
    with obj:
        yield obj


def test_an_iterator_walks_a_map(over_sockets: Object) -> None:
    """Keys of the sockets in it, in chunks; each run starts anew."""
    obj = over_sockets
    with socket.create_server(("127.0.0.1", 0)) as server:
        sockets = obj.maps["sockets"]
        sockets.update(b"8 bytes!", pack("=Q", server.fileno()))
        with attach_iter(obj.programs["list"], sockets) as link:
            assert b"".join(read_iter(link)) == b"8 bytes!"
            sockets.delete(b"8 bytes!")
            assert b"".join(read_iter(link)) == b""
            assert link.info().cgroup_id is None


def test_an_iterator_over_maps_wants_a_map(over_sockets: Object) -> None:
    with pytest.raises(BpfError, match="attach iterator list"):
        attach_iter(over_sockets.programs["list"])

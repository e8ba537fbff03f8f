"""Attaching to sockets in a map, single sockets, and what a network namespace looks up."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from struct import pack

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.probe import mov
from accel.bpf.door.uapi import LinkType
from accel.bpf.errors import BpfError
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.links.attach import attach
from accel.bpf.links.link import EmulatedLink
from accel.bpf.links.link_info import NetnsDetails, SockmapDetails
from accel.bpf.links.query import query
from accel.bpf.links.sockets import attach_netns, attach_socket, attach_sockmap, detach_socket
from accel.bpf.maps.map import Map
from accel.bpf.spec import MapSpec
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
from tests.kernel.conftest import LoadProgram
from tests.patience import scaled

__all__ = ["attach_object", "compiled", "load_attach", "netns"]

pytestmark = pytest.mark.kernel

LEAVE = Instruction(EXIT, 0, 0, 0, 0)


# --- sockets in a map ----------------------------------------------------------------------


@pytest.mark.parametrize("has_links", [True, False], ids=["link", "without links"])
def test_a_verdict_meets_what_sockets_of_the_map_receive(
    load_attach: Load, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    needs((6, 10) if has_links else (5, 18))  # 5.18 has query()
    if not has_links:
        _refuse_links(monkeypatch)
    obj = load_attach("swallow")
    sockets = obj.maps["sockets"]
    with attach_sockmap(obj.programs["swallow"], sockets) as link:
        info = link.info()
        assert isinstance(link, EmulatedLink) is not has_links
        assert info.type == LinkType.SOCKMAP
        assert info.details == SockmapDetails(sockets.info().id, AttachType.SK_SKB_VERDICT)
        attached = query(sockets, AttachType.SK_SKB_VERDICT)
        assert [one.program_id for one in attached.programs] == [info.program_id]
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
            server.accept()[0] as accepted,
        ):
            sockets.update(pack("=Q", 1), pack("=Q", accepted.fileno()))
            client.send(b"hello")
            wait_for(lambda: hits(obj) > 0)
    assert query(sockets, AttachType.SK_SKB_VERDICT).programs == ()


def _refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """BPF_LINK_CREATE as a kernel answers that has no links of sockmaps (before 6.10)."""
    real = syscall.bpf

    def bpf(attr: uapi.Attr, action: str) -> int:
        if isinstance(attr, uapi.LinkCreate):
            raise BpfError(action, errno.EINVAL)
        return real(attr, action)

    monkeypatch.setattr(syscall, "bpf", bpf)
    monkeypatch.setattr(probe, "sockmap_links", lambda: probe.Answer.NO)


def test_what_a_link_is_refused_for_is_not_done_without(
    load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EINVAL of a kernel that has the links is the answer."""
    needs((6, 10))
    program = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE)

    def attach_in_the_older_way(*arguments: object) -> None:
        pytest.fail("attached in the older way")

    monkeypatch.setattr(syscall, "prog_attach", attach_in_the_older_way)
    with (
        Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets,
        pytest.raises(BpfError, match="EINVAL"),
    ):
        attach_sockmap(program, sockets, attach_type=AttachType.SK_SKB_VERDICT)


def attached_to(sockets: Map[bytes, bytes]) -> list[int]:
    programs = query(sockets, AttachType.SK_MSG_VERDICT).programs
    return [program.program_id for program in programs]


def test_without_links_others_programs_are_left_alone(
    load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs((5, 18))
    _refuse_links(monkeypatch)
    one, two, three = (load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE) for _ in range(3))
    with (
        Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets,
        attach_sockmap(one, sockets) as displaced,
        attach_sockmap(two, sockets),
    ):
        with pytest.raises(BpfError, match="EPERM"):
            displaced.update(three, expected=one)
        with pytest.raises(BpfError, match="ENOLINK") as caught:
            displaced.update(three)
        assert "put theirs there" in str(caught.value.remedy)
        assert attached_to(sockets) == [two.id]


def test_a_failed_exchange_leaves_the_program(
    load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one of another type, or one that we have no descriptor left to hold."""
    needs((5, 18))
    _refuse_links(monkeypatch)
    one, two = (load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE) for _ in range(2))
    other_type = load_program(ProgramType.SOCK_OPS, mov(0, 1), LEAVE)
    with (
        Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets,
        attach_sockmap(one, sockets) as link,
    ):
        with pytest.raises(BpfError, match="EINVAL"):
            link.update(other_type)
        assert attached_to(sockets) == [one.id]
        with monkeypatch.context() as patch:
            no_more_descriptors(patch, 0)
            with pytest.raises(BpfError, match="EMFILE"):
                link.update(two)
        assert attached_to(sockets) == [one.id]
        assert link.info().program_id == one.id


@pytest.mark.parametrize("left", [0, 1])
def test_what_cannot_be_held_is_not_attached(
    load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    needs((5, 18))
    _refuse_links(monkeypatch)
    program = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE)
    with Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets:
        with monkeypatch.context() as patch:
            no_more_descriptors(patch, left)
            with pytest.raises(BpfError, match="EMFILE"):
                attach_sockmap(program, sockets)
        assert attached_to(sockets) == []


def no_more_descriptors(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """dup(2) as it answers a process that may have `left` more."""
    real, room = os.dup, [left]

    def dup(number: int) -> int:
        if not room[0]:
            raise OSError(errno.EMFILE, "too many open files")
        room[0] -= 1
        return real(number)

    monkeypatch.setattr(os, "dup", dup)


def test_a_map_without_links_changes_its_program(
    load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs((5, 18))
    _refuse_links(monkeypatch)
    one = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE)
    other = load_program(ProgramType.SK_MSG, mov(0, 0), LEAVE)
    with Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets:
        with attach(one, sockets) as link:
            link.update(other)
            attached = query(sockets, AttachType.SK_MSG_VERDICT).programs
            assert [program.program_id for program in attached] == [other.id]
        assert query(sockets, AttachType.SK_MSG_VERDICT).programs == ()


def test_a_map_has_one_program(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE, name="pass")
    other = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE, name="other")
    with (
        Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets,
        attach_sockmap(program, sockets) as link,
    ):
        if isinstance(link, EmulatedLink):
            pytest.skip("without links the last to attach wins")
        with pytest.raises(BpfError, match="EBUSY") as caught:
            attach_sockmap(other, sockets)
        assert "close the link" in str(caught.value.remedy)
        link.update(other, expected=program)
        assert link.info().program_id == other.id


def test_what_the_program_is_for_must_be_known(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SK_SKB, mov(0, 1), LEAVE)
    with (
        Map.create(MapSpec("sockets", MapType.SOCKMAP, 4, 4, 4)) as sockets,
        pytest.raises(BpfError, match="SK_SKB program attaches in several ways"),
    ):
        attach(program, sockets)


# --- single sockets ------------------------------------------------------------------------


def test_a_filter_keeps_a_socket_from_receiving(load_attach: Load) -> None:
    obj = load_attach("ignore")
    program = obj.programs["ignore"]
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        attach_socket(program, receiver)
        sender.sendto(b"dropped", receiver.getsockname())
        wait_for(lambda: hits(obj) == 1)
        detach_socket(program, receiver)
        sender.sendto(b"kept", receiver.getsockname())
        assert receiver.recv(10) == b"kept"
        with pytest.raises(BpfError, match=r"detach program ignore from socket .*ENOENT"):
            detach_socket(program, receiver)


def test_a_chooser_is_for_a_group_of_sockets(load_program: LoadProgram) -> None:
    program = load_program(
        ProgramType.SK_REUSEPORT, mov(0, 1), LEAVE, attach_type=AttachType.SK_REUSEPORT_SELECT
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        with pytest.raises(BpfError, match="attach program test to socket"):
            attach_socket(program, receiver)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        receiver.bind(("127.0.0.1", 0))
        attach_socket(program, receiver)
        detach_socket(program, receiver)


# --- network namespaces --------------------------------------------------------------------


def test_sk_lookup_decides_who_is_connected(load_attach: Load, netns: Netns) -> None:
    obj = load_attach("no_socket")
    program = obj.programs["no_socket"]

    def connect() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=scaled(5)),
        ):
            pass

    path = netns.path
    with attach_netns(program, path) as link:
        details = link.info().details
        assert details == NetnsDetails(os.stat(path).st_ino, AttachType.SK_LOOKUP)
        with pytest.raises(ConnectionRefusedError):
            netns.call(connect)
        assert hits(obj) >= 1
        attached = query(path, AttachType.SK_LOOKUP).programs
        assert [one.program_id for one in attached] == [program.id]
        link.detach()
        netns.call(connect)
        assert link.info().details == NetnsDetails(0, AttachType.SK_LOOKUP)
    with netns.call(lambda: attach(program)):
        assert len(query(path, AttachType.SK_LOOKUP).programs) == 1


def test_a_namespace_has_one_flow_dissector(load_attach: Load, netns: Netns) -> None:
    obj = load_attach("dissect")
    program = obj.programs["dissect"]
    with attach_netns(program, netns.path) as link:
        netns.send()
        wait_for(lambda: hits(obj) > 0)
        with pytest.raises(BpfError, match="E2BIG") as caught:
            attach_netns(program, netns.path)
        assert "dissects flows there now" in str(caught.value.remedy)
        assert link.info().type == LinkType.NETNS


def test_what_is_no_namespace_is_refused(
    load_attach: Load, load_program: LoadProgram, tmp_path: Path
) -> None:
    program = load_attach("no_socket").programs["no_socket"]
    with pytest.raises(BpfError, match="attach program no_socket to network namespace"):
        attach_netns(program, tmp_path)
    with pytest.raises(BpfError, match="ENOENT"):
        attach_netns(program, tmp_path / "nothing")
    other = load_program(ProgramType.SK_MSG, mov(0, 1), LEAVE)
    with pytest.raises(BpfError, match="EINVAL") as caught:
        attach_netns(other)
    assert "not a SK_MSG" in str(caught.value.remedy)

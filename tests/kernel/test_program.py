"""Programs: loaded, refused, pinned."""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from pathlib import Path

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import assemble, mov
from accel.bpf.errors import BpfError, NotSupported, VerifierRejected
from accel.bpf.format.insn import CALL, EXIT, LD_IMM64, POISON, PSEUDO_MAP_FD, Instruction
from accel.bpf.format.sections import BPF_F_SLEEPABLE
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.loading import prog_load
from accel.bpf.loading.program import Program, bpf_stats, iter_programs
from accel.bpf.maps.map import Map
from accel.bpf.spec import MapSpec, ProgramSpec
from tests.kernel.conftest import LoadProgram

pytestmark = pytest.mark.kernel

LEAVE = Instruction(EXIT, 0, 0, 0, 0)
PASS = (mov(0, 1), LEAVE)


def _reject(*instructions: Instruction, poisoned: dict[int, str] | None = None) -> VerifierRejected:
    code = assemble(*instructions)
    spec = ProgramSpec("bad", "sk_msg", ProgramType.SK_MSG, AttachType.SK_MSG_VERDICT, None, code)
    with pytest.raises(VerifierRejected) as caught:
        Program.load(spec, code, license="GPL", poisoned=poisoned)
    return caught.value


def test_a_program_is_loaded(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SK_MSG, *PASS, name="a_name_that_is_too_long")
    info = program.info()

    assert (info.id, info.tag) == (program.id, program.tag)
    assert info.name == "a_name_that_is_"
    assert info.type == ProgramType.SK_MSG
    assert len(info.tag) == 16
    assert repr(program) == "<Program a_name_that_is_too_long: SK_MSG>"


def test_equal_code_has_an_equal_tag(load_program: LoadProgram) -> None:
    one = load_program(ProgramType.SK_MSG, *PASS)
    same = load_program(ProgramType.SK_MSG, *PASS)
    other = load_program(ProgramType.SK_MSG, mov(0, 0), LEAVE)

    assert one.tag == same.tag != other.tag


def test_a_program_runs_by_hand(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SOCKET_FILTER, mov(0, 7), LEAVE)

    assert program.test_run() == 7
    assert program.run(bytes(60), repeat=100).data == bytes(60)


def test_a_run_shows_what_became_of_packet_and_context(load_program: LoadProgram) -> None:
    """r0 = skb->mark; skb->mark = 9"""
    mark = 8  # offset in struct __sk_buff
    program = load_program(
        ProgramType.SCHED_CLS,
        Instruction(0x61, 0, 1, mark, 0),
        mov(2, 9),
        Instruction(0x63, 1, 2, mark, 0),
        LEAVE,
    )
    context = bytearray(192)
    context[mark] = 5

    run = program.run(bytes(range(64)), context=bytes(context))

    assert run.retval == 5
    assert run.data == bytes(range(64))
    assert len(run.context) == 192
    assert run.context[mark : mark + 4] == (9).to_bytes(4, sys.byteorder)


def test_arguments_of_a_raw_tracepoint_are_its_context(load_program: LoadProgram) -> None:
    program = load_program(
        ProgramType.RAW_TRACEPOINT, Instruction(0x79, 0, 1, 8, 0), LEAVE, name="second"
    )

    run = program.run(context=struct.pack("=QQ", 1, 77), cpu=0)

    assert (run.retval, run.data) == (77, b"")


def test_a_syscall_program_works_on_its_context() -> None:
    """*(u64 *)ctx = 6"""
    if probe.program_type(ProgramType.SYSCALL) is probe.Answer.NO:
        raise NotSupported("programs of type SYSCALL", (5, 14))
    code = assemble(Instruction(0x7A, 1, 0, 0, 6), mov(0, 3), LEAVE)
    spec = ProgramSpec(
        "six", "syscall", ProgramType.SYSCALL, None, None, code, flags=BPF_F_SLEEPABLE
    )

    with Program.load(spec, code, license="GPL") as program:
        run = program.run(context=bytes(8))

    assert (run.retval, run.context) == (3, struct.pack("=Q", 6))


def test_some_kinds_cannot_be_run_by_hand(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SK_MSG, *PASS)

    with pytest.raises(BpfError, match="run program test") as caught:
        program.run()
    assert caught.value.errno == errno.EOPNOTSUPP


def test_runs_are_counted_while_somebody_asks(load_program: LoadProgram) -> None:
    """Others on this machine may be asking as well, so that it may never be off."""
    program = load_program(ProgramType.SOCKET_FILTER, *PASS)
    with bpf_stats():
        before = program.info().run_count
        program.run(repeat=40)
        info = program.info()

    assert info.run_count == before + 40
    assert info.run_time_ns > 0
    assert info.recursion_misses == 0


def test_the_kernel_tells_more_of_it(load_program: LoadProgram) -> None:
    info = load_program(ProgramType.SOCKET_FILTER, *PASS).info()

    assert info.xlated_bytes == 16
    assert info.gpl_compatible
    assert info.uid == 0
    assert 0 < info.load_time_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert info.map_count == info.btf_id == info.attach_btf_id == 0
    if not info.verified_insns:
        raise NotSupported("count of verified instructions", (5, 16))
    assert info.verified_insns == 2


def test_its_maps_are_known_by_number(load_program: LoadProgram) -> None:
    spec = MapSpec("numbers", MapType.ARRAY, 4, 4, 1)
    with Map.create(spec) as numbers:
        program = load_program(
            ProgramType.SOCKET_FILTER,
            Instruction(LD_IMM64, 2, PSEUDO_MAP_FD, 0, numbers.fileno()),
            Instruction(0, 0, 0, 0, 0),
            *PASS,
        )

        assert program.map_ids() == (numbers.info().id,)


def test_a_program_is_opened_by_its_number(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SOCK_OPS, *PASS, name="track")
    with Program.from_id(program.id) as again:
        assert again.tag == program.tag
        assert again.name == "track"
        assert again.info() in list(iter_programs())
    with pytest.raises(BpfError, match="open program 4294967290"):
        Program.from_id(0xFFFFFFFA)


@pytest.mark.parametrize(
    ("instructions", "telling"),
    [
        ((LEAVE,), "R0"),
        ((Instruction(0x79, 0, 1, 800, 0), LEAVE), "context"),
        ((Instruction(CALL, 0, 0, 0, 84), mov(0, 1), LEAVE), "sk_lookup_tcp"),
        ((mov(0, 1), Instruction(0x7B, 10, 0, 8, 0), LEAVE), "stack"),
    ],
    ids=["uninitialised", "context", "helper", "stack"],
)
def test_the_verifiers_reason_is_in_the_message(
    instructions: tuple[Instruction, ...], telling: str
) -> None:
    """As the running kernel words it; tests/bpf/test_verifier.py has the exact ones."""
    error = _reject(*instructions)

    assert telling in error.line
    assert error.line in str(error)
    assert error.line.split(":")[-1].split(";")[0].strip()[:20] in error.log
    assert "processed" not in error.line
    assert error.errno in (errno.EACCES, errno.EINVAL)
    assert error.program == "bad"


def test_a_failed_relocation_speaks_for_itself() -> None:
    error = _reject(
        mov(0, 0),
        Instruction(CALL, 0, 0, 0, POISON),
        LEAVE,
        poisoned={1: "no kernel type has sock.sk_wishes"},
    )

    assert error.line == "no kernel type has sock.sk_wishes"
    assert str(POISON) in error.log


def test_long_logs_come_whole() -> None:
    """The first buffer is too small for the log of a program of many instructions."""
    body = [Instruction(0x07, 0, 0, 0, 1)] * 20_000
    error = _reject(mov(0, 0), *body, Instruction(0x79, 0, 1, 800, 0), LEAVE)

    assert len(error.log) > 256 * 1024
    assert "context" in error.line
    assert error.errno == errno.EACCES


def test_a_refusal_before_the_verifier_is_no_verdict(load_program: LoadProgram) -> None:
    with pytest.raises(BpfError) as caught:
        load_program(9999, *PASS)

    assert not isinstance(caught.value, VerifierRejected)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.remedy == "run a kernel with programs of type 9999: this one has none"


def test_a_pin_outlives_its_program(load_program: LoadProgram, bpffs: Path) -> None:
    program = load_program(ProgramType.SOCK_OPS, *PASS, name="track")
    number = program.id
    program.pin(bpffs / "track")
    program.close()

    with Program.from_pin(bpffs / "track") as again:
        assert again.id == number
        assert again.name == "track"
        assert again.type == ProgramType.SOCK_OPS


# --- older kernels: bpf(2) as it would answer there ------------------------------------------


class Older:
    """Between us and the kernel: refuses what a kernel without some fields refuses.

    It is the running kernel that verifies; only the refusal is made up, in its words.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, *lacking: str) -> None:
        self.asked: list[dict[str, object]] = []
        self._number = number
        self._lacking = lacking
        self._load = syscall.prog_load
        monkeypatch.setattr(syscall, "prog_load", self.prog_load)

    def prog_load(self, attr: uapi.ProgLoad, action: str) -> Fd:
        self.asked.append({name: getattr(attr, name) for name, _ in attr._fields_})
        if any(getattr(attr, name) for name in self._lacking):
            raise BpfError(action, self._number)
        return self._load(attr, action)


@pytest.mark.parametrize(
    ("number", "lacking"),
    [
        (errno.EINVAL, ("prog_name",)),
        (errno.E2BIG, ("prog_name", "expected_attach_type")),
    ],
)
def test_an_older_kernel_gets_less(
    monkeypatch: pytest.MonkeyPatch,
    load_program: LoadProgram,
    number: int,
    lacking: tuple[str, ...],
) -> None:
    older = Older(monkeypatch, number, *lacking)

    program = load_program(
        ProgramType.SK_MSG, *PASS, attach_type=AttachType.SK_MSG_VERDICT, name="named"
    )

    assert program.info().name == ""
    assert older.asked[0]["prog_name"] == b"named"


def test_what_a_program_cannot_do_without_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch, load_program: LoadProgram
) -> None:
    """An XDP program for cpumaps is another program without its attach type."""
    Older(monkeypatch, errno.EINVAL, "expected_attach_type")

    with pytest.raises(BpfError) as caught:
        load_program(ProgramType.XDP, *PASS, attach_type=AttachType.XDP_CPUMAP)
    assert caught.value.errno == errno.EINVAL


def test_older_helpers_read_memory_where_newer_ones_lack() -> None:
    """bpf_probe_read_{user,kernel}{,_str} become bpf_probe_read{,_str}; others stay."""
    calls = [Instruction(CALL, 0, 0, 0, number) for number in (112, 113, 114, 115, 1)]
    in_object = Instruction(CALL, 0, 1, 0, 113)

    older = prog_load.with_older_helpers(assemble(*calls, in_object))

    expected = [
        call._replace(imm=number) for call, number in zip(calls, (4, 4, 45, 45, 1), strict=True)
    ]
    assert older == assemble(*expected, in_object)


def test_a_want_of_descriptors_is_told_at_once(
    load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log would not say more, and costs a megabyte."""
    tries: list[str] = []

    def refuse(_: uapi.ProgLoad, action: str) -> Fd:
        tries.append(action)
        raise BpfError(action, errno.EMFILE)

    monkeypatch.setattr(syscall, "prog_load", refuse)
    with pytest.raises(BpfError, match="EMFILE"):
        load_program(ProgramType.SOCKET_FILTER, *PASS)
    assert len(tries) == 1


def test_a_pin_whose_kind_cannot_be_told_is_closed(
    load_program: LoadProgram, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> str:
        raise OSError(errno.ENOMEM, "no")

    load_program(ProgramType.SOCKET_FILTER, *PASS).pin(bpffs / "pass")
    with monkeypatch.context() as patched:
        patched.setattr(os, "readlink", refuse)
        with pytest.raises(BpfError, match=r"open pinned program .*ENOMEM"):
            Program.from_pin(bpffs / "pass")

"""Programs: loaded, refused, pinned."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from accel.bpf.errors import BpfError, VerifierRejected
from accel.bpf.insn import CALL, EXIT, POISON, Instruction
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.probe import assemble, mov
from accel.bpf.program import Program
from accel.bpf.spec import ProgramSpec
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

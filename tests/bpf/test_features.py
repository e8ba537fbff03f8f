"""What a kernel is too old for, told from how it complains."""

from __future__ import annotations

import sys

import pytest

from accel.bpf.format.insn import CALL, EXIT, LD_IMM64, PSEUDO_FUNC, Instruction, encode
from accel.bpf.loading import features

LEAVE = Instruction(EXIT, 0, 0, 0, 0)
FETCH = Instruction(0xDB, 1, 2, 0, 0x01)  # BPF_ADD | BPF_FETCH
ADD = Instruction(0xDB, 1, 2, 0, 0x00)


def told(complaint: str, *instructions: Instruction) -> str | None:
    code = b"".join(encode(i, sys.byteorder) for i in (*instructions, LEAVE))
    return features.remedy(complaint, code)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (158, "run a kernel with bpf_get_current_task_btf() (Linux 5.11 or later)"),
        (174, "run a kernel with bpf_get_attach_cookie() (Linux 5.15 or later)"),
        (211, "run a kernel with bpf_cgrp_storage_delete() (Linux 6.2 or later)"),
        (1, "run a kernel with bpf_map_lookup_elem()"),
        (212, None),
        (195896080, None),
    ],
)
def test_helpers_have_names(number: int, said: str | None) -> None:
    call = Instruction(CALL, 0, 0, 0, number)
    assert told(f"invalid func unknown#{number}", call) == said


@pytest.mark.parametrize(
    ("complaint", "instruction", "said"),
    [
        ("BPF_STX uses reserved fields", FETCH, "Linux 5.12"),
        (
            "unrecognized bpf_ld_imm64 insn",
            Instruction(LD_IMM64, 1, PSEUDO_FUNC, 0, 3),
            "Linux 5.13",
        ),
        ("BPF_MOV uses reserved fields", Instruction(0xBF, 1, 2, 8, 0), "-mcpu=v3"),
        ("BPF_ALU uses reserved fields", Instruction(0x3F, 1, 2, 1, 0), "-mcpu=v3"),
        ("BPF_LDX uses reserved fields", Instruction(0x91, 1, 2, 0, 0), "-mcpu=v3"),
        ("unknown opcode d7", Instruction(0xD7, 1, 0, 0, 64), "-mcpu=v3"),
        ("unknown opcode 06", Instruction(0x06, 0, 0, 0, 1), "Linux 6.6"),
    ],
)
def test_instructions_have_an_age(complaint: str, instruction: Instruction, said: str) -> None:
    assert said in str(told(complaint, instruction))


@pytest.mark.parametrize(
    ("complaint", "instruction"),
    [
        ("BPF_STX uses reserved fields", ADD),
        ("unrecognized bpf_ld_imm64 insn", Instruction(LD_IMM64, 1, 0, 0, 3)),
        ("BPF_ALU uses reserved fields", Instruction(0x3F, 1, 2, 0, 0)),
        ("R0 !read_ok", FETCH),
    ],
)
def test_what_is_not_there_is_not_blamed(complaint: str, instruction: Instruction) -> None:
    assert told(complaint, instruction) is None


def test_the_second_half_of_a_wide_instruction_is_none() -> None:
    wide = Instruction(LD_IMM64, 1, 0, 0, 3), Instruction(0x06, 0, 0, 0, 0)
    assert told("unknown opcode 00", *wide) is None

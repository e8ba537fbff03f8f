"""Instructions: bytes, fields and words."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.bpf.format import insn
from accel.bpf.format.insn import Instruction

instructions = st.builds(
    Instruction,
    code=st.integers(0, 255),
    dst=st.integers(0, 15),
    src=st.integers(0, 15),
    off=st.integers(-(1 << 15), (1 << 15) - 1),
    imm=st.integers(-(1 << 31), (1 << 31) - 1),
)


@given(instructions, st.sampled_from(["little", "big"]))
def test_what_is_encoded_decodes_to_the_same(
    instruction: Instruction, order: Literal["little", "big"]
) -> None:
    assert insn.decode(insn.encode(instruction, order), order) == instruction


@given(instructions)
def test_every_instruction_has_words(instruction: Instruction) -> None:
    assert str(instruction).isprintable()
    assert "\n" not in str(instruction)


def test_registers_swap_places_with_the_byte_order() -> None:
    """llvm-mc: `r1 = r2` is bf 21 on little-endian, bf 12 on big-endian machines."""
    move = Instruction(0xBF, dst=1, src=2, off=0, imm=0)

    assert insn.encode(move, "little")[:2] == b"\xbf\x21"
    assert insn.encode(move, "big")[:2] == b"\xbf\x12"


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (Instruction(0xB7, 1, 0, 0, -5), "r1 = -5"),
        (Instruction(0x0C, 1, 2, 0, 0), "w1 += w2"),
        (Instruction(0x87, 3, 0, 0, 0), "r3 = -r3"),
        (Instruction(0xDC, 1, 0, 0, 16), "r1 = be16 r1"),
        (Instruction(0x61, 2, 1, 8, 0), "r2 = *(u32 *)(r1 +8)"),
        (Instruction(0x91, 2, 1, -8, 0), "r2 = *(s8 *)(r1 -8)"),
        (Instruction(0x7B, 10, 1, -16, 0), "*(u64 *)(r10 -16) = r1"),
        (Instruction(0x62, 10, 0, -4, 9), "*(u32 *)(r10 -4) = 9"),
        (Instruction(0xDB, 1, 2, 0, 0x41), "lock *(u64 *)(r1 +0) (operation 0x41) r2"),
        (Instruction(0x18, 1, 1, 0, 7), "r1 = map 7 ll"),
        (Instruction(0x18, 1, 4, 0, 7), "r1 = function 7 ll"),
        (Instruction(0x85, 0, 0, 0, 14), "call 14"),
        (Instruction(0x85, 0, 1, 0, -3), "call pc-3"),
        (Instruction(0x15, 1, 0, 4, 0), "if r1 == 0 goto +4"),
        (Instruction(0xAE, 1, 2, -4, 0), "if w1 < w2 goto -4"),
        (Instruction(0x05, 0, 0, 2, 0), "goto +2"),
        (Instruction(0x95, 0, 0, 0, 0), "exit"),
    ],
)
def test_words(instruction: Instruction, words: str) -> None:
    assert str(instruction) == words

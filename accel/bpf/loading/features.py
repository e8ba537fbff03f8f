"""What a refused program uses that the kernel may be too old for, by what the verifier says.

Pure.  Old verifiers know no words for what came after them: they call the bits of a new
instruction reserved fields.  So a complaint counts only where the program has such an
instruction.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

from accel.bpf import ages
from accel.bpf.format import insn
from accel.bpf.format.insn import Instruction
from accel.bpf.helper_names import helper_name

# check_helper_call(), kernel/bpf/verifier.c: the number is beyond the last it knows.
_UNKNOWN_HELPER = re.compile(r"invalid func unknown#(\d+)")

_ATOMIC_CODES = (0xC3, 0xDB)  # BPF_STX | BPF_ATOMIC | BPF_W or BPF_DW
_BSWAP = 0xD7  # BPF_ALU64 | BPF_END
_LONG_JUMP = 0x06  # BPF_JMP32 | BPF_JA
_SIGNED_LOADS = (0x81, 0x89, 0x91)  # BPF_LDX | BPF_MEMSX
_DIV, _MOD, _MOV = 0x30, 0x90, 0xB0


def remedy(complaint: str, instructions: bytes) -> str | None:
    """What would help, or None where nothing is known.

    Args:
        complaint: The line of the verifier's log that matters.
    """
    helper = _UNKNOWN_HELPER.search(complaint)
    if helper is not None:
        return _remedy_for_helper(int(helper[1]))
    if "unrecognized bpf_ld_imm64 insn" in complaint:
        if _has(instructions, lambda i: i.is_function_address):
            since = ages.in_words(ages.FUNCTION_POINTERS_SINCE)
            return f"run a kernel with pointers to functions{since}"
    elif "reserved field" in complaint or "unknown opcode" in complaint:
        if "STX" in complaint and _has(instructions, _is_new_atomic):
            since = ages.in_words(ages.ATOMICS_SINCE)
            return f"run a kernel with atomic operations that fetch or compare{since}"
        if _has(instructions, _is_v4):
            since = ages.in_words(ages.CPU_V4_SINCE)
            return f"compile it with -mcpu=v3, or run a kernel with cpu v4{since}"
    return None


def _remedy_for_helper(number: int) -> str | None:
    name = helper_name(number)
    return f"run a kernel with {name}(){ages.in_words(ages.helper_since(number))}" if name else None


def _has(instructions: bytes, wanted: Callable[[Instruction], bool]) -> bool:
    index, end = 0, len(instructions) // insn.SIZE
    while index < end:
        instruction = insn.decode(instructions, sys.byteorder, index)
        if wanted(instruction):
            return True
        index += 2 if instruction.code == insn.LD_IMM64 else 1
    return False


def _is_new_atomic(instruction: Instruction) -> bool:
    return instruction.code in _ATOMIC_CODES and instruction.imm != 0


def _is_v4(instruction: Instruction) -> bool:
    """Sign-extending moves and loads, signed division, byte swaps and far jumps."""
    code = instruction.code
    if code in (_BSWAP, _LONG_JUMP, *_SIGNED_LOADS):
        return True
    if instruction.klass not in (insn.CLASS_ALU, insn.CLASS_ALU64):
        return False
    operation = code & 0xF0
    return (operation in (_DIV, _MOD) and instruction.off == 1) or (
        operation == _MOV and instruction.off in (8, 16, 32)
    )

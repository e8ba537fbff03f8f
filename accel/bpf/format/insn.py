"""BPF instructions: 8 bytes, decoded, encoded and made readable.

Pure.  Only what a loader has to look into; the assembler's view of the instruction
set stays with the compiler.  Numbers are those of include/uapi/linux/bpf.h and
Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from accel.bpf.format.byteorder import MARKS, ByteOrder

SIZE = 8

# Low three bits of the code: what the instruction does.
CLASS_LD = 0x00
CLASS_LDX = 0x01
CLASS_ST = 0x02
CLASS_STX = 0x03
CLASS_ALU = 0x04
CLASS_JMP = 0x05
CLASS_JMP32 = 0x06
CLASS_ALU64 = 0x07

SOURCE_REGISTER = 0x08

# Bits 3 and 4 of a load or store: how many bytes.
SIZE_CODES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
_SIZES = {code: size for size, code in SIZE_CODES.items()}

LD_IMM64 = 0x18
CALL = 0x85
EXIT = 0x95

# src_reg of LD_IMM64 and CALL.
PSEUDO_MAP_FD = 1
PSEUDO_MAP_VALUE = 2
PSEUDO_BTF_ID = 3
PSEUDO_FUNC = 4
PSEUDO_CALL = 1
PSEUDO_KFUNC_CALL = 2

# The helper number libbpf puts where a CO-RE relocation failed (0xbad2310, "bad
# relo").  Using the same lets tools that know libbpf's verifier logs know ours.
POISON = 195896080

_MODE_MEMSX = 0x80
_MODE_ATOMIC = 0xC0
_ALU = {
    0x00: "+=", 0x10: "-=", 0x20: "*=", 0x30: "/=", 0x40: "|=", 0x50: "&=", 0x60: "<<=",
    0x70: ">>=", 0x90: "%=", 0xA0: "^=", 0xB0: "=", 0xC0: "s>>=",
}  # fmt: skip
_JUMP = {
    0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&", 0x50: "!=", 0x60: "s>", 0x70: "s>=",
    0xA0: "<", 0xB0: "<=", 0xC0: "s<", 0xD0: "s<=",
}  # fmt: skip
_LAYOUTS = {order: Struct(f"{mark}BBhi") for order, mark in MARKS.items()}


class Instruction(NamedTuple):
    """One 8-byte instruction.

    Attributes:
        code: Class, and operation, source, size or mode.
        dst, src: Register numbers.
        off: Signed 16 bits.
        imm: Signed 32 bits.
    """

    code: int
    dst: int
    src: int
    off: int
    imm: int

    @property
    def klass(self) -> int:
        """One of the CLASS_* numbers."""
        return self.code & 0x07

    @property
    def access_size(self) -> int:
        """Bytes a load or store touches."""
        return _SIZES[self.code & 0x18]

    @property
    def is_call_in_object(self) -> bool:
        """A call of another BPF function; `imm` counts from the next instruction."""
        return self.code == CALL and self.src == PSEUDO_CALL

    @property
    def is_function_address(self) -> bool:
        """Loads the address of a BPF function; `imm` counts from the next instruction."""
        return self.code == LD_IMM64 and self.src == PSEUDO_FUNC

    def __str__(self) -> str:
        return _disassemble(self)


def decode(data: bytes | bytearray, byteorder: ByteOrder, index: int = 0) -> Instruction:
    """The instruction at `index`, in units of 8 bytes."""
    code, registers, off, imm = _LAYOUTS[byteorder].unpack_from(data, index * SIZE)
    low, high = registers & 0xF, registers >> 4
    # struct bpf_insn holds dst before src in a bit-field, which the ABI of a big-endian
    # machine lays out from the high nibble down.
    dst, src = (low, high) if byteorder == "little" else (high, low)
    return Instruction(code, dst, src, off, imm)


def encode(instruction: Instruction, byteorder: ByteOrder) -> bytes:
    """The instruction's 8 bytes."""
    code, dst, src, off, imm = instruction
    low, high = (dst, src) if byteorder == "little" else (src, dst)
    return _LAYOUTS[byteorder].pack(code, low | high << 4, off, imm)


def to_signed32(value: int) -> int:
    """The low 32 bits of `value`, as the signed number `imm` holds."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _disassemble(i: Instruction) -> str:
    if i.klass in (CLASS_ALU, CLASS_ALU64):
        return _alu(i)
    if i.klass in (CLASS_JMP, CLASS_JMP32):
        return _jump(i)
    if i.code == LD_IMM64:
        meaning = {0: "", PSEUDO_MAP_FD: "map ", PSEUDO_MAP_VALUE: "map value ",
                   PSEUDO_BTF_ID: "kernel variable of type ",
                   PSEUDO_FUNC: "function "}.get(i.src, f"pseudo {i.src} ")  # fmt: skip
        return f"r{i.dst} = {meaning}{i.imm} ll"
    if i.klass == CLASS_LD:
        return f"r0 = packet[{i.imm}] (code {i.code:#04x})"
    return _memory(i)


def _alu(i: Instruction) -> str:
    letter = "r" if i.klass == CLASS_ALU64 else "w"
    operation = i.code & 0xF0
    if operation == 0x80:
        return f"{letter}{i.dst} = -{letter}{i.dst}"
    if operation == 0xD0:
        order = "be" if i.code & SOURCE_REGISTER else "le"
        return f"r{i.dst} = {order}{i.imm} r{i.dst}"
    operand = f"{letter}{i.src}" if i.code & SOURCE_REGISTER else str(i.imm)
    return f"{letter}{i.dst} {_ALU.get(operation, '?=')} {operand}"


def _jump(i: Instruction) -> str:
    operation = i.code & 0xF0
    if i.code == EXIT:
        return "exit"
    if operation == 0x80:
        if i.src == PSEUDO_CALL:
            return f"call pc{i.imm:+d}"
        return f"call {'kfunc ' if i.src == PSEUDO_KFUNC_CALL else ''}{i.imm}"
    if operation == 0x00:
        return f"goto {i.imm if i.klass == CLASS_JMP32 else i.off:+d}"
    letter = "r" if i.klass == CLASS_JMP else "w"
    operand = f"{letter}{i.src}" if i.code & SOURCE_REGISTER else str(i.imm)
    return f"if {letter}{i.dst} {_JUMP.get(operation, '?')} {operand} goto {i.off:+d}"


def _memory(i: Instruction) -> str:
    mode = i.code & 0xE0
    sign = "s" if mode == _MODE_MEMSX else "u"
    kind = f"{sign}{i.access_size * 8}"
    if i.klass == CLASS_LDX:
        return f"r{i.dst} = *({kind} *)(r{i.src} {i.off:+d})"
    place = f"*({kind} *)(r{i.dst} {i.off:+d})"
    if i.klass == CLASS_ST:
        return f"{place} = {i.imm}"
    if mode == _MODE_ATOMIC:
        return f"lock {place} (operation {i.imm:#x}) r{i.src}"
    return f"{place} = r{i.src}"

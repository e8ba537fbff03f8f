"""Instructions of a program as text, its source lines between them.

Before relocation: as the object has them, maps and externs by name.
"""

from __future__ import annotations

from collections.abc import Iterator

from accel.bpf.format import insn
from accel.bpf.helper_names import helper_name
from accel.bpf.loading import verifier
from accel.bpf.spec import ObjectSpec, ProgramSpec
from accel.cli import c_words
from accel.cli.object_facts import functions

_LOW_HALF = 0xFFFFFFFF


def listing(spec: ObjectSpec, program: ProgramSpec) -> list[str]:
    """Lines: "name:" where a function starts, "; file.c:12: text", "12: r1 = 5"."""
    notes = _Notes(spec, program)
    lines = [f"{program.name}:"]
    previous = None
    for index, instruction in _instructions(spec, program):
        if index in notes.functions:
            lines.append(f"{notes.functions[index]}:")
        source = notes.source(index)
        if source is not None and source != previous:
            lines.append(f"; {source}")
        previous = source
        lines.append(f"{index:>6}: {notes.text(index, instruction)}")
    return lines


def _instructions(spec: ObjectSpec, program: ProgramSpec) -> Iterator[tuple[int, insn.Instruction]]:
    """Each with its index; the second half of one of 16 bytes is left out."""
    count = len(program.instructions) // insn.SIZE
    index = 0
    while index < count:
        instruction = insn.decode(program.instructions, spec.byteorder, index)
        yield index, instruction
        index += 2 if instruction.code == insn.LD_IMM64 else 1


class _Notes:
    """What the object knows of single instructions."""

    def __init__(self, spec: ObjectSpec, program: ProgramSpec) -> None:
        self._spec = spec
        self._program = program
        self.functions = functions(spec, program)
        self._maps = {reference.index: reference for reference in program.map_references}
        self._externs = {r.index: r.extern for r in program.extern_references}
        self._core = {r.index: r for r in program.core_relocations}

    def source(self, index: int) -> str | None:
        if self._spec.btf is None:
            return None
        return verifier.source_at(index, self._program.line_info, self._spec.btf.string)

    def text(self, index: int, instruction: insn.Instruction) -> str:
        text = self._operation(index, instruction)
        relocation = self._core.get(index)
        if relocation is None or self._spec.btf is None:
            return text
        asked = c_words.access(self._spec.btf, relocation)
        return f"{text}  // {relocation.kind.name} {asked}"

    def _operation(self, index: int, i: insn.Instruction) -> str:
        reference, extern = self._maps.get(index), self._externs.get(index)
        if reference is not None:
            part = "" if reference.value_offset is None else f" + {reference.value_offset}"
            return f"r{i.dst} = map {reference.map}{part} ll"
        if extern is not None:
            return f"call {extern}" if i.code == insn.CALL else f"r{i.dst} = {extern} ll"
        if i.code == insn.CALL and i.src == insn.PSEUDO_CALL:
            return f"call {self._function(index + i.imm + 1)}"
        if i.code == insn.CALL and not i.src and helper_name(i.imm):
            return f"call {helper_name(i.imm)}#{i.imm}"
        if i.is_function_address:
            return f"r{i.dst} = function {self._function(index + i.imm + 1)} ll"
        if i.code == insn.LD_IMM64 and not i.src:
            return f"r{i.dst} = {self._constant(index, i):#x} ll"
        return str(i)

    def _function(self, index: int) -> str:
        return self.functions.get(index, self._program.name)

    def _constant(self, index: int, i: insn.Instruction) -> int:
        """All 64 bits of a constant; its upper half may be cut off."""
        if (index + 2) * insn.SIZE > len(self._program.instructions):
            return i.imm & _LOW_HALF
        upper = insn.decode(self._program.instructions, self._spec.byteorder, index + 1)
        return (upper.imm & _LOW_HALF) << 32 | (i.imm & _LOW_HALF)

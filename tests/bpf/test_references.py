"""What opening makes of instructions that refer to something: nothing is lost, nothing twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from accel.bpf.format import insn
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec, ProgramSpec

from .compilers import TARGETS
from .conftest import Compile

OBJECTS = sorted(
    path.name.removesuffix(".bpf.c") for path in (Path(__file__).parents[1] / "objects").glob("*.c")
)


def references(program: ProgramSpec) -> Counter[int]:
    """How many references there are of each instruction."""
    to_maps = [*program.map_references]
    to_maps += [reference for table in program.jump_tables for reference in table.references]
    return Counter([r.index for r in to_maps] + [r.index for r in program.extern_references])


def functions(program: ProgramSpec) -> set[int]:
    """The instructions at which a function of the program starts."""
    return {0, *(info.index for info in program.func_info)}


def check(spec: ObjectSpec, program: ProgramSpec) -> None:
    referred = references(program)
    starts = functions(program)
    code, index = program.instructions, 0
    while index < len(code) // insn.SIZE:
        at = insn.decode(code, spec.byteorder, index)
        inside = (at.code, at.src) in (
            (insn.CALL, insn.PSEUDO_CALL),
            (insn.LD_IMM64, insn.PSEUDO_FUNC),
        )
        if inside and index not in referred:
            assert index + 1 + at.imm in starts, (program.name, index, at)
        elif at.code in (insn.CALL, insn.LD_IMM64) and at.src:
            assert referred[index] == 1, (program.name, index, at)
        else:
            # A symbol whose type is not known: any number will be loaded.
            assert referred[index] == (at.code == insn.LD_IMM64 and index in referred)
        index += 2 if at.code == insn.LD_IMM64 else 1


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("order", TARGETS)
def test_every_reference_is_there_once(name: str, order: str, compiled: Compile) -> None:
    spec = open_object(compiled(name, order))
    for program in spec.programs.values():
        check(spec, program)

"""What a tracing program and its like is for: the kernel's function, or another program's.

A section names it in words, "fentry/tcp_sendmsg"; bpf(2) wants the number of a type and who
has that type: vmlinux, a module, or a loaded program.
"""

from __future__ import annotations

from errno import ENOENT

from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.format import btf as b
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.prog_load import NO_TARGET, Target
from accel.bpf.loading.program import Program
from accel.bpf.maps.info import loaded_types
from accel.bpf.spec import ProgramSpec

# What the kernel calls what a target's name stands for: BTF_TRACE_PREFIX and its like,
# check_attach_btf_id() in kernel/bpf/verifier.c and include/linux/btf_ids.h.
_PREFIXES: dict[int | None, str] = {
    AttachType.TRACE_RAW_TP: "btf_trace_",
    AttachType.TRACE_ITER: "bpf_iter_",
    AttachType.LSM_MAC: "bpf_lsm_",
    AttachType.LSM_CGROUP: "bpf_lsm_",
}

# These are for many functions, named when they are attached.
_MULTI = (
    AttachType.TRACE_FENTRY_MULTI,
    AttachType.TRACE_FEXIT_MULTI,
    AttachType.TRACE_FSESSION_MULTI,
)


def has_target(program: ProgramSpec) -> bool:
    """Whether such a program is verified against something by its type."""
    if program.type in (ProgramType.LSM, ProgramType.EXT):
        return True
    return program.type == ProgramType.TRACING and program.attach_type not in _MULTI


def find(program: ProgramSpec, kernel: Kernel, other: Program | None) -> Target:
    """What the program is for.

    Args:
        other: The program whose function it is for, instead of the kernel's.

    Raises:
        ObjectError: Its section names nothing, or it replaces a function of a program that
            was not given.
        BpfError: ENOENT when the kernel, or that program, has no such thing.
    """
    if not has_target(program):
        return NO_TARGET
    name = program.attach_target
    if name is None:
        raise ObjectError(
            f"program {program.name}: SEC({program.section!r}) does not say what it is for",
            remedy=f"SEC({program.section + '/NAME'!r}), or with_program({program.name!r}, "
            "target=NAME)",
        )
    if other is not None:
        return Target(function_id(other, name, f"load program {program.name}"), other)
    if program.type == ProgramType.EXT:
        raise ObjectError(
            f"program {program.name} replaces function {name} of another program, which was "
            "not given",
            remedy=f"load(..., targets={{{program.name!r}: PROGRAM}})",
        )
    return _of_kernel(program, name, kernel)


def _of_kernel(program: ProgramSpec, target: str, kernel: Kernel) -> Target:
    module, _, name = target.rpartition(":")
    name = _PREFIXES.get(program.attach_type, "") + name
    kind = b.Typedef if program.attach_type == AttachType.TRACE_RAW_TP else b.Func
    found = kernel.locate(name, kind, module or None)
    if found is None:
        where = f"module {module}" if module else "the kernel"
        what = "tracepoint type" if kind is b.Typedef else "function"
        raise BpfError(
            f"load program {program.name}: {where} has no {what} {name}",
            ENOENT,
            remedy="run a kernel that has it, or do without this program",
        )
    return Target(found.type_id, found.module)


def function_id(program: Program, name: str, action: str) -> int:
    """BTF id of a function in the types a program was loaded with.

    Raises:
        BpfError: ENOENT when it was loaded without types, or they have no such function.
    """
    number = program.info().btf_id
    found = loaded_types(number).find(name, b.Func) if number else None
    if found is None:
        raise BpfError(
            f"{action}: program {program.name} has no function {name}",
            ENOENT,
            remedy="name one of its global functions" if number else "load it with its BTF",
        )
    return found[0]

"""Load: an ObjectSpec becomes maps, variables and programs in the kernel."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from errno import ENOENT
from types import MappingProxyType
from typing import Any

from accel.bpf import probe, syscall
from accel.bpf.btf import Btf
from accel.bpf.closing import Closing
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.fd import Fd
from accel.bpf.insn import PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, SIZE, decode, encode
from accel.bpf.kernel_btf import KernelBtf
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.map import Map, differences
from accel.bpf.program import Program
from accel.bpf.relocate import relocate
from accel.bpf.spec import MapReference, ObjectSpec, ProgramSpec
from accel.bpf.variable import Variable, Variables

_NO_MAPS: Mapping[str, Map[Any, Any]] = MappingProxyType({})

# What the kernel calls the function, or type, that a target's name stands for:
# BPF_ITER_FUNC_PREFIX and its like, kernel/bpf/verifier.c and include/linux/btf_ids.h.
_TARGET_PREFIXES: dict[int | None, str] = {
    AttachType.TRACE_ITER: "bpf_iter_",
    AttachType.TRACE_FENTRY: "",
    AttachType.TRACE_FEXIT: "",
    AttachType.MODIFY_RETURN: "",
    AttachType.LSM_MAC: "bpf_lsm_",
}

_BTF_LOG_BYTES = 64 * 1024


class Object(Closing):
    """What load() made: the maps, variables and programs of one object, by name.

    Closing lets go of all of them but the maps that were given to load(); what
    is pinned or attached lives on.
    """

    def __init__(
        self,
        spec: ObjectSpec,
        maps: Mapping[str, Map[bytes, Any]],
        variables: Mapping[str, Variable],
        programs: Mapping[str, Program],
        resources: ExitStack,
    ) -> None:
        """Not for direct use: see load()."""
        self.spec = spec
        self.maps = MappingProxyType(maps)
        self.variables = MappingProxyType(variables)
        self.programs = MappingProxyType(programs)
        self._resources = resources
        self._closed = False

    def close(self) -> None:
        """Let go of everything; a second time does nothing."""
        self._closed = True
        self._resources.close()

    def __repr__(self) -> str:
        return (
            f"<Object {self.spec.name}: {len(self.programs)} programs, {len(self.maps)} maps, "
            f"{len(self.variables)} variables{', closed' if self._closed else ''}>"
        )


def load(
    spec: ObjectSpec,
    *,
    maps: Mapping[str, Map[Any, Any]] = _NO_MAPS,
    kernel_btf: KernelBtf | None = None,
    programs: Collection[str] | None = None,
) -> Object:
    """Create the object's maps and load its programs.  All of it, or nothing.

    Args:
        maps: Existing maps to use instead of creating those of these names.
        kernel_btf: The running kernel's types, if the caller has them open;
            otherwise they are opened when a program needs them.
        programs: Load only these; None loads all but those marked not to be
            loaded by default (SEC("?...")).

    Raises:
        ObjectError: The object is for the other byte order, or lacks what was named.
        ShapeError: A given map is not what the object needs.
        VerifierRejected: A program was refused.
        BpfError: The kernel refused something else.
    """
    if spec.byteorder != sys.byteorder:
        raise ObjectError(
            f"{spec.name} is for {spec.byteorder}-endian machines, this one is "
            f"{sys.byteorder}-endian",
            remedy=f"load the object built for {sys.byteorder}-endian machines",
        )
    chosen = _choose(spec, programs)
    strangers = sorted(set(maps) - set(spec.maps))
    if strangers:
        raise ObjectError(f"{spec.name} has no map {', '.join(strangers)}")
    with ExitStack() as undo:
        btf_fd = None if spec.btf is None else load_btf(spec.btf, spec.name)
        if btf_fd is not None:
            undo.callback(btf_fd.close)
        mine = _make_maps(spec, maps, btf_fd, undo)
        variables = _make_variables(spec, mine, undo)
        if kernel_btf is None and any(map(_needs_kernel_btf, chosen)):
            kernel_btf = undo.enter_context(KernelBtf.open())
        loaded = {
            program.name: undo.enter_context(_load_program(spec, program, mine, btf_fd, kernel_btf))
            for program in chosen
        }
        return Object(spec, mine, variables, loaded, undo.pop_all())
    raise AssertionError("ExitStack does not swallow exceptions")


def _choose(spec: ObjectSpec, names: Collection[str] | None) -> list[ProgramSpec]:
    if names is None:
        return [program for program in spec.programs.values() if program.autoload]
    missing = sorted(set(names) - set(spec.programs))
    if missing:
        raise ObjectError(f"{spec.name} has no program {', '.join(missing)}")
    return [program for name, program in spec.programs.items() if name in names]


def load_btf(btf: Btf, name: str) -> Fd:
    """Give the kernel an object's types, in words it understands.

    Raises:
        BpfError: It refused them; the remedy quotes its reason.
    """
    data = btf.sanitised(probe.btf_features())
    action = f"load the BTF of {name}"
    try:
        return probe.within_memlock(lambda: syscall.btf_load(data, action))
    except BpfError as error:
        fd, log = syscall.btf_load_log(data, _BTF_LOG_BYTES, action)
        if fd is not None:
            return fd
        lines = log.strip().splitlines()
        if not lines:
            raise
        raise BpfError(f"{action}: {lines[-1].strip()}", error.errno) from None


def _make_maps(
    spec: ObjectSpec, given: Mapping[str, Map[Any, Any]], btf_fd: Fd | None, undo: ExitStack
) -> dict[str, Map[bytes, Any]]:
    """All maps of the object.  Created ones are complete: contents written, .rodata frozen."""
    made: dict[str, Map[bytes, Any]] = {}
    for name, blueprint in spec.maps.items():
        existing = given.get(name)
        if existing is None:
            created = Map.create(blueprint, btf=spec.btf, btf_fd=btf_fd)
            made[name] = undo.enter_context(created)
            continue
        different = differences(existing.info(), blueprint)
        if different:
            raise ShapeError(f"map {existing.name} cannot be the {name} of {spec.name}", different)
        made[name] = existing
    return made


def _make_variables(
    spec: ObjectSpec, maps: Mapping[str, Map[bytes, Any]], undo: ExitStack
) -> dict[str, Variable]:
    if spec.btf is None:
        return {}
    found: dict[str, Variable] = {}
    for name in sorted({variable.map for variable in spec.variables.values()}):
        of_map = Variables(maps[name], spec.variables, spec.btf)
        found |= undo.enter_context(of_map)
    return found


def _needs_kernel_btf(program: ProgramSpec) -> bool:
    return bool(program.core_relocations) or program.attach_target is not None


def _load_program(
    spec: ObjectSpec,
    program: ProgramSpec,
    maps: Mapping[str, Map[bytes, Any]],
    btf_fd: Fd | None,
    kernel_btf: KernelBtf | None,
) -> Program:
    instructions, poisoned = program.instructions, {}
    if program.core_relocations:
        if spec.btf is None or kernel_btf is None:
            raise ObjectError(f"program {program.name} has CO-RE relocations, but no types")
        relocated = relocate(program, spec.btf, kernel_btf, spec.byteorder)
        instructions, poisoned = relocated.instructions, dict(relocated.poisoned)
    return Program.load(
        program,
        with_maps(instructions, program.map_references, maps),
        license=spec.license,
        btf=spec.btf,
        btf_fd=btf_fd,
        attach_btf_id=_attach_btf_id(program, kernel_btf),
        poisoned=poisoned,
    )


def with_maps(
    instructions: bytes, references: tuple[MapReference, ...], maps: Mapping[str, Map[Any, Any]]
) -> bytes:
    """Instructions of this machine with the descriptors of their maps filled in."""
    code = bytearray(instructions)
    for reference in references:
        of_value = reference.value_offset is not None
        first = decode(instructions, sys.byteorder, reference.index)
        second = decode(instructions, sys.byteorder, reference.index + 1)
        start = reference.index * SIZE
        code[start : start + 2 * SIZE] = encode(
            first._replace(
                src=PSEUDO_MAP_VALUE if of_value else PSEUDO_MAP_FD,
                imm=maps[reference.map].fileno(),
            ),
            sys.byteorder,
        ) + encode(second._replace(imm=reference.value_offset or 0), sys.byteorder)
    return bytes(code)


def _attach_btf_id(program: ProgramSpec, kernel_btf: KernelBtf | None) -> int:
    """The kernel's id of the function a tracing program is for; 0 for other programs."""
    if program.type not in (ProgramType.TRACING, ProgramType.LSM):
        return 0
    prefix = _TARGET_PREFIXES.get(program.attach_type)
    if prefix is None or program.attach_target is None or kernel_btf is None:
        raise ObjectError(
            f"program {program.name} in section {program.section} names no kernel function "
            "this loader can find"
        )
    name = prefix + program.attach_target
    found = kernel_btf.func_id(name)
    if found is None:
        raise BpfError(
            f"load program {program.name}: the kernel has no function {name}",
            ENOENT,
            remedy="run a kernel that has it, or do without this program",
        )
    return found

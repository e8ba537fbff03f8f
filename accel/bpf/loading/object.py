"""Load: an ObjectSpec becomes maps, variables and programs in the kernel.

Each step needs what the one before it made: externs are found, maps created and filled,
programs relocated and verified, and last the maps that hold programs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from accel.bpf.closing import Closing
from accel.bpf.door import syscall
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.kinds import ProgramType
from accel.bpf.loading import initial_values, resolve, targets
from accel.bpf.loading import jump_tables as jump_tables_load
from accel.bpf.loading import struct_ops as tables
from accel.bpf.loading.btf_load import load_btf
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.operands import put_maps
from accel.bpf.loading.prog_load import Target
from accel.bpf.loading.program import Program
from accel.bpf.loading.relocate import Relocator
from accel.bpf.maps import pins
from accel.bpf.maps.create import differences
from accel.bpf.maps.map import Map
from accel.bpf.maps.variable import Variable, Variables
from accel.bpf.spec import MapSpec, ObjectSpec, ProgramSpec
from accel.errors import AccelError

_NO_MAPS: Mapping[str, Map[Any, Any]] = MappingProxyType({})
_NO_TARGETS: Mapping[str, Program] = MappingProxyType({})


class Object(Closing):
    """What load() made: the maps, variables and programs of one object, by name.

    Closing lets go of all of them but the maps that were given to load(); what
    is pinned or attached lives on.

    Attributes:
        remarks: What was left out, and why, in words: the spec's and load()'s own.
    """

    def __init__(
        self,
        spec: ObjectSpec,
        maps: Mapping[str, Map[bytes, Any]],
        variables: Mapping[str, Variable],
        programs: Mapping[str, Program],
        remarks: tuple[str, ...],
        resources: ExitStack,
    ) -> None:
        """Not for direct use: see load()."""
        self.spec = spec
        self.maps = MappingProxyType(maps)
        self.variables = MappingProxyType(variables)
        self.programs = MappingProxyType(programs)
        self.remarks = remarks
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
    kernel: Kernel | None = None,
    programs: Collection[str] | None = None,
    targets: Mapping[str, Program] = _NO_TARGETS,
    pin_directory: str | os.PathLike[str] | None = None,
) -> Object:
    """Create the object's maps and load its programs.  All of it, or nothing.

    Program arrays that were there before, given or pinned, are written last; should that
    fail, each slot gets back the program it held.

    Args:
        maps: Existing maps to use instead of creating those of these names.
        kernel: What the caller has open of the running kernel, to share it between
            objects; otherwise it is opened as needed.
        programs: Load only these; None loads all but those marked not to be loaded by
            default (SEC("?...")), and callbacks of struct_ops that no table refers to.
        targets: For programs that trace or replace functions of other programs: which
            program, by name of the one to be loaded.
        pin_directory: Where maps that ask for it (LIBBPF_PIN_BY_NAME) are pinned, or
            found if they are pinned there already; None leaves them unpinned.

    Raises:
        ObjectError: The object is for the other byte order, or lacks what was named, or
            the kernel lacks what the object cannot do without.
        ShapeError: A given or pinned map is not what the object needs.
        VerifierRejected: A program was refused.
        BpfError: The kernel refused something else.

    What load() would have remarked is in the error's notes.
    """
    _check_names(spec, maps, targets)
    with ExitStack() as undo, ExitStack() as meanwhile:
        if kernel is None:
            kernel = meanwhile.enter_context(Kernel())
        loading = _Loading(spec, kernel, targets, undo, meanwhile)
        try:
            loading.choose(programs)
            loading.find_externs()
            loading.load_types()
            loading.make_maps(maps, pin_directory)
            loading.load_programs()
        except AccelError as error:
            for remark in loading.own_remarks():
                error.add_note(remark)
            raise
        return loading.finish()
    raise AssertionError("ExitStack does not swallow exceptions")


def _check_names(
    spec: ObjectSpec, maps: Mapping[str, Map[Any, Any]], targets: Mapping[str, Program]
) -> None:
    if spec.byteorder != sys.byteorder:
        raise ObjectError(
            f"{spec.name} is for {spec.byteorder}-endian machines, this one is "
            f"{sys.byteorder}-endian",
            remedy=f"load the object built for {sys.byteorder}-endian machines",
        )
    strangers = sorted(set(maps) - set(spec.maps))
    if strangers:
        raise ObjectError(f"{spec.name} has no map {', '.join(strangers)}")
    strangers = sorted(set(targets) - set(spec.programs))
    if strangers:
        raise ObjectError(f"{spec.name} has no program {', '.join(strangers)}")


class _Loading:
    """One load(), step by step."""

    def __init__(
        self,
        spec: ObjectSpec,
        kernel: Kernel,
        targets: Mapping[str, Program],
        undo: ExitStack,
        meanwhile: ExitStack,
    ) -> None:
        """
        Args:
            undo: Holds what the Object is to hold.
            meanwhile: Holds what is needed until the last step.
        """
        self._spec = spec
        self._kernel = kernel
        self._targets = targets
        self._undo = undo
        self._meanwhile = meanwhile
        # Closed with an error still under way, it takes new pins away.
        self._pins = meanwhile.enter_context(ExitStack())
        self._remarks = list(spec.remarks)
        self._chosen: list[ProgramSpec] = []
        self._resolved = resolve.NOTHING
        self._btf_fd: Fd | None = None
        self._tables: dict[str, tables.Table] = {}
        self._relocations: Relocator | None = None
        self._maps: dict[str, Map[bytes, Any]] = {}
        self._created: list[MapSpec] = []
        self._variables: dict[str, Variable] = {}
        self._programs: dict[str, Program] = {}

    # --- before the kernel is changed -----------------------------------------------------------

    def choose(self, names: Collection[str] | None) -> None:
        """Which programs are to be loaded, and whether enough is known of them."""
        spec = self._spec
        if names is None:
            wanted = tables.callbacks(spec)
            for program in spec.programs.values():
                is_idle = program.type == ProgramType.STRUCT_OPS and program.name not in wanted
                if program.autoload and is_idle:
                    self._remarks.append(
                        f"program {program.name} is not loaded: no struct_ops refers to it"
                    )
                elif program.autoload or program.name in wanted:
                    self._chosen.append(program)
        else:
            missing = sorted(set(names) - set(spec.programs))
            if missing:
                raise ObjectError(f"{spec.name} has no program {', '.join(missing)}")
            self._chosen = [program for name, program in spec.programs.items() if name in names]
        for program in self._chosen:
            if program.type == ProgramType.UNSPEC:
                raise ObjectError(
                    f"program {program.name}: SEC({program.section!r}) names no program type",
                    remedy=f"with_program({program.name!r}, type=...), or programs=... without it",
                )

    def find_externs(self) -> None:
        """What programs and tables refer to in the kernel."""
        self._resolved = resolve.resolve(self._spec, self._chosen, self._kernel)
        self._spec = resolve.with_settings(self._spec, self._resolved)
        self._tables = tables.fit(self._spec, self._kernel)

    # --- types and maps ------------------------------------------------------------------------

    def load_types(self) -> None:
        """The object's types; only tables cannot do without."""
        btf = self._spec.btf
        if btf is None or not self._has_use_for_types():
            return
        try:
            self._btf_fd = load_btf(btf, self._spec.name)
        except BpfError as error:
            if self._tables:
                raise
            self._remarks.append(f"the kernel works without the object's types: {error}")
        else:
            self._meanwhile.callback(self._btf_fd.close)

    def _has_use_for_types(self) -> bool:
        return (
            any(program.func_info for program in self._chosen)
            or any(map.value_type_id or map.key_type_id for map in self._spec.maps.values())
            or bool(self._tables)
        )

    def make_maps(
        self,
        given: Mapping[str, Map[Any, Any]],
        pin_directory: str | os.PathLike[str] | None,
    ) -> None:
        """All maps, with all they hold from the start but programs."""
        for name, blueprint in self._spec.maps.items():
            if name in given:
                self._maps[name] = _fitting(given[name], blueprint, self._spec.name)
            elif blueprint.autocreate:
                map, is_new = self._make_map(blueprint, pin_directory)
                self._maps[name] = self._undo.enter_context(map)
                if is_new:
                    self._created.append(blueprint)
                    self._remarks.extend(map.remarks)
        for blueprint in self._created:
            initial_values.put_maps(blueprint, self._maps[blueprint.name], self._maps)
        self._make_variables()

    def _make_map(
        self, blueprint: MapSpec, pin_directory: str | os.PathLike[str] | None
    ) -> tuple[Map[Any, Any], bool]:
        """A map, and whether it is new."""
        if blueprint.pin_by_name and pin_directory is not None:
            return pins.find_or_pin(
                blueprint,
                pin_directory,
                self._spec.btf,
                lambda: self._create(blueprint),
                self._pins,
            )
        return self._create(blueprint), True

    def _create(self, blueprint: MapSpec) -> Map[Any, Any]:
        table = self._tables.get(blueprint.name)
        if table is not None:
            return tables.create(blueprint, table, self._spec.btf, self._btf_fd)
        return Map.create(blueprint, btf=self._spec.btf, btf_fd=self._btf_fd)

    def _make_variables(self) -> None:
        btf = self._spec.btf
        if btf is None:
            return
        for name in sorted({variable.map for variable in self._spec.variables.values()}):
            if name in self._maps:
                of_map = Variables(self._maps[name], self._spec.variables, btf)
                self._variables |= self._undo.enter_context(of_map)

    # --- programs --------------------------------------------------------------------------------

    def load_programs(self) -> None:
        """All chosen programs, and the maps that hold them."""
        members = tables.members(self._tables)
        for program in self._chosen:
            loaded = self._load_program(program, members.get(program.name))
            self._programs[program.name] = self._undo.enter_context(loaded)
            self._bind_constants(program, loaded)
        for blueprint in self._created:
            initial_values.put_programs(blueprint, self._maps[blueprint.name], self._programs)
        for name, table in self._tables.items():
            if name in self._maps:
                tables.make_ready(self._maps[name], table, self._programs)
        self._fill_borrowed()

    def _fill_borrowed(self) -> None:
        """Maps that others see too: the last step, undone if it fails half way."""
        ours = {blueprint.name for blueprint in self._created}
        with ExitStack() as former, ExitStack() as undo:
            for name, blueprint in self._spec.maps.items():
                if name in self._maps and name not in ours:
                    initial_values.exchange_programs(
                        blueprint, self._maps[name], self._programs, former, undo
                    )
            undo.pop_all()

    def _load_program(self, program: ProgramSpec, member: tables.Member | None) -> Program:
        if member is not None:
            program = replace(program, attach_type=member.number)
        prepared = self._prepare(program)
        is_kprobe = program.type == ProgramType.KPROBE
        return Program.load(
            program,
            prepared.instructions,
            license=self._spec.license,
            btf=self._spec.btf,
            btf_fd=self._btf_fd,
            target=self._target_of(program, member),
            fd_array=self._resolved.fd_array,
            kernel_version=self._kernel.version if is_kprobe else 0,
            poisoned=prepared.poisoned,
        )

    def _target_of(self, program: ProgramSpec, member: tables.Member | None) -> Target:
        if member is not None:
            return Target(member.struct_type_id, member.module)
        if program.type == ProgramType.STRUCT_OPS:
            raise ObjectError(f"program {program.name} is a callback that no struct_ops refers to")
        return targets.find(program, self._kernel, self._targets.get(program.name))

    def _prepare(self, program: ProgramSpec) -> _Prepared:
        """Everything that this kernel, these maps and its externs make of the instructions."""
        spec, instructions = self._spec, program.instructions
        poisoned: dict[int, str] = {}
        if program.core_relocations:
            relocated = self._relocator(program).relocate(program)
            instructions = relocated.instructions
            poisoned |= relocated.poisoned
        code = bytearray(instructions)
        poisoned |= put_maps(code, program.map_references, self._maps, list(spec.maps))
        poisoned |= resolve.patch(code, program.extern_references, spec.externs, self._resolved)
        for table in jump_tables_load.put(code, program.jump_tables, program.name):
            self._meanwhile.enter_context(table)
        return _Prepared(bytes(code), poisoned)

    def _relocator(self, program: ProgramSpec) -> Relocator:
        if self._relocations is None:
            btf = self._spec.btf
            if btf is None:
                raise ObjectError(f"program {program.name} has CO-RE relocations, but no types")
            of_all = chain.from_iterable(chosen.core_relocations for chosen in self._chosen)
            self._kernel.types.expect(len({relocation.type_id for relocation in of_all}))
            self._relocations = Relocator(
                btf, self._kernel.relocation_types(), self._spec.byteorder
            )
        return self._relocations

    def _bind_constants(self, program: ProgramSpec, loaded: Program) -> None:
        """Have .rodata live with the program that does not refer to it, for tools to find.

        Compilers put constants into instructions; bpftool shows variables, and the object's
        metadata, of the maps a program holds.
        """
        referred = {reference.map for reference in program.map_references}
        for name, blueprint in self._spec.maps.items():
            if blueprint.frozen and name.startswith(".rodata") and name not in referred:
                try:
                    syscall.prog_bind_map(
                        loaded, self._maps[name], f"bind map {name} to program {program.name}"
                    )
                except BpfError:
                    return  # before 5.10, or not for this kind of program

    # --- the end ---------------------------------------------------------------------------------

    def own_remarks(self) -> list[str]:
        """Without those of the spec."""
        return self._remarks[len(self._spec.remarks) :]

    def finish(self) -> Object:
        """Hand over all of it."""
        self._pins.pop_all()
        return Object(
            self._spec,
            self._maps,
            self._variables,
            self._programs,
            tuple(self._remarks),
            self._undo.pop_all(),
        )


class _Prepared(NamedTuple):
    """Instructions for the kernel, and why, by index, of those that could not be made."""

    instructions: bytes
    poisoned: Mapping[int, str]


def _fitting(map: Map[Any, Any], blueprint: MapSpec, object_name: str) -> Map[Any, Any]:
    different = differences(map.info(), blueprint)
    if different:
        raise ShapeError(
            f"map {map.name} cannot be the {blueprint.name} of {object_name}", different
        )
    return map

"""What `accel object inspect --json` says of an object: these classes are its document.

Pure: an ObjectSpec in, facts out.  Kinds and flags go by the kernel's names without their
prefixes, types by words of C.  What is null is not known, or not there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from accel.bpf import ages, codec_for
from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format.insn import CALL, LD_IMM64, PSEUDO_CALL, PSEUDO_FUNC, PSEUDO_KFUNC_CALL, SIZE
from accel.bpf.helper_names import helper_name
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.loading import verifier
from accel.bpf.spec import ExternKind, MapSpec, ObjectSpec, ProgramSpec, VariableSpec
from accel.cli import c_words, kernel_words

# A value of more bytes is no longer something to read.
_MAX_VALUE_BYTES = 4096
# KERNEL_VERSION(a, b, c) with all bits set, as in objects that ask for "any".
_ANY_VERSION = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """One program.

    Attributes:
        section: As in SEC(), with the "?" of one that is not loaded unless asked for.
        type: "SOCK_OPS"; null when its section does not tell.
        attach_target: What it is attached to, as its section says: "bpf_map_elem".
        flags: "SLEEPABLE", "XDP_HAS_FRAGS".
        instructions: Of 8 bytes each, subprograms included.
        subprograms: Functions of the object it calls, by name where BTF knows.
        maps: Names of those it uses, its variables' among them.
        externs: Names of what it needs of the kernel.
        core_relocations: How many of its instructions depend on the kernel's types.
    """

    name: str
    section: str
    type: str | None
    attach_type: str | None
    attach_target: str | None
    flags: list[str]
    autoload: bool
    instructions: int
    subprograms: list[str]
    maps: list[str]
    externs: list[str]
    core_relocations: int


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """A key's or value's: bytes, and the type in C where BTF gives one."""

    size: int
    type: str | None


@dataclass(frozen=True, slots=True)
class HeldFacts:
    """A map or program that a map holds from the start, and where."""

    slot: int
    name: str


@dataclass(frozen=True, slots=True)
class CallbackFacts:
    """A member of a struct_ops and the program it points to."""

    member: str
    program: str


@dataclass(frozen=True, slots=True)
class StructOpsFacts:
    """The kernel's struct a map fills; `is_link` when it takes effect as a link."""

    type: str
    is_link: bool
    callbacks: list[CallbackFacts]


@dataclass(frozen=True, slots=True)
class MapFacts:
    """One map.

    Attributes:
        type: "SOCKHASH".
        flags: "NO_PREALLOC", without BPF_F_.
        pin_by_name: LIBBPF_PIN_BY_NAME.
        frozen: User space may not write it once it is loaded.
        initial_bytes: Length of the contents it starts with, or null.
        holds: Of a map of maps, or of programs.
        extra: Bytes of an old definition that only other loaders understand, in hexadecimal.
    """

    name: str
    type: str
    key: TypeFacts
    value: TypeFacts
    max_entries: int
    flags: list[str]
    map_extra: int
    numa_node: int | None
    pin_by_name: bool
    frozen: bool
    autocreate: bool
    initial_bytes: int | None
    inner: MapFacts | None
    holds: list[HeldFacts]
    struct_ops: StructOpsFacts | None
    tags: list[str]
    extra: str


@dataclass(frozen=True, slots=True)
class VariableFacts:
    """One global variable.

    Attributes:
        section: The data map it lives in.
        offset, size: Bytes.
        value: What it starts with, as with_variables() takes it; structs as objects, text as
            text, other bytes as "0x..."; null where the type has no value or a large one.
    """

    name: str
    type: str | None
    section: str
    offset: int
    size: int
    value: Any


@dataclass(frozen=True, slots=True)
class ExternFacts:
    """Something of the kernel's: `kind` is "kconfig", "ksym", "typed ksym" or "kfunc"."""

    name: str
    kind: str
    type: str | None
    weak: bool


@dataclass(frozen=True, slots=True)
class RelocationFacts:
    """One CO-RE relocation.

    Attributes:
        index: Of the instruction.
        access: "struct sock.sk_rcvbuf".
        source: "file.c:12: text", or null.
    """

    program: str
    index: int
    kind: str
    access: str
    source: str | None


@dataclass(frozen=True, slots=True)
class KindFacts:
    """A kind the kernel must have, and the first Linux that has it, as in "5.8"."""

    name: str
    since: str | None


@dataclass(frozen=True, slots=True)
class HelperFacts:
    """A helper function; the name is null for a number without one."""

    number: int
    name: str | None


@dataclass(frozen=True, slots=True)
class NeedFacts:
    """What a kernel must have for all of the object, programs marked "?" included.

    Attributes:
        linux: The first with all the kinds; null when a kind's age is not known.  Helpers and
            what the verifier can follow may ask for a later one.
        kernel_btf: CO-RE, or tracing by type, needs the kernel's own BTF.
        btf_kinds: In the object's BTF; a loader replaces those a kernel does not know.
    """

    linux: str | None
    map_types: list[KindFacts]
    program_types: list[KindFacts]
    features: list[KindFacts]
    helpers: list[HelperFacts]
    kfuncs: list[str]
    symbols: list[str]
    kconfig: list[str]
    kernel_btf: bool
    btf_kinds: list[str]


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """One file.

    Attributes:
        size: Bytes of the file.
        kernel_version: What its section "version" says: "4.4.0", "any" or null.
        relocations: CO-RE relocations; null unless asked for.
        listings: Instructions of programs by name; null unless asked for.
        remarks: What of the file was left out, and why.
    """

    file: str
    name: str
    size: int
    byteorder: str
    license: str
    kernel_version: str | None
    programs: list[ProgramFacts]
    maps: list[MapFacts]
    variables: list[VariableFacts]
    externs: list[ExternFacts]
    needs: NeedFacts
    relocations: list[RelocationFacts] | None
    listings: Mapping[str, list[str]] | None
    remarks: list[str]


def facts_of(
    spec: ObjectSpec,
    file: str,
    size: int,
    *,
    with_relocations: bool = False,
    listings: Mapping[str, list[str]] | None = None,
) -> ObjectFacts:
    """Everything there is to say.

    Raises:
        ObjectError: The object's types are malformed.
    """
    return ObjectFacts(
        file=file,
        name=spec.name,
        size=size,
        byteorder=spec.byteorder,
        license=spec.license,
        kernel_version=_version(spec.kernel_version),
        programs=[_program(spec, program) for program in spec.programs.values()],
        maps=[_map(spec, blueprint) for blueprint in spec.maps.values()],
        variables=[
            _variable(spec, variable)
            for variable in sorted(spec.variables.values(), key=lambda v: (v.map, v.offset))
        ],
        externs=[
            ExternFacts(e.name, e.kind.value, _words(spec, e.type_id), e.weak)
            for e in spec.externs.values()
        ],
        needs=_needs(spec),
        relocations=list(_relocations(spec)) if with_relocations else None,
        listings=listings,
        remarks=list(spec.remarks),
    )


def _version(code: int) -> str | None:
    if not code:
        return None
    if code >= _ANY_VERSION:
        return "any"
    return f"{code >> 16}.{code >> 8 & 0xFF}.{code & 0xFF}"


def _words(spec: ObjectSpec, type_id: int) -> str | None:
    """The type in C, or None when there is none."""
    return c_words.declaration(spec.btf, type_id) if spec.btf is not None and type_id else None


# --- programs --------------------------------------------------------------------------------


def _program(spec: ObjectSpec, program: ProgramSpec) -> ProgramFacts:
    attach = program.attach_type
    return ProgramFacts(
        name=program.name,
        section=program.section,
        type=kernel_words.kind(ProgramType, program.type) if program.type else None,
        attach_type=None if attach is None else kernel_words.kind(AttachType, attach),
        attach_target=program.attach_target,
        flags=kernel_words.program_flags(program.flags),
        autoload=program.autoload,
        instructions=len(program.instructions) // SIZE,
        subprograms=_subprograms(spec, program),
        maps=list(dict.fromkeys(reference.map for reference in program.map_references)),
        externs=list(dict.fromkeys(reference.extern for reference in program.extern_references)),
        core_relocations=len(program.core_relocations),
    )


def _subprograms(spec: ObjectSpec, program: ProgramSpec) -> list[str]:
    starts = functions(spec, program)
    return [starts[index] for index in sorted(starts) if index]


def functions(spec: ObjectSpec, program: ProgramSpec) -> dict[int, str]:
    """Name of the function that starts at an instruction, for all but the program itself.

    Where BTF has no name for it, the function is "function at 12".
    """
    found: dict[int, str] = {}
    externs = {reference.index for reference in program.extern_references}
    for index, code, source, imm in _calls(spec, program):
        inside = (code == CALL and source == PSEUDO_CALL) or (
            code == LD_IMM64 and source == PSEUDO_FUNC
        )
        if inside and index not in externs:
            found[index + imm + 1] = f"function at {index + imm + 1}"
    for info in program.func_info:
        if spec.btf is not None and info.index:
            found[info.index] = spec.btf.type(info.type_id).name
    return found


def _calls(spec: ObjectSpec, program: ProgramSpec) -> Iterator[tuple[int, int, int, int]]:
    """Index, code, source register and immediate of what may call, or load an address.

    Not insn.decode(), which is for a few instructions: an object may have millions.
    """
    little = spec.byteorder == "little"
    layout = struct.Struct("<BBhi" if little else ">BBhi")
    for index, (code, registers, _, imm) in enumerate(layout.iter_unpack(program.instructions)):
        if code in (CALL, LD_IMM64):
            yield index, code, registers >> 4 if little else registers & 0xF, imm


def helpers(spec: ObjectSpec, program: ProgramSpec) -> set[int]:
    """Numbers of the helper functions it calls."""
    externs = {reference.index for reference in program.extern_references}
    return {
        imm
        for index, code, source, imm in _calls(spec, program)
        if code == CALL and source not in (PSEUDO_CALL, PSEUDO_KFUNC_CALL) and index not in externs
    }


def _relocations(spec: ObjectSpec) -> Iterator[RelocationFacts]:
    if spec.btf is None:
        return
    for program in spec.programs.values():
        for relocation in program.core_relocations:
            yield RelocationFacts(
                program=program.name,
                index=relocation.index,
                kind=relocation.kind.name,
                access=c_words.access(spec.btf, relocation),
                source=verifier.source_at(relocation.index, program.line_info, spec.btf.string),
            )


# --- maps and variables ----------------------------------------------------------------------


def _map(spec: ObjectSpec, blueprint: MapSpec) -> MapFacts:
    return MapFacts(
        name=blueprint.name,
        type=kernel_words.kind(MapType, blueprint.type),
        key=TypeFacts(blueprint.key_size, _words(spec, blueprint.key_type_id)),
        value=TypeFacts(blueprint.value_size, _words(spec, blueprint.value_type_id)),
        max_entries=blueprint.max_entries,
        flags=kernel_words.map_flags(blueprint.flags),
        map_extra=blueprint.map_extra,
        numa_node=blueprint.numa_node,
        pin_by_name=blueprint.pin_by_name,
        frozen=blueprint.frozen,
        autocreate=blueprint.autocreate,
        initial_bytes=None if blueprint.contents is None else len(blueprint.contents),
        inner=None if blueprint.inner is None else _map(spec, blueprint.inner),
        holds=[HeldFacts(slot, name) for slot, name in blueprint.values],
        struct_ops=_struct_ops(spec, blueprint),
        tags=list(blueprint.tags),
        extra=blueprint.extra.hex(),
    )


def _struct_ops(spec: ObjectSpec, blueprint: MapSpec) -> StructOpsFacts | None:
    ops = blueprint.struct_ops
    if ops is None:
        return None
    _, found = spec.btf.resolve(ops.type_id) if spec.btf is not None else (0, None)
    members = found.members if isinstance(found, b.Struct) else ()
    return StructOpsFacts(
        ops.type_name,
        ops.is_link,
        [
            CallbackFacts(members[number].name if number < len(members) else str(number), program)
            for number, program in ops.functions
        ],
    )


def _variable(spec: ObjectSpec, variable: VariableSpec) -> VariableFacts:
    return VariableFacts(
        name=variable.name,
        type=_words(spec, variable.type_id),
        section=variable.map,
        offset=variable.offset,
        size=variable.size,
        value=_value(spec, variable),
    )


def _value(spec: ObjectSpec, variable: VariableSpec) -> Any:
    blueprint = spec.maps.get(variable.map)
    contents = blueprint.contents if blueprint is not None else None
    known = contents is not None and spec.btf is not None and variable.type_id
    if not known or variable.size > _MAX_VALUE_BYTES:
        return None
    assert contents is not None
    assert spec.btf is not None
    raw = contents[variable.offset : variable.offset + variable.size]
    try:
        codec = codec_for(spec.btf, variable.type_id, byteorder=spec.byteorder)
        return _plain(codec.unpack(raw))
    except (ObjectError, ValueError):  # a flexible array, a type without a size
        return None


def _plain(value: Any) -> Any:
    """A codec's value in terms of JSON."""
    if isinstance(value, bytes):
        text = value.rstrip(b"\0")
        is_text = text.isascii() and text.decode("ascii", "replace").isprintable() and text
        return text.decode() if is_text else f"0x{value.hex()}"
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        parts = [_plain(part) for part in value]
        return parts if names is None else dict(zip(names, parts, strict=True))
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return hex(value)
    return value


# --- needs -----------------------------------------------------------------------------------


def _needs(spec: ObjectSpec) -> NeedFacts:
    programs = spec.programs.values()
    map_types = _kinds(MapType, (m.type for m in _all_maps(spec)), ages.MAP_TYPE_SINCE)
    program_types = _kinds(
        ProgramType, (p.type for p in programs if p.type), ages.PROGRAM_TYPE_SINCE
    )
    features = [KindFacts(name, _linux(since)) for name, since in _features(spec)]
    externs: dict[ExternKind, list[str]] = {}
    for extern in spec.externs.values():
        externs.setdefault(extern.kind, []).append(extern.name)
    return NeedFacts(
        linux=_first_linux([*map_types, *program_types, *features]),
        map_types=map_types,
        program_types=program_types,
        features=features,
        helpers=[
            HelperFacts(number, helper_name(number) or None)
            for number in sorted(set().union(*(helpers(spec, program) for program in programs)))
        ],
        kfuncs=externs.get(ExternKind.FUNCTION, []),
        symbols=externs.get(ExternKind.SYMBOL, []) + externs.get(ExternKind.VARIABLE, []),
        kconfig=externs.get(ExternKind.KCONFIG, []),
        kernel_btf=_needs_kernel_btf(spec),
        btf_kinds=_btf_kinds(spec.btf),
    )


def _all_maps(spec: ObjectSpec) -> Iterator[MapSpec]:
    for blueprint in spec.maps.values():
        yield blueprint
        if blueprint.inner is not None:
            yield blueprint.inner


def _kinds(
    names: type[MapType | ProgramType],
    numbers: Iterable[int],
    since: Mapping[int, ages.Version],
) -> list[KindFacts]:
    return [
        KindFacts(kernel_words.kind(names, number), _linux(since.get(number)))
        for number in sorted(set(numbers))
    ]


def _features(spec: ObjectSpec) -> Iterator[tuple[str, ages.Version]]:
    programs = spec.programs.values()
    if any(functions(spec, program) for program in programs):
        yield "calls between functions", ages.CALLS_SINCE
    if any(r.value_offset is not None for p in programs for r in p.map_references):
        yield "global variables", ages.GLOBAL_DATA_SINCE
    if any(extern.kind is ExternKind.FUNCTION for extern in spec.externs.values()):
        yield "kernel functions", ages.KFUNC_SINCE


def _linux(version: ages.Version | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def _first_linux(kinds: list[KindFacts]) -> str | None:
    versions = [tuple(map(int, kind.since.split("."))) for kind in kinds if kind.since]
    if len(versions) < len(kinds) or not versions:
        return None
    return ".".join(map(str, max(versions)))


# A tracing program is attached by the id its target has in the kernel's BTF.
_BY_KERNEL_TYPE = (ProgramType.TRACING, ProgramType.LSM, ProgramType.STRUCT_OPS)


def _needs_kernel_btf(spec: ObjectSpec) -> bool:
    by_type = (ExternKind.FUNCTION, ExternKind.VARIABLE)
    return (
        any(p.core_relocations or p.type in _BY_KERNEL_TYPE for p in spec.programs.values())
        or any(m.struct_ops is not None for m in spec.maps.values())
        or any(extern.kind in by_type for extern in spec.externs.values())
    )


def _btf_kinds(btf: b.Btf | None) -> list[str]:
    if btf is None:
        return []
    found = {btf.type(type_id).__class__.__name__ for type_id in range(1, len(btf))}
    return sorted(re.sub("(?<=[a-z])(?=[A-Z])", "_", name).upper() for name in found)

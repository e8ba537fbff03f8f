"""`accel object load`: an object into the running kernel, all of it or nothing.

Pins are laid out as bpftool does: programs in DIR, maps in DIR/maps.  A dot of a name, as
in ".rodata", becomes "_": a bpf file system takes none.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.bpf import (
    BpfError,
    Map,
    Object,
    ObjectError,
    ObjectSpec,
    Program,
    VerifierRejected,
    load,
    on_bpffs,
    unpin,
    with_variables,
)
from accel.bpf.format import btf as b
from accel.bpf.format.insn import SIZE
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.maps.pins import path_of
from accel.cli import kernel_words, output

_MAPS = "maps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--program",
        action="append",
        metavar="NAME",
        dest="programs",
        help='this program, and others named so; all but those of SEC("?...") otherwise',
    )
    parser.add_argument(
        "--set",
        action="append",
        type=_assignment,
        default=[],
        metavar="NAME=VALUE",
        dest="variables",
        help="what a global variable starts with: a number, text, or JSON for several values",
    )
    parser.add_argument(
        "--max-entries",
        action="append",
        type=_size,
        default=[],
        metavar="MAP=N",
        help="how many entries a map holds",
    )
    parser.add_argument(
        "--pin",
        type=Path,
        metavar="DIR",
        help="keep programs as DIR/NAME and maps as DIR/maps/NAME, in a bpf file system",
    )
    parser.add_argument(
        "--log", action="store_true", help="where the verifier refuses: print all that it said"
    )


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _size(text: str) -> tuple[str, int]:
    name, value = _assignment(text)
    if not value.isdecimal() or not 0 < int(value) < 1 << 32:
        raise argparse.ArgumentTypeError(f"{value!r} is no whole number from 1 to 4294967295")
    return name, int(value)


@dataclass(frozen=True, slots=True)
class LoadedProgramFacts:
    """A program the kernel has verified.

    Attributes:
        id: The kernel's number for it.
        tag: Hash of its instructions as the kernel sees them.
        instructions: Of the object, before the verifier rewrote them.
        verified_instructions: How many the verifier looked at, on all paths (from Linux 5.16).
        jited_bytes: Of machine code; null without a JIT compiler.
        pin: Where it stays; null when it was let go.
    """

    name: str
    type: str
    id: int
    tag: str
    instructions: int
    verified_instructions: int | None
    jited_bytes: int | None
    pin: str | None


@dataclass(frozen=True, slots=True)
class LoadedMapFacts:
    """A map that was created, or `reused` because it was pinned by name.

    Attributes:
        id: The kernel's number for it.
        pin: Where it stays; null when it was let go.
    """

    name: str
    type: str
    id: int
    max_entries: int
    reused: bool
    pin: str | None


@dataclass(frozen=True, slots=True)
class LoadedFacts:
    """What `accel object load --json` says; remarks are what was left out, and why."""

    name: str
    pinned: bool
    programs: list[LoadedProgramFacts]
    maps: list[LoadedMapFacts]
    remarks: list[str]


def load_object(spec: ObjectSpec, arguments: argparse.Namespace) -> int:
    """Exit code 0 when the kernel took all of it.

    Raises:
        AccelError: It did not, or something could not be pinned.  Nothing is left then.
    """
    spec = spec.with_max_entries(**dict(arguments.max_entries))
    for name, text in arguments.variables:
        spec = with_variables(spec, **{name: _value(spec, name, text)})
    try:
        facts = _load(spec, arguments.programs, arguments.pin)
    except VerifierRejected as e:
        if arguments.log:
            sys.stderr.write(f"{e.log.rstrip()}\n")
        raise
    if arguments.json:
        output.as_json(facts)
    else:
        _print(facts)
    return 0


# --- variables -------------------------------------------------------------------------------


def _value(spec: ObjectSpec, name: str, text: str) -> Any:
    """What a person wrote, as the variable's type wants it.

    Raises:
        ObjectError: It cannot be a value of that type.
    """
    variable = spec.variables.get(name)
    if variable is None or spec.btf is None or not variable.type_id:
        return text  # with_variables() says what is wrong
    try:
        return _read(spec.btf, variable.type_id, text)
    except ValueError as e:
        raise ObjectError(
            f"{text!r} is no value for variable {name}",
            remedy="write a number, true or false, text, or a JSON list for arrays and structs",
        ) from e


def _read(btf: b.Btf, type_id: int, text: str) -> Any:
    _, found = btf.resolve(type_id)
    match found:
        case b.Array() if _is_byte(btf, found.element):
            return bytes(json.loads(text)) if text.startswith("[") else os.fsencode(text)
        case b.Int() if found.is_bool and text in ("true", "false"):
            return text == "true"
        case b.Int() | b.Ptr():
            return (
                bool(int(text, 0)) if isinstance(found, b.Int) and found.is_bool else int(text, 0)
            )
        case b.Enum() | b.Enum64():
            values = {enumerator.name: enumerator.value for enumerator in found.enumerators}
            return values[text] if text in values else int(text, 0)
        case b.Float():
            return float(text)
        case _:
            return json.loads(text)


def _is_byte(btf: b.Btf, type_id: int) -> bool:
    _, element = btf.resolve(type_id)
    return isinstance(element, b.Int) and element.size == 1 and not element.is_bool


# --- loading and pinning ---------------------------------------------------------------------


def _load(spec: ObjectSpec, programs: list[str] | None, directory: Path | None) -> LoadedFacts:
    if directory is None:
        with load(spec, programs=programs) as obj:
            return _facts(obj, {}, frozenset())
    _check_place(directory)
    maps = directory / _MAPS
    with ExitStack() as undo:
        _make_directory(maps if spec.maps else directory, undo)
        # Pinned by name by another object, or by an earlier load.
        reused = frozenset(
            name for name, m in spec.maps.items() if m.pin_by_name and path_of(maps, name).exists()
        )
        with load(spec, programs=programs, pin_directory=maps) as obj:
            pins = _pin(obj, directory, reused, undo)
            facts = _facts(obj, pins, reused)
        undo.pop_all()
    return facts


def _check_place(directory: Path) -> None:
    """Before anything is loaded: whether something can be pinned below it at all."""
    existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ObjectError(f"pin in {directory}: {existing} is no directory")
    if on_bpffs(existing) is False:
        raise ObjectError(
            f"pin in {directory}: it is in no bpf file system",
            remedy="choose a directory below /sys/fs/bpf, or mount one (mount -t bpf)",
        )


def _pin(obj: Object, directory: Path, reused: frozenset[str], undo: ExitStack) -> dict[str, Path]:
    """Everything under its name.  The paths, "maps/" before the names of maps."""
    pins = {f"{_MAPS}/{name}": path_of(directory / _MAPS, name) for name in obj.maps}
    to_pin: list[tuple[Map[Any, Any] | Program, Path]] = []
    for name, map in obj.maps.items():
        path = pins[f"{_MAPS}/{name}"]
        if not map.spec.pin_by_name:
            to_pin.append((map, path))
        elif name not in reused:  # load() has just pinned it
            undo.callback(unpin, path)
    for name, program in obj.programs.items():
        pins[name] = path_of(directory, name)
        to_pin.append((program, pins[name]))
    for item, path in to_pin:
        item.pin(path)
        undo.callback(unpin, path)
    return pins


def _make_directory(directory: Path, undo: ExitStack) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.absolute().parent, undo)
    try:
        directory.mkdir()
    except OSError as e:
        raise BpfError(f"create the directory {directory}", e.errno or 0) from e
    undo.callback(directory.rmdir)


def _facts(obj: Object, pins: dict[str, Path], reused: frozenset[str]) -> LoadedFacts:
    programs, maps = [], []
    for name, program in obj.programs.items():
        info = program.info()
        programs.append(
            LoadedProgramFacts(
                name=name,
                type=kernel_words.kind(ProgramType, info.type),
                id=info.id,
                tag=info.tag,
                instructions=len(obj.spec.programs[name].instructions) // SIZE,
                verified_instructions=info.verified_insns or None,
                jited_bytes=info.jited_bytes or None,
                pin=str(pins[name]) if name in pins else None,
            )
        )
    for name, map in obj.maps.items():
        path = pins.get(f"{_MAPS}/{name}")
        details = map.info()
        maps.append(
            LoadedMapFacts(
                name=name,
                type=kernel_words.kind(MapType, details.type),
                id=details.id,
                max_entries=details.max_entries,
                reused=name in reused,
                pin=None if path is None else str(path),
            )
        )
    return LoadedFacts(obj.spec.name, bool(pins), programs, maps, list(obj.remarks))


def _print(facts: LoadedFacts) -> None:
    if facts.programs:
        output.table(
            ("program", "type", "id", "tag", "instructions", "verified", "jited", "pinned at"),
            (
                (
                    output.visible(p.name),
                    p.type,
                    str(p.id),
                    p.tag,
                    f"{p.instructions:,}",
                    "-" if p.verified_instructions is None else f"{p.verified_instructions:,}",
                    "-" if p.jited_bytes is None else f"{p.jited_bytes:,} B",
                    p.pin or "-",
                )
                for p in facts.programs
            ),
            numbers=("id", "instructions", "verified", "jited"),
        )
        output.line()
    if facts.maps:
        output.table(
            ("map", "type", "id", "entries", "", "pinned at"),
            (
                (
                    output.visible(m.name),
                    m.type,
                    str(m.id),
                    f"{m.max_entries:,}",
                    "reused" if m.reused else "new",
                    m.pin or "-",
                )
                for m in facts.maps
            ),
            numbers=("id", "entries"),
        )
        output.line()
    for remark in facts.remarks:
        output.line(output.styled(f"remark: {output.visible(remark)}", "warn"))
    output.line(
        "loaded and pinned"
        if facts.pinned
        else "everything was verified, and let go again; --pin DIR would keep it"
    )

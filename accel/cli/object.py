"""`accel object`: look into a BPF object, anybody's, or load it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from accel.bpf import ObjectError, ObjectSpec, open_object
from accel.cli import object_load, output
from accel.cli.object_facts import (
    KindFacts,
    MapFacts,
    NeedFacts,
    ObjectFacts,
    ProgramFacts,
    facts_of,
)
from accel.cli.object_listing import listing

_STANDARD_INPUT = "-"
_ALL_PROGRAMS = ""
_WIDEST_VALUE = 60

_INSPECT = "show what an object defines and needs: no privilege, no kernel, any byte order"
_LOAD = "load an object into the running kernel: say why not, or pin it, or let go again"


def add_verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`inspect` and `load`; each gets --json from the caller."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    sub = verbs.add_parser("inspect", help=_INSPECT, description=_INSPECT, allow_abbrev=False)
    sub.set_defaults(verb=inspect, wrong_usage=sub.error)
    sub.add_argument("files", nargs="*", metavar="FILE", help="an object; - is standard input")
    sub.add_argument(
        "--relocations", action="store_true", help="list CO-RE relocations, with source lines"
    )
    sub.add_argument(
        "--disassemble",
        nargs="?",
        const=_ALL_PROGRAMS,
        metavar="PROGRAM",
        help="list the instructions of one program, or of all, with source lines",
    )
    yield sub
    sub = verbs.add_parser("load", help=_LOAD, description=_LOAD, allow_abbrev=False)
    sub.set_defaults(verb=load)
    sub.add_argument("file", metavar="FILE", help="an object; - is standard input")
    object_load.add_arguments(sub)
    yield sub


def load(arguments: argparse.Namespace) -> int:
    """Exit code 0 when the kernel took all of it."""
    spec, _ = open_file(arguments.file)
    return object_load.load_object(spec, arguments)


def inspect(arguments: argparse.Namespace) -> int:
    """Exit code 1 when one of the files could not be read; the others are shown."""
    files, program = arguments.files, arguments.disassemble
    if not files and program:
        # "--disassemble FILE" reads as if PROGRAM had been left out, and it was.
        files, program = [program], _ALL_PROGRAMS
    if not files:
        arguments.wrong_usage("name at least one FILE; - is standard input")
    shown: list[Any] = []
    failed = False
    for position, file in enumerate(files):
        try:
            facts = _facts(file, program, with_relocations=arguments.relocations)
        except ObjectError as e:
            failed = True
            output.error(e)
            refusal = {"error": _speakable(str(e)), "place": e.place, "remedy": e.remedy}
            shown.append({"file": _speakable(file), **refusal})
            continue
        shown.append(facts)
        if not arguments.json:
            if position:
                output.line()
            _print(facts)
    if arguments.json:
        output.as_json({"objects": shown})
    return 1 if failed else 0


def open_file(file: str) -> tuple[ObjectSpec, int]:
    """The object in a file, or on standard input, and its bytes' number.

    Raises:
        ObjectError: It cannot be read, or is malformed; the message names the file.
    """
    if file != _STANDARD_INPUT:
        spec = open_object(file)
        return spec, Path(file).stat().st_size
    data = sys.stdin.buffer.read()
    try:
        return open_object(data), len(data)
    except ObjectError as e:
        error = ObjectError(f"standard input: {e}", remedy=e.remedy)
        error.place = e.place
        raise error from e


def _facts(file: str, program: str | None, *, with_relocations: bool) -> ObjectFacts:
    spec, size = open_file(file)
    spec = replace(spec, name=_speakable(spec.name))
    listings = None if program is None else _listings(spec, file, program)
    return facts_of(
        spec, _speakable(file), size, with_relocations=with_relocations, listings=listings
    )


def _speakable(text: str) -> str:
    """A file's name may be any bytes, which Python hides in it; JSON wants UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _listings(spec: ObjectSpec, file: str, program: str) -> dict[str, list[str]]:
    if program != _ALL_PROGRAMS and program not in spec.programs:
        raise ObjectError(
            f"{file} has no program {program!r}",
            remedy=f"name one of {', '.join(spec.programs)}" if spec.programs else None,
        )
    return {
        name: listing(spec, found)
        for name, found in spec.programs.items()
        if program in (_ALL_PROGRAMS, name)
    }


# --- for people ------------------------------------------------------------------------------


def _print(facts: ObjectFacts) -> None:
    """Names are the file's own: nothing of them may drive the terminal."""
    output.pairs(
        {
            "object": output.visible(facts.name),
            "file": f"{output.visible(facts.file)}, {output.size(facts.size)}",
            "byte order": facts.byteorder,
            "license": output.visible(facts.license) or "none: no GPL-only helper may be called",
            **({"for kernel": facts.kernel_version} if facts.kernel_version else {}),
            **_needs(facts.needs),
        }
    )
    _table(
        ("program", "section", "type", "attach", "instructions", "CO-RE", "uses"),
        map(_program_row, facts.programs),
        numbers=("instructions", "CO-RE"),
    )
    _table(
        ("map", "type", "key", "value", "entries", "flags", "notes"),
        map(_map_row, facts.maps),
        numbers=("entries",),
    )
    _table(
        ("variable", "type", "section", "offset", "size", "starts as"),
        (
            (v.name, v.type or "-", v.section, f"{v.offset:,}", f"{v.size:,}", _value(v.value))
            for v in facts.variables
        ),
        numbers=("offset", "size"),
    )
    _table(
        ("extern", "kind", "type"),
        ((e.name, f"weak {e.kind}" if e.weak else e.kind, e.type or "-") for e in facts.externs),
    )
    _table(
        ("program", "at", "relocation", "of", "source"),
        (
            (r.program, str(r.index), r.kind, r.access, r.source or "-")
            for r in facts.relocations or ()
        ),
        numbers=("at",),
    )
    for listed in (facts.listings or {}).values():
        output.line()
        output.lines(listed)
    if facts.remarks:
        output.line()
    for remark in facts.remarks:
        output.line(output.styled(f"remark: {output.visible(remark)}", "warn"))


def _needs(needs: NeedFacts) -> dict[str, str]:
    """Lines of what a kernel must have; what is not needed has none."""
    helpers = [helper.name or f"helper {helper.number}" for helper in needs.helpers]
    lines = {
        "Linux": f"{needs.linux} or later, by its kinds" if needs.linux else "",
        "program types": _aged(needs.program_types),
        "map types": _aged(needs.map_types),
        "features": _aged(needs.features),
        "helpers": ", ".join(helpers),
        "kernel functions": ", ".join(needs.kfuncs),
        "kernel symbols": ", ".join(needs.symbols),
        "kernel config": ", ".join(needs.kconfig),
        "kernel's BTF": "needed" if needs.kernel_btf else "",
        "BTF kinds": ", ".join(needs.btf_kinds) or "none: compiled without -g",
    }
    return {name: output.visible(text) for name, text in lines.items() if text}


def _aged(kinds: list[KindFacts]) -> str:
    return ", ".join(f"{kind.name} ({kind.since or 'since unknown'})" for kind in kinds)


def _program_row(program: ProgramFacts) -> tuple[str, ...]:
    attach = [program.attach_type or "", program.attach_target or ""]
    uses = (*program.maps, *program.externs, *(f"{name}()" for name in program.subprograms))
    return (
        program.name,
        program.section,
        ", ".join((program.type or "unknown", *program.flags)),
        " ".join(filter(None, attach)) or "-",
        f"{program.instructions:,}",
        f"{program.core_relocations:,}",
        ", ".join(uses) or "-",
    )


def _map_row(facts: MapFacts) -> tuple[str, ...]:
    return (
        facts.name,
        facts.type,
        _typed(facts.key.type, facts.key.size),
        _typed(facts.value.type, facts.value.size),
        f"{facts.max_entries:,}",
        ", ".join(facts.flags) or "-",
        "; ".join(_map_notes(facts)) or "-",
    )


def _typed(type: str | None, size: int) -> str:
    if not size:
        return type or "-"
    return f"{type}, {size:,} B" if type else f"{size:,} B"


def _map_notes(facts: MapFacts) -> Iterator[str]:
    """What few maps have."""
    if facts.pin_by_name:
        yield "pinned by name"
    if facts.frozen:
        yield "frozen"
    if not facts.autocreate:
        yield "only on request"
    if facts.map_extra:
        yield f"map_extra {facts.map_extra:#x}"
    if facts.numa_node is not None:
        yield f"NUMA node {facts.numa_node}"
    if facts.inner is not None:
        inner = facts.inner
        yield (
            f"of {inner.type} {_typed(inner.key.type, inner.key.size)} -> "
            f"{_typed(inner.value.type, inner.value.size)}, max_entries {inner.max_entries:,}"
        )
    if facts.holds:
        yield "holds " + ", ".join(f"[{held.slot}] {held.name}" for held in facts.holds)
    if facts.struct_ops is not None:
        ops = facts.struct_ops
        filled = ", ".join(f".{c.member} = {c.program}" for c in ops.callbacks)
        yield f"{'link to ' if ops.is_link else ''}struct {ops.type} {{{filled}}}"
    if facts.tags:
        yield f"tags {', '.join(facts.tags)}"
    if facts.extra:
        yield f"{len(facts.extra) // 2} more bytes in its definition"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    text = json.dumps(msgspec.to_builtins(value))
    return text if len(text) <= _WIDEST_VALUE else text[: _WIDEST_VALUE - 3] + "..."


def _table(
    columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, numbers: tuple[str, ...] = ()
) -> None:
    """A table of its own paragraph; none at all without rows."""
    shown = [tuple(map(output.visible, row)) for row in rows]
    if shown:
        output.line()
        output.table(columns, shown, numbers=numbers)

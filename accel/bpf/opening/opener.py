"""Opens an object: bytes in, ObjectSpec out.

Pure but for reading the file when given a path; no kernel is asked for anything.
What we do not do is refused by name here; what nothing needs is left out, and the spec's
remarks say so.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import btf_ext, elf
from accel.bpf.format.sections import meaning_of
from accel.bpf.kinds import MapType
from accel.bpf.opening import functions, jump_tables, legacy, linker, mapdefs, struct_ops
from accel.bpf.opening.addends import Addends
from accel.bpf.opening.datasections import HIDDEN, DataSections, placements
from accel.bpf.opening.externs import Externs
from accel.bpf.opening.functions import Function
from accel.bpf.opening.linker import DataTarget, ExternTarget, JumpTarget, MapTarget
from accel.bpf.spec import ExternKind, MapSpec, ObjectSpec, ProgramSpec

_TEXT = ".text"
_ARENA = ".addr_space.1"
_EXCEPTION_CALLBACK = "exception_callback:"
# Many times the largest objects there are, debugging information and all.
_MAX_FILE = 1 << 28
_KINDS = {
    stat.S_IFDIR: "it is a directory",
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}
# Where the header of .BTF.ext has its own length, and the bytes of its part for CO-RE.
_EXT_LENGTH = slice(4, 8)
_EXT_CORE_SIZE = slice(28, 32)


def open_object(source: bytes | Path | str, name: str | None = None) -> ObjectSpec:
    """Read what an object file defines.

    Args:
        source: The file's bytes, or its path.
        name: What to call the object; its file's name up to the first dot otherwise.

    Raises:
        ObjectError: It cannot be read, is malformed, or asks for something we do not do.
    """
    if isinstance(source, bytes):
        return _Opener(source, name or "object").spec()
    path = Path(source)
    try:
        return _Opener(_read(path), name or path.name.partition(".")[0] or "object").spec()
    except ObjectError as e:
        raise e.of(str(path)) from e.__cause__


def _read(path: Path) -> bytes:
    """A file that has an end, and a reasonable one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ObjectError(
                f"cannot be opened: {_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}",
                remedy="name the object file; what comes from elsewhere may be given as bytes",
            )
        if status.st_size > _MAX_FILE:
            raise ObjectError(
                f"larger than {_MAX_FILE} bytes", remedy="strip it: llvm-strip -g leaves BTF alone"
            )
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise ObjectError(f"cannot be opened: {reason}") from e


class _Opener:
    """One object on its way from bytes to spec."""

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        self._remarks: list[str] = []
        self._elf = elf.parse(data)
        self._btf, self._externs = self._read_types()
        self._addends = Addends(self._elf)
        self._data = DataSections(self._elf, self._btf)
        self._jump_tables = jump_tables.JumpTables(self._elf)
        self._maps: dict[str, MapSpec] = {}
        # By section index and byte offset, the map defined there.
        self._definitions: dict[tuple[int, int], str] = {}
        # The map that is the arena, by index of the section with its variables.
        self._arenas: dict[int, str] = {}
        # Sections of data that code refers to.
        self._referred: set[int] = set()
        # Programs that are not in the spec.
        self._omitted: set[str] = set()
        self._linker = linker.Linker(
            self._elf, self._btf, self._read_ext(), self._addends, self._data_at, self._called
        )

    def spec(self) -> ObjectSpec:
        self._read_map_definitions()
        self._read_arena()
        programs = self._programs()
        self._require({*programs, *self._omitted})
        variables = self._data.variables()
        for spec in self._data.needed(self._referred, variables):
            self._add_map(spec)
        if not programs and not self._maps:
            self._remarks.append("defines no program and no map")
        self._remarks += [*self._linker.remarks, *self._addends.remarks, *self._data.remarks]
        return ObjectSpec(
            name=self._name,
            byteorder=self._elf.byteorder,
            license=self._license(),
            programs=MappingProxyType(programs),
            maps=MappingProxyType(self._maps),
            variables=MappingProxyType(variables),
            btf=self._btf,
            kernel_version=self._kernel_version(),
            externs=MappingProxyType(dict(self._externs.used)),
            remarks=tuple(self._remarks),
        )

    def _find(self, name: str) -> elf.Section | None:
        section = self._elf.section(name)
        if section is not None and section.flags & elf.SHF_COMPRESSED:
            raise ObjectError(
                "is compressed", place=f"section {name}", remedy="compile without -gz"
            )
        return section

    # --- types ---------------------------------------------------------------------------

    def _read_types(self) -> tuple[b.Btf | None, Externs]:
        section = self._find(".BTF")
        without = Externs(self._elf, None)
        if section is None:
            return None, without
        try:
            btf = b.parse(section.data)
        except ObjectError as e:
            self._leave_out_types(without, e)
            return None, without
        externs = Externs(self._elf, btf)
        try:
            return self._placed(btf, externs), externs
        except ObjectError as e:
            self._leave_out_types(externs, e)
            return None, without

    def _leave_out_types(self, externs: Externs, error: ObjectError) -> None:
        """Go on without BTF that is malformed, unless it says what a program needs."""
        needing = (mapdefs.SECTION, *struct_ops.SECTIONS)
        if externs.described or any(s.size and s.name in needing for s in self._elf.sections):
            raise error
        section = self._find(".BTF.ext")
        if section is not None and _has_core_relocations(section.data):
            raise error
        self._remarks.append(f"section .BTF left out: {error}")

    def _placed(self, btf: b.Btf, externs: Externs) -> b.Btf:
        """The BTF completed by what only the symbol table knows."""
        sections = self._elf.sections
        hidden_functions = {
            symbol.name
            for symbol in self._elf.symbols
            if symbol.kind == elf.STT_FUNC
            and symbol.visibility in HIDDEN
            and symbol.section < len(sections)
            and sections[symbol.section].name == _TEXT
        }
        return btf.placed(
            {section.name: section.size for section in sections},
            placements(self._elf),
            hidden_functions,
            externs.offsets,
        )

    def _read_ext(self) -> btf_ext.Ext:
        section = self._find(".BTF.ext")
        if section is None:
            return btf_ext.NOTHING
        if self._btf is None:
            if _has_core_relocations(section.data):
                raise ObjectError(
                    "CO-RE relocations, but no BTF",
                    place="section .BTF.ext",
                    remedy="do not strip .BTF: llvm-strip -g leaves it alone",
                )
            if section.size:
                self._remarks.append("section .BTF.ext left out: there is no BTF")
            return btf_ext.NOTHING
        ext = btf_ext.parse(section.data, self._btf)
        self._remarks += ext.remarks
        return ext

    # --- maps ----------------------------------------------------------------------------

    def _read_map_definitions(self) -> None:
        seen = set()
        for section in self._elf.sections:
            if not section.size or section.type != elf.SHT_PROGBITS:
                continue
            if legacy.is_section(section.name):
                self._define(section, self._read_legacy_maps(section))
                continue
            if section.name not in (mapdefs.SECTION, *struct_ops.SECTIONS):
                continue
            # BTF tells sections by their names.
            if section.name in seen:
                raise ObjectError("a second one of that name", place=f"section {section.name}")
            seen.add(section.name)
            if section.name == mapdefs.SECTION:
                self._define(section, self._read_btf_maps(section))
                continue
            pointers = self._addends.pointers(section)
            types = self._typed(section)
            for spec in struct_ops.read_maps(section, types, pointers, self._program_at):
                self._add_map(spec)
        settings = self._externs.map()
        if settings is not None:
            self._add_map(settings)

    def _read_btf_maps(self, section: elf.Section) -> Iterator[tuple[int, MapSpec]]:
        values = dict(self._values(section))
        if mapdefs.unexplained(section.data, values):
            self._remarks.append(
                f"section {section.name}: a map is initialised, with what goes nowhere"
            )
        return mapdefs.read_maps(self._typed(section), values)

    def _read_legacy_maps(self, section: elf.Section) -> Iterator[tuple[int, MapSpec]]:
        symbols = self._symbols.get(section.index, ())
        return legacy.read_maps(section, symbols, self._elf.byteorder, self._btf)

    @cached_property
    def _symbols(self) -> Mapping[int, Sequence[elf.Symbol]]:
        """By section: some files have as many sections as symbols."""
        return functions.symbols_by_section(self._elf)

    def _typed(self, section: elf.Section) -> b.Btf:
        if self._btf is None:
            raise ObjectError(
                "maps are defined, but there is no BTF",
                place=f"section {section.name}",
                remedy="compile with -g",
            )
        return self._btf

    def _define(self, section: elf.Section, found: Iterable[tuple[int, MapSpec]]) -> None:
        for offset, spec in found:
            self._add_map(spec)
            self._definitions[section.index, offset] = spec.name

    def _add_map(self, spec: MapSpec) -> None:
        if spec.name in self._maps:
            raise ObjectError(f"two maps are named {spec.name}", remedy="rename one of them")
        self._maps[spec.name] = spec

    def _values(self, section: elf.Section) -> Iterator[tuple[int, str]]:
        """What the relocations of .maps put there: byte offset, name of the map or program."""
        for offset, symbol, beyond in self._addends.pointers(section):
            place = f"section {section.name}, offset {offset:#x}"
            try:
                name = self._name_at(symbol, beyond)
            except ObjectError as e:
                raise e.within(place) from None
            if not name:
                raise ObjectError("refers to nothing that has a name", place=place)
            yield offset, name

    def _name_at(self, symbol: elf.Symbol, beyond: int) -> str:
        """Name of the program, or anything else, so many bytes from a symbol."""
        if symbol.section < len(self._elf.sections) and _is_code(
            self._elf.sections[symbol.section]
        ):
            return self._program_at(symbol, beyond)
        if not beyond and symbol.kind != elf.STT_SECTION:
            return symbol.name
        return self._names.get((symbol.section, symbol.value + beyond), "")

    @cached_property
    def _names(self) -> dict[tuple[int, int], str]:
        """The first name of each place, section and offset, that has one."""
        return {
            (symbol.section, symbol.value): symbol.name
            for symbol in reversed(self._elf.symbols)
            if symbol.name and symbol.kind != elf.STT_SECTION
        }

    def _program_at(self, symbol: elf.Symbol, offset: int) -> str:
        function = self._linker.function_at(symbol, offset)
        if not _is_entry(function):
            raise ObjectError(
                f"{function.name} is no program",
                remedy="give it a section of its own, and make it no static function",
            )
        return function.name

    def _require(self, programs: Collection[str]) -> None:
        """Refuse maps that hold what is no program."""
        for spec in self._maps.values():
            held = spec.values if spec.type == MapType.PROG_ARRAY else ()
            if spec.struct_ops is not None:
                held = spec.struct_ops.functions
            for slot, name in held:
                if name not in programs:
                    raise ObjectError(
                        f"slot {slot} holds {name}, no program", place=f"map {spec.name}"
                    )

    def _read_arena(self) -> None:
        """Variables in an arena are its initial contents."""
        section = self._find(_ARENA)
        if section is None or not section.size:
            return
        arenas = [spec.name for spec in self._maps.values() if spec.type == MapType.ARENA]
        if not arenas:
            raise ObjectError(
                "variables of an arena, but no map is one",
                place=f"section {section.name}",
                remedy="define a map of type BPF_MAP_TYPE_ARENA",
            )
        if len(arenas) > 1:
            raise ObjectError(
                f"more than one arena, where programs can use but one: {', '.join(arenas)}"
            )
        (name,) = arenas
        contents = section.data or bytes(section.size)
        self._maps[name] = replace(self._maps[name], contents=contents)
        self._arenas[section.index] = name
        self._data.add_arena(section, name)

    # --- what code refers to -------------------------------------------------------------

    def _data_at(self, symbol: elf.Symbol, offset: int) -> DataTarget:
        """What a load of `symbol`, plus `offset` bytes, means; see linker.py."""
        if symbol.section == elf.SHN_UNDEF:
            return self._extern_at(symbol, offset)
        if symbol.section >= len(self._elf.sections):
            raise ObjectError(
                f"{symbol.name} is in no section",
                remedy="compile with -fno-common, or give the variable a value"
                if symbol.section == elf.SHN_COMMON
                else None,
            )
        section = self._elf.sections[symbol.section]
        at = symbol.value + offset
        defined = self._definitions.get((section.index, at))
        if defined is not None:
            return MapTarget(defined, None)
        if section.name == jump_tables.SECTION:
            return JumpTarget(*self._jump_tables.at(symbol, offset))
        data = self._data.maps.get(section.index)
        name = data.name if data else self._arenas.get(section.index)
        if name is None:
            raise ObjectError(
                f"refers to {symbol.name or 'what is'} at {at:#x} of section {section.name}, where "
                "neither maps nor variables are",
            )
        # C may point right behind an array.
        if not 0 <= at <= section.size:
            raise ObjectError(f"byte {at} is outside {section.name} of {section.size} bytes")
        self._referred.add(section.index)
        return MapTarget(name, at)

    def _extern_at(self, symbol: elf.Symbol, offset: int) -> MapTarget | ExternTarget:
        extern = self._externs.use(symbol.name, called=False)
        if extern.kind == ExternKind.KCONFIG:
            if not 0 <= offset <= extern.size:
                raise ObjectError(
                    f"refers to byte {offset} of setting {symbol.name} of {extern.size} bytes"
                )
            return MapTarget(b.KERNEL_SETTINGS, extern.offset + offset)
        if offset:
            raise ObjectError(
                f"refers to byte {offset} of {extern.kind} {symbol.name}, of which only the start "
                "can be known"
            )
        return ExternTarget(extern.name)

    def _called(self, symbol: elf.Symbol) -> ExternTarget:
        extern = self._externs.use(symbol.name, called=True)
        if extern.kind != ExternKind.FUNCTION:
            raise ObjectError(f"{symbol.name} is called, but is a {extern.kind}")
        return ExternTarget(extern.name)

    # --- programs ------------------------------------------------------------------------

    def _programs(self) -> dict[str, ProgramSpec]:
        callbacks = self._exception_callbacks()
        programs: dict[str, ProgramSpec] = {}
        sections = [section for section in self._elf.sections if _is_code(section)]
        entries = [
            function
            for section in sections
            for function in self._linker.functions(section)
            if _is_entry(function)
        ]
        for function in entries or self._sole_function(sections):
            program = self._program(function, callbacks.get(function.name))
            if program is None:
                continue
            if function.name in programs:
                raise ObjectError(
                    f"a second program {function.name}", place=f"section {program.section}"
                )
            programs[function.name] = program
        self._account_for(sections, programs)
        return programs

    def _sole_function(self, sections: list[elf.Section]) -> Iterator[Function]:
        """The only function of an object whose source gave no section."""
        found = [function for s in sections for function in self._linker.functions(s)]
        if len(found) == 1 and found[0].section.name == _TEXT:
            yield found[0]

    def _account_for(self, sections: list[elf.Section], programs: Mapping[str, object]) -> None:
        """Refuse, or remark on, code that nobody can run."""
        for section in sections:
            functions = self._linker.functions(section)
            place = f"section {section.name}"
            if not functions:
                self._remarks.append(f"{place}: code without function left out")
            if section.name == _TEXT:
                continue
            idle = [
                function.name
                for function in functions
                if function.symbol.binding == elf.STB_LOCAL
                and not self._linker.is_reached(function)
            ]
            if not idle:
                continue
            if not programs:
                raise ObjectError(
                    f"static and never called: {', '.join(idle)}",
                    place=place,
                    remedy="a program has to be a global function",
                )
            self._remarks.append(f"{place}: static and never called: {', '.join(idle)}")

    def _program(self, function: Function, callback: Function | None) -> ProgramSpec | None:
        meaning = meaning_of(function.section.name)
        # A function in .text is made to be called, unless somebody says otherwise.
        autoload = meaning.autoload and function.section.name != _TEXT
        try:
            linked = self._linker.link(function, callback)
        except ObjectError as e:
            if autoload:
                raise
            self._omitted.add(function.name)
            self._remarks.append(f"program {function.name}, not loaded by default, left out: {e}")
            return None
        return ProgramSpec(
            name=function.name,
            section=function.section.name,
            type=meaning.type,
            attach_type=meaning.attach_type,
            attach_target=meaning.target,
            instructions=linked.instructions,
            map_references=linked.map_references,
            core_relocations=linked.core_relocations,
            func_info=linked.func_info,
            line_info=linked.line_info,
            flags=meaning.flags,
            autoload=autoload,
            extern_references=linked.extern_references,
            jump_tables=linked.jump_tables,
        )

    def _exception_callbacks(self) -> dict[str, Function]:
        """What the kernel is to call when a program throws, by the program's name.

        Such a function has no caller; a declaration tag of the program names it, as
        __exception_cb() of the kernel's bpf_experimental.h writes it.
        """
        if self._btf is None or _EXCEPTION_CALLBACK.encode() not in self._btf.raw:
            return {}
        text = self._find(_TEXT)
        functions = {f.name: f for f in self._linker.functions(text)} if text is not None else {}
        callbacks = {}
        for type_id in range(1, len(self._btf)):
            tag = self._btf.type(type_id)
            if not isinstance(tag, b.DeclTag) or not tag.name.startswith(_EXCEPTION_CALLBACK):
                continue
            name = tag.name.removeprefix(_EXCEPTION_CALLBACK)
            if name in functions:
                callbacks[self._btf.type(tag.target).name] = functions[name]
            else:
                self._remarks.append(f"exception callback {name} left out: there is none")
        return callbacks

    # --- the rest ------------------------------------------------------------------------

    def _license(self) -> str:
        section = self._find("license")
        if section is None:
            return ""
        return section.data.partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def _kernel_version(self) -> int:
        section = self._find("version")
        if section is None:
            return 0
        if len(section.data) != 4:
            self._remarks.append(f"section version left out: {section.size} bytes, not 4")
            return 0
        return int.from_bytes(section.data, self._elf.byteorder)


def _has_core_relocations(ext: bytes) -> bool:
    """Whether a section .BTF.ext has any, as far as can be said without BTF.

    Raises:
        ObjectError: Its header is none.
    """
    if not ext:
        return False
    byteorder = b.BYTE_ORDERS.get(ext[:2])
    if byteorder is None:
        raise ObjectError("no BTF: the magic number is missing", place=".BTF.ext header")
    length = int.from_bytes(ext[_EXT_LENGTH], byteorder)
    size = int.from_bytes(ext[_EXT_CORE_SIZE], byteorder)
    # GCC 12 writes the size of a record, and none.
    return length >= _EXT_CORE_SIZE.stop and size > 4


def _is_entry(function: Function) -> bool:
    """Whether it is a program's first."""
    return function.section.name != _TEXT and function.symbol.binding != elf.STB_LOCAL


def _is_code(section: elf.Section) -> bool:
    return bool(
        section.type == elf.SHT_PROGBITS and section.flags & elf.SHF_EXECINSTR and section.size
    )

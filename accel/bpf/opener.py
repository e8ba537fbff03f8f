"""Opens an object: bytes in, ObjectSpec out.

Pure but for reading the file when given a path; no kernel is asked for anything.
What we do not do is refused by name here, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from accel.bpf import btf as b
from accel.bpf import btf_ext, elf, linker, mapdefs
from accel.bpf.errors import ObjectError
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.sections import meaning_of
from accel.bpf.spec import MapSpec, ObjectSpec, ProgramSpec, VariableSpec

# include/uapi/linux/bpf.h: programs may not write the map.
_BPF_F_RDONLY_PROG: Final = 1 << 7

_DATA_PREFIXES = (".bss", ".data", ".rodata")
_COMPILER_CONSTANTS = (".rodata.str", ".rodata.cst")
_UNSUPPORTED = {
    "maps": ("maps in the style of before libbpf 1.0", 'define them in SEC(".maps")'),
    ".struct_ops": ("struct_ops", None),
    ".struct_ops.link": ("struct_ops", None),
    "?.struct_ops": ("struct_ops", None),
    "?.struct_ops.link": ("struct_ops", None),
    ".addr_space.1": ("variables in an arena", None),
    ".jumptables": ("jump tables", "compile with -fno-jump-tables"),
}


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
        data = path.read_bytes()
    except OSError as e:
        raise ObjectError(f"open {path}: {e.strerror}") from e
    try:
        return _Opener(data, name or path.name.partition(".")[0] or "object").spec()
    except ObjectError as e:
        error = ObjectError(f"{path}: {e}", remedy=e.remedy)
        error.place = e.place
        raise error from e


class _Opener:
    """One object on its way from bytes to spec."""

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        self._elf = elf.parse(data)
        _refuse_unsupported(self._elf)
        section = self._find(".BTF")
        self._btf = None if section is None else self._place(b.parse(section.data))
        section = self._find(".BTF.ext")
        ext = None
        if section is not None and self._btf is not None:
            ext = btf_ext.parse(section.data, self._btf)
        self._refuse_externs()
        self._maps: dict[str, MapSpec] = {}
        self._map_offsets: dict[int, str] = {}
        self._referred: set[int] = set()
        self._linker = linker.Linker(self._elf, ext, self._find_map)

    def spec(self) -> ObjectSpec:
        self._read_map_definitions()
        data_maps = dict(self._data_maps())
        self._maps.update((spec.name, spec) for spec in data_maps.values())
        programs = self._programs()
        variables = self._variables(data_maps)
        # The compiler's own constants matter only where code refers to them.
        for index, spec in data_maps.items():
            if spec.name.startswith(_COMPILER_CONSTANTS) and index not in self._referred:
                del self._maps[spec.name]
        return ObjectSpec(
            name=self._name,
            byteorder=self._elf.byteorder,
            license=self._license(),
            programs=MappingProxyType(programs),
            maps=MappingProxyType(self._maps),
            variables=MappingProxyType(variables),
            btf=self._btf,
        )

    def _find(self, name: str) -> elf.Section | None:
        section = self._elf.section(name)
        if section is not None and section.flags & elf.SHF_COMPRESSED:
            raise ObjectError("compressed", place=f"section {name}")
        return section

    def _place(self, btf: b.Btf) -> b.Btf:
        """Complete the BTF by what only the symbol table knows."""
        sections = self._elf.sections
        placements = {}
        hidden_functions = set()
        for symbol in self._elf.symbols:
            hidden = symbol.visibility in (elf.STV_HIDDEN, elf.STV_INTERNAL)
            if symbol.kind == elf.STT_OBJECT and symbol.section < len(sections):
                section = sections[symbol.section]
                placements[section.name, symbol.name] = b.Placement(symbol.value, hidden)
            elif symbol.kind == elf.STT_FUNC and hidden:
                hidden_functions.add(symbol.name)
        return btf.placed(
            {section.name: section.size for section in sections}, placements, hidden_functions
        )

    def _refuse_externs(self) -> None:
        externs = [s.name for s in self._elf.symbols if s.section == elf.SHN_UNDEF and s.name]
        if not externs:
            return
        kinds = dict(_extern_kinds(self._btf)) if self._btf is not None else {}
        listed = ", ".join(f"{name} ({kinds.get(name, 'extern')})" for name in externs)
        raise ObjectError(
            f"not defined in this object: {listed}",
            place="symbol table",
            remedy="externs of the kernel are not supported; read what you need by CO-RE",
        )

    def _read_map_definitions(self) -> None:
        section = self._find(mapdefs.SECTION)
        if section is None or not section.size:
            return
        if self._btf is None:
            raise ObjectError(
                "maps are defined, but there is no BTF",
                place=f"section {mapdefs.SECTION}",
                remedy="compile with -g",
            )
        for entry, spec in mapdefs.read_maps(self._btf):
            self._maps[spec.name] = spec
            self._map_offsets[entry.offset] = spec.name
        if self._elf.relocations(section):
            raise ObjectError(
                "initial values of a map of maps or programs are not supported",
                place=f"section {mapdefs.SECTION}",
                remedy="put them in after loading",
            )
        mapdefs.check_initialisers(self._maps, section.data)

    def _data_maps(self) -> Iterator[tuple[int, MapSpec]]:
        """Each section of variables as a map, by the section's index."""
        for section in self._elf.sections:
            if not _is_data(section):
                continue
            if self._elf.relocations(section):
                raise ObjectError(
                    "variables initialised with addresses are not supported",
                    place=f"section {section.name}",
                )
            if section.name in self._maps:
                raise ObjectError("a second section of that name", place=f"section {section.name}")
            datasec = self._btf.find(section.name, b.Datasec) if self._btf is not None else None
            constant = section.name.startswith(".rodata")
            yield (
                section.index,
                MapSpec(
                    name=section.name,
                    type=MapType.ARRAY,
                    key_size=4,
                    value_size=section.size,
                    max_entries=1,
                    flags=_BPF_F_RDONLY_PROG if constant else 0,
                    value_type_id=datasec[0] if datasec is not None else 0,
                    contents=section.data or bytes(section.size),
                    frozen=constant,
                ),
            )

    def _find_map(self, symbol: elf.Symbol, offset: int) -> tuple[str, int | None]:
        """The map that a load of `symbol`, plus `offset` bytes, means; see linker.py."""
        section = None
        if symbol.section < len(self._elf.sections):
            section = self._elf.sections[symbol.section]
        at = symbol.value + offset
        if section is not None and section.name == mapdefs.SECTION and at in self._map_offsets:
            return self._map_offsets[at], None
        if section is None or not _is_data(section):
            where = section.name if section is not None else f"number {symbol.section}"
            raise ObjectError(f"{symbol.name or 'byte'} {at:#x} of section {where} is no map")
        if not 0 <= at < section.size:
            raise ObjectError(f"byte {at} is outside {section.name} of {section.size} bytes")
        self._referred.add(section.index)
        return section.name, at

    def _programs(self) -> dict[str, ProgramSpec]:
        programs: dict[str, ProgramSpec] = {}
        with_programs = []
        for section in self._elf.sections:
            is_code = section.type == elf.SHT_PROGBITS and section.flags & elf.SHF_EXECINSTR
            if not is_code or section.name == ".text" or not section.size:
                continue
            with_programs.append(section)
            for function in self._linker.functions(section):
                if function.symbol.binding == elf.STB_LOCAL:
                    continue
                if function.name in programs:
                    raise ObjectError(
                        f"a second program {function.name}", place=f"section {section.name}"
                    )
                programs[function.name] = self._program(function)
        for section in with_programs:
            unreached = self._linker.unreached(section)
            if unreached or not self._linker.functions(section):
                raise ObjectError(
                    f"static and never called: {', '.join(unreached)}"
                    if unreached
                    else "holds code but no function",
                    place=f"section {section.name}",
                    remedy="a program has to be a global function",
                )
        return programs

    def _program(self, function: linker.Function) -> ProgramSpec:
        meaning = meaning_of(function.section.name)
        if meaning.type == ProgramType.STRUCT_OPS:
            raise ObjectError(
                f"program {function.name}: struct_ops are not supported",
                place=f"section {function.section.name}",
            )
        linked = self._linker.link(function)
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
            autoload=meaning.autoload,
        )

    def _variables(self, data_maps: Mapping[int, MapSpec]) -> dict[str, VariableSpec]:
        types = dict(self._variable_types())
        variables = {}
        for symbol in self._elf.symbols:
            spec = data_maps.get(symbol.section)
            if spec is None or not _is_public(symbol):
                continue
            place = f"section {spec.name}, variable {symbol.name}"
            if symbol.value + symbol.size > spec.value_size:
                raise ObjectError(
                    f"{symbol.size} bytes at {symbol.value} are outside the section", place=place
                )
            size, type_id = types.get((spec.name, symbol.name), (symbol.size, 0))
            if size != symbol.size:
                raise ObjectError(
                    f"{symbol.size} bytes by the symbol table, {size} by BTF", place=place
                )
            variables[symbol.name] = VariableSpec(
                symbol.name, spec.name, symbol.value, symbol.size, type_id
            )
        return variables

    def _variable_types(self) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
        """Size and type id of BTF's variables, by section and name."""
        if self._btf is None:
            return
        for type_id in range(1, len(self._btf)):
            section = self._btf.type(type_id)
            if isinstance(section, b.Datasec):
                for entry in section.variables:
                    variable = self._btf.type(entry.type_id)
                    if isinstance(variable, b.Var):
                        yield (section.name, variable.name), (entry.size, variable.target)

    def _license(self) -> str:
        section = self._find("license")
        if section is None:
            return ""
        return section.data.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _is_data(section: elf.Section) -> bool:
    name = section.name
    return (
        section.type in (elf.SHT_PROGBITS, elf.SHT_NOBITS)
        and section.size > 0
        and any(name == prefix or name.startswith(f"{prefix}.") for prefix in _DATA_PREFIXES)
    )


def _is_public(symbol: elf.Symbol) -> bool:
    return (
        symbol.kind == elf.STT_OBJECT
        and symbol.binding != elf.STB_LOCAL
        and symbol.visibility not in (elf.STV_HIDDEN, elf.STV_INTERNAL)
        and not symbol.name.startswith(".")
    )


def _refuse_unsupported(object_file: elf.Elf) -> None:
    for section in object_file.sections:
        key = "maps" if section.name.startswith("maps/") else section.name
        if key in _UNSUPPORTED and section.size:
            what, remedy = _UNSUPPORTED[key]
            raise ObjectError(
                f"{what} are not supported", place=f"section {section.name}", remedy=remedy
            )


def _extern_kinds(btf: b.Btf) -> Iterator[tuple[str, str]]:
    """What each extern of the BTF is, by its name."""
    for section, word in ((".kconfig", "kernel configuration"), (".ksyms", "kernel symbol")):
        found = btf.find(section, b.Datasec)
        for entry in found[1].variables if found is not None else ():
            extern = btf.type(entry.type_id)
            kind = "kernel function" if isinstance(extern, b.Func) else word
            yield extern.name, kind

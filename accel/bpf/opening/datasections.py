"""Global variables: sections of data become maps of one value, and their symbols variables.

Pure.  What libbpf does with .data, .rodata and .bss and with sections whose names go on
after a dot; but sections that no instruction and nobody else can refer to are left out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import elf
from accel.bpf.kinds import MapType
from accel.bpf.opening.externs import BPF_F_RDONLY_PROG
from accel.bpf.opening.remarks import Remarks
from accel.bpf.spec import MapSpec, VariableSpec

_PREFIXES = (".bss", ".data", ".rodata")
HIDDEN = (elf.STV_HIDDEN, elf.STV_INTERNAL)


class DataSections:
    """The data of one object.

    Attributes:
        maps: By section index.
        remarks: What was left out, and why.
    """

    def __init__(self, object_file: elf.Elf, btf: b.Btf | None) -> None:
        self._elf = object_file
        self._btf = btf
        self.remarks = Remarks()
        self.maps: dict[int, MapSpec] = {}
        # Of the maps with variables, by section index: name, and bytes for them.
        self._homes: dict[int, tuple[str, int]] = {}
        self._sections: dict[str, tuple[int, b.Datasec] | None] = {}
        names: set[str] = set()
        for section in object_file.sections:
            if _is_data(section):
                spec = self._map(section, names)
                self.maps[section.index] = spec
                self._homes[section.index] = spec.name, section.size
                names.add(spec.name)

    def _map(self, section: elf.Section, taken: Container[str]) -> MapSpec:
        if self._elf.relocations(section):
            # libbpf, too, leaves them zeros: no number would mean anything to a program.
            self.remarks.append(f"section {section.name}: addresses in variables are left out")
        constant = section.name.startswith(".rodata")
        return MapSpec(
            # Linkers may leave several sections of one name.
            name=f"{section.name}.{section.index}" if section.name in taken else section.name,
            type=MapType.ARRAY,
            key_size=4,
            value_size=section.size,
            max_entries=1,
            flags=BPF_F_RDONLY_PROG if constant else 0,
            value_type_id=self._type_id(section),
            contents=section.data or bytes(section.size),
            frozen=constant,
        )

    def _type_id(self, section: elf.Section) -> int:
        found = self._described(section.name)
        if found is None:
            return 0
        if found[1].size != section.size:
            self.remarks.append(
                f"section {section.name}: types left out, for they make {found[1].size} bytes "
                f"of {section.size}"
            )
            return 0
        return found[0]

    def _described(self, name: str) -> tuple[int, b.Datasec] | None:
        """What BTF says of sections of that name, of which a file may have any number."""
        if self._btf is not None and name not in self._sections:
            self._sections[name] = self._btf.find(name, b.Datasec)
        return self._sections.get(name)

    def add_arena(self, section: elf.Section, name: str) -> None:
        """Have variables of the section be in the arena of that name, from its start on."""
        self._homes[section.index] = name, section.size

    def variables(self) -> dict[str, VariableSpec]:
        """Those that other objects may see, by name.

        Raises:
            ObjectError: Two have one name.
        """
        variables: dict[str, VariableSpec] = {}
        sections = self._elf.sections
        types = {name: dict(self._types(name)) for name in {sections[i].name for i in self._homes}}
        for symbol in self._elf.symbols:
            if symbol.section not in self._homes or not _is_public(symbol):
                continue
            home, limit = self._homes[symbol.section]
            size, type_id = types[sections[symbol.section].name].get(symbol.name, (symbol.size, 0))
            where = f"map {home}, variable {symbol.name}"
            # LLVM before 8 gave symbols no size.
            if symbol.size and symbol.size != size:
                self.remarks.append(
                    f"{where}: type left out, for it makes {size} bytes of {symbol.size}"
                )
                size, type_id = symbol.size, 0
            if not size or symbol.value + size > limit:
                self.remarks.append(f"{where}: left out, {size} bytes at {symbol.value} of {limit}")
                continue
            variable = VariableSpec(symbol.name, home, symbol.value, size, type_id)
            if variables.setdefault(symbol.name, variable) != variable:
                raise ObjectError(
                    f"two variables are named {symbol.name}",
                    place=f"section {sections[symbol.section].name}",
                )
        return variables

    def _types(self, section: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Size and type id of the section's variables, by name."""
        found = self._described(section)
        if self._btf is None or found is None:
            return
        for entry in found[1].variables:
            variable = self._btf.type(entry.type_id)
            if isinstance(variable, b.Var):
                yield variable.name, (entry.size, variable.target)

    def needed(
        self, referred: Container[int], variables: Mapping[str, VariableSpec]
    ) -> Iterator[MapSpec]:
        """The maps that have variables, or are referred to by code.

        Args:
            referred: Indexes of sections.
        """
        with_variables = {variable.map for variable in variables.values()}
        for index, spec in self.maps.items():
            if index in referred or spec.name in with_variables:
                yield spec


def placements(object_file: elf.Elf) -> dict[tuple[str, str], b.Placement]:
    """Where each variable is, for Btf.placed(); static ones of one name are left out."""
    found: dict[tuple[str, str], b.Placement] = {}
    ambiguous = set()
    for symbol in object_file.symbols:
        if symbol.kind != elf.STT_OBJECT or symbol.section >= len(object_file.sections):
            continue
        key = object_file.sections[symbol.section].name, symbol.name
        if symbol.binding == elf.STB_LOCAL and key in found:
            ambiguous.add(key)
        found[key] = b.Placement(symbol.value, symbol.visibility in HIDDEN)
    return {key: at for key, at in found.items() if key not in ambiguous}


def _is_data(section: elf.Section) -> bool:
    name = section.name
    return (
        section.type in (elf.SHT_PROGBITS, elf.SHT_NOBITS)
        and section.size > 0
        and any(name == prefix or name.startswith(f"{prefix}.") for prefix in _PREFIXES)
    )


def _is_public(symbol: elf.Symbol) -> bool:
    # LLVM before 8 did not say that variables are variables.
    return (
        symbol.kind in (elf.STT_OBJECT, elf.STT_NOTYPE)
        and symbol.binding != elf.STB_LOCAL
        and symbol.visibility not in HIDDEN
        and bool(symbol.name)
        and not symbol.name.startswith(".")
    )

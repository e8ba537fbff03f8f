"""An object's parts, as the opener hands them to the readers of its sections."""

from __future__ import annotations

from pathlib import Path

from accel.bpf.format import btf, elf


def read(path: Path) -> tuple[elf.Elf, btf.Btf]:
    """The file, and its types with the offsets that only the symbol table knows."""
    file = elf.parse(path.read_bytes())
    names = [section.name for section in file.sections]
    section = file.section(".BTF")
    assert section is not None
    placements = {
        (names[symbol.section], symbol.name): btf.Placement(symbol.value, hidden=False)
        for symbol in file.symbols
        if symbol.kind == elf.STT_OBJECT
    }
    sizes = {section.name: section.size for section in file.sections}
    return file, btf.parse(section.data).placed(sizes, placements)


def section(file: elf.Elf, name: str) -> elf.Section:
    """The section of that name, which is there."""
    found = file.section(name)
    assert found is not None
    return found


def relocated(file: elf.Elf, name: str) -> dict[int, str]:
    """Names of what relocations refer to, by byte offset in the section."""
    found = section(file, name)
    return {r.offset: r.symbol.name for r in file.relocations(found)}

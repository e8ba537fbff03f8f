"""Maps in the style of before libbpf 1.0."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf, elf
from accel.bpf.kinds import MapType
from accel.bpf.opening import legacy
from accel.bpf.spec import MapSpec

from . import placed
from .conftest import Compile


def read(
    file: elf.Elf, section: elf.Section, types: btf.Btf | None
) -> Iterator[tuple[int, MapSpec]]:
    symbols = [symbol for symbol in file.symbols if symbol.section == section.index]
    return legacy.read_maps(section, symbols, file.byteorder, types)


def maps_of(compiled: Compile, name: str, section: str, target: str) -> dict[str, MapSpec]:
    file, types = placed.read(compiled(name, target))
    found = read(file, placed.section(file, section), types)
    return {spec.name: spec for _, spec in found}


def test_the_shared_words(compiled: Compile, target: str) -> None:
    maps = maps_of(compiled, "legacy_maps", "maps", target)
    first = maps["first"]

    assert list(maps) == ["first", "second", "hidden"]
    assert (first.type, first.key_size, first.value_size) == (MapType.HASH, 4, 24)
    assert (first.max_entries, first.flags, first.extra) == (10, 1, b"")
    assert (maps["hidden"].max_entries, maps["second"].value_size) == (3, 8)


def test_offsets_are_those_of_the_symbols(compiled: Compile) -> None:
    file, types = placed.read(compiled("legacy_maps"))
    found = read(file, placed.section(file, "maps"), types)
    assert [offset for offset, _ in found] == [0, 20, 40]


def test_four_words_are_enough(compiled: Compile, target: str) -> None:
    brief = maps_of(compiled, "legacy_maps", "maps/short", target)["brief"]
    assert (brief.type, brief.max_entries, brief.flags, brief.extra) == (MapType.ARRAY, 4, 0, b"")


def test_annotated_types_of_the_right_sizes(compiled: Compile, target: str) -> None:
    file, types = placed.read(compiled("legacy_maps", target))
    section = placed.section(file, "maps")
    first, second, _ = (spec for _, spec in read(file, section, types))

    assert types.describe(first.value_type_id) == "struct record"
    assert types.size_of(first.key_type_id) == 4
    assert (second.key_type_id, second.value_type_id) == (0, 0)
    without = next(read(file, section, None))[1]
    assert without == replace(first, key_type_id=0, value_type_id=0)


def test_templates_by_position(compiled: Compile, target: str) -> None:
    """samples/bpf's inner_map_idx, which only a map before can be."""
    maps = maps_of(compiled, "legacy_extra", "maps", target)

    assert maps["outer"].inner == maps["template"]
    assert maps["template"].inner is None
    assert maps["node"].numa_node == 0
    assert maps["template"].numa_node is None


def test_templates_by_id(compiled: Compile, target: str) -> None:
    """iproute2's inner_id."""
    maps = maps_of(compiled, "legacy_extra", "maps/iproute2", target)

    assert maps["nested"].inner == maps["inside"]
    assert maps["tail"].inner is None
    assert maps["tail"].type == MapType.PROG_ARRAY
    order = "<" if target == "bpfel" else ">"
    assert struct.unpack(f"{order}3Ii", maps["tail"].extra) == (1, 2, 0, -1)


@pytest.mark.parametrize("number", [1, 2, 1 << 31])
def test_a_template_is_a_map_before(number: int) -> None:
    """bpf_load.c created maps in their order."""
    outer = struct.pack("<7I", MapType.ARRAY_OF_MAPS, 4, 4, 1, 0, number, 0)
    inner = ARRAY + bytes(8)
    file, section = _file(inner + outer + inner, ("a", 0, 28), ("outer", 28, 28), ("b", 56, 28))
    assert [spec.inner for _, spec in read(file, section, None)] == [None] * 3


def test_ids_of_several_maps_name_none() -> None:
    inner = ARRAY + struct.pack("<4I", 7, 0, 0, 0)
    outer = struct.pack("<9I", MapType.HASH_OF_MAPS, 4, 4, 1, 0, 1, 0, 7, 0)
    file, section = _file(inner * 2 + outer, ("a", 0, 36), ("b", 36, 36), ("outer", 72, 36))
    assert [spec.inner for _, spec in read(file, section, None)] == [None] * 3


def test_unknown_fields_are_kept(compiled: Compile, target: str) -> None:
    pinned = maps_of(compiled, "legacy_extra", "maps/gobpf", target)["pinned"]

    assert pinned.type == MapType.PERF_EVENT_ARRAY
    assert not pinned.pin_by_name
    assert pinned.extra[4:].rstrip(b"\0") == b"globals"
    assert len(pinned.extra) == 260


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("maps", True),
        ("maps/one", True),
        ("lirc_mode2/maps", True),
        (".maps", False),
        ("mapsone", False),
        ("map", False),
    ],
)
def test_which_sections(name: str, answer: bool) -> None:
    assert legacy.is_section(name) is answer


def _file(
    data: bytes, *symbols: tuple[str, int, int], kind: int = elf.STT_OBJECT
) -> tuple[elf.Elf, elf.Section]:
    """A file of one section, with symbols of (name, offset, size)."""
    section = elf.Section(0, "maps", elf.SHT_PROGBITS, 0, len(data), 0, 0, 0, data)
    table = tuple(
        elf.Symbol(number, name, 0, value, size, elf.STB_GLOBAL, kind, 0)
        for number, (name, value, size) in enumerate(symbols)
    )
    return elf.Elf("little", (section,), table, {}), section


ARRAY = struct.pack("<5I", MapType.ARRAY, 4, 8, 1, 0)


def test_symbols_of_old_llvm_have_neither_type_nor_size() -> None:
    file, section = _file(ARRAY * 2, ("b", 20, 0), ("a", 0, 0), kind=elf.STT_NOTYPE)

    found = dict(read(file, section, None))

    assert {offset: spec.name for offset, spec in found.items()} == {0: "a", 20: "b"}
    assert found[20].value_size == 8


def test_labels_mark_nothing() -> None:
    file, section = _file(ARRAY, ("a", 0, 20), ("", 0, 0))
    label = elf.Symbol(2, "label", 0, 4, 0, elf.STB_LOCAL, elf.STT_NOTYPE, 0)
    file = replace(file, symbols=(*file.symbols, label))
    assert [spec.name for _, spec in read(file, section, None)] == ["a"]


def test_definitions_of_different_sizes() -> None:
    longer = ARRAY + struct.pack("<4I", 1, 0, 0, 0)
    file, section = _file(ARRAY + longer + bytes(4), ("a", 0, 20), ("b", 20, 36))

    extras = [spec.extra for _, spec in read(file, section, None)]

    assert [len(extra) for extra in extras] == [0, 16]


@pytest.mark.parametrize(
    ("data", "symbols", "message"),
    [
        (ARRAY, [("a", 0, 12)], "map a: 12 bytes"),
        (ARRAY, [("a", 0, 24)], "map a: 24 bytes, of 20"),
        (ARRAY * 2, [("a", 0, 24), ("b", 20, 20)], "map a: 24 bytes, of 20"),
        (ARRAY, [("a", 0, 20), ("b", 0, 20)], "map a: 20 bytes, of 0"),
        (ARRAY, [("a", 1 << 40, 0)], "map a: -"),
        (ARRAY * 2, [("a", 0, 20)], "offset 0x14: bytes of a definition that no symbol names"),
        (ARRAY * 2, [("b", 20, 20)], "offset 0x0: bytes of a definition that no symbol names"),
        (ARRAY, [], "no symbol names"),
        (bytes(20), [("a", 0, 20)], "map a: has no type"),
    ],
)
def test_refused(data: bytes, symbols: list[tuple[str, int, int]], message: str) -> None:
    file, section = _file(data, *symbols)
    with pytest.raises(ObjectError, match=message):
        list(read(file, section, None))

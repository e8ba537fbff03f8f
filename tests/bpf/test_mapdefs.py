"""Definitions of maps in BTF: what they say, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf
from accel.bpf.kinds import MapType
from accel.bpf.opening import mapdefs
from accel.bpf.spec import MapSpec

from . import handmade as h
from . import placed
from .conftest import Compile


def maps_of(compiled: Compile, name: str, target: str) -> tuple[dict[str, MapSpec], btf.Btf]:
    file, types = placed.read(compiled(name, target))
    values = placed.relocated(file, ".maps")
    return {spec.name: spec for _, spec in mapdefs.read_maps(types, values)}, types


def test_initial_values_are_names_by_slot(compiled: Compile, target: str) -> None:
    maps, _ = maps_of(compiled, "map_values", target)

    assert maps["by_index"].values == ((0, "one"), (2, "two"), (3, "one"))
    assert maps["by_key"].values == ((5, "two"),)
    assert maps["programs"].values == ((1, "second"), (3, "first"))
    assert (maps["programs"].key_size, maps["programs"].value_size) == (4, 4)
    inner = maps["by_index"].inner
    assert inner is not None
    assert (inner.name, inner.type, inner.value_size) == ("by_index.inner", MapType.ARRAY, 4)
    assert maps["one"].values == ()


def test_offsets_are_those_of_the_symbols(compiled: Compile) -> None:
    file, types = placed.read(compiled("map_values"))
    symbols = {symbol.name: symbol.value for symbol in file.symbols}

    found = mapdefs.read_maps(types, placed.relocated(file, ".maps"))

    assert {spec.name: offset for offset, spec in found} == {
        name: symbols[name] for name in ("one", "two", "by_index", "by_key", "programs")
    }


def test_records_keep_their_type_and_the_kernel_gets_its_sizes(
    compiled: Compile, target: str
) -> None:
    maps, types = maps_of(compiled, "map_records", target)

    for name in ("ring", "user_ring"):
        assert (maps[name].key_size, maps[name].value_size) == (0, 0)
    for name in ("perf", "plain_perf"):
        assert (maps[name].key_size, maps[name].value_size) == (4, 4)
    assert types.describe(maps["ring"].value_type_id) == "struct record"
    assert types.describe(maps["perf"].value_type_id) == "struct record"
    assert maps["ring"].key_type_id == 0
    assert types.describe(maps["plain_perf"].key_type_id) == "int"


def test_tags_of_map_struct_and_typedef(compiled: Compile, target: str) -> None:
    maps, _ = maps_of(compiled, "map_tags", target)

    of_type = ("of the typedef", "of the struct")
    assert maps["tagged"].tags == ("of the map", "second of the map", *of_type)
    assert maps["half_tagged"].tags == of_type
    assert maps["untagged"].tags == ()


def test_bytes_that_no_relocation_explains() -> None:
    contents = bytes(8) + b"\1" * 8 + bytes(8)

    assert not mapdefs.unexplained(bytes(24), {})
    assert mapdefs.unexplained(contents, {})
    assert not mapdefs.unexplained(contents, {8: "one"})
    assert mapdefs.unexplained(contents, {4: "one"})
    assert not mapdefs.unexplained(contents[:12], {8: "one", 100: "beyond"})


class Definition(h.Builder):
    """A section .maps with one map, by default an array of one 4-byte value."""

    def __init__(self) -> None:
        super().__init__()
        self.int = self.integer("int", 4)
        self.members: list[tuple[str, int, int]] = []
        self.number("type", MapType.ARRAY)

    def pointer(self, to: int) -> int:
        return self.add(h.PTR, "", to)

    def member(self, name: str, type_id: int) -> None:
        self.members.append((name, type_id, len(self.members) * 64))

    def number(self, name: str, value: int) -> None:
        self.member(name, self.pointer(self.array(self.int, value)))

    def types(self, *, kind: int = h.STRUCT, linkage: int = btf.GLOBAL, name: str = "m") -> btf.Btf:
        size = len(self.members) * 8
        definition = self.composite(kind, "", size, self.members)
        variable = self.add(h.VAR, name, definition, linkage)
        self.add(h.DATASEC, ".maps", size, variable, 0, size, vlen=1)
        return btf.parse(self.build())

    def read(self, values: Mapping[int, str] | None = None) -> MapSpec:
        ((_, spec),) = mapdefs.read_maps(self.types(), values or {})
        return spec


def test_numbers_as_enumerators() -> None:
    d = Definition()
    d.member("max_entries", d.enum("", [("unique", 7)]))
    d.member("map_extra", d.enum64("", [("other", 1 << 40)]))

    spec = d.read()

    assert (spec.max_entries, spec.map_extra) == (7, 1 << 40)


def test_a_negative_map_extra_is_64_bits_of_it() -> None:
    d = Definition()
    d.member("map_extra", d.enum("", [("unique", -1)], signed=True))
    assert d.read().map_extra == (1 << 64) - 1


def test_qualifiers_and_typedefs_are_looked_through() -> None:
    d = Definition()
    array = d.add(h.TYPEDEF, "five", d.array(d.int, 5))
    d.member("max_entries", d.add(h.CONST, "", d.pointer(array)))
    d.member("value", d.add(h.TYPEDEF, "value", d.pointer(d.int)))

    spec = d.read()

    assert (spec.max_entries, spec.value_size, spec.value_type_id) == (5, 4, d.int)


def test_a_size_may_be_said_twice() -> None:
    d = Definition()
    d.number("key_size", 4)
    d.member("key", d.pointer(d.int))
    assert d.read().key_size == 4


def test_a_node_counts_only_with_its_flag() -> None:
    """bpf_map_attr_numa_node(): without BPF_F_NUMA_NODE the kernel looks at none."""
    without, flagged = Definition(), Definition()
    for d in (without, flagged):
        d.number("numa_node", 1)
    flagged.number("map_flags", mapdefs.BPF_F_NUMA_NODE)

    assert (without.read().numa_node, flagged.read().numa_node) == (None, 1)


def test_values_before_the_type() -> None:
    d = Definition()
    d.members.clear()
    d.member("values", d.array(d.pointer(d.function(d.int, [])), 0))
    d.number("type", MapType.PROG_ARRAY)
    assert d.read({0: "program"}).values == ((0, "program"),)


def test_an_array_of_maps_without_template() -> None:
    """libbpf opens it too: the program may set one before loading."""
    d = Definition()
    d.members.clear()
    d.number("type", MapType.ARRAY_OF_MAPS)
    d.number("value_size", 4)

    spec = d.read()

    assert (spec.inner, spec.value_size) == (None, 4)


def _inner(d: Definition) -> int:
    return d.struct("", 8, [("type", d.members[0][1], 0)])


def _nested(d: Definition) -> None:
    inner = d.struct("", 16, [d.members[0], ("values", d.array(d.pointer(d.int), 0), 64)])
    d.members.clear()
    d.number("type", MapType.ARRAY_OF_MAPS)
    d.member("values", d.array(d.pointer(inner), 0))


def _pinned_inner(d: Definition) -> None:
    pinned = d.struct("", 16, [d.members[0], ("pinning", d.pointer(d.array(d.int, 1)), 64)])
    d.members.clear()
    d.number("type", MapType.HASH_OF_MAPS)
    d.member("values", d.array(d.pointer(pinned), 0))


def _two_sizes(d: Definition) -> None:
    d.number("value_size", 8)
    d.member("value", d.pointer(d.int))


REFUSED: dict[str, tuple[Callable[[Definition], None], str]] = {
    "no type": (lambda d: d.members.clear(), "has no type"),
    "unknown": (lambda d: d.number("colour", 1), "unknown attribute 'colour'"),
    "unnamed": (lambda d: d.number("", 1), "unknown attribute ''"),
    "twice": (lambda d: d.number("type", MapType.HASH), "a second attribute type"),
    "no number": (lambda d: d.member("max_entries", d.int), "max_entries is int"),
    "two numbers": (
        lambda d: d.member("max_entries", d.enum("", [("a", 1), ("b", 2)])),
        "max_entries is anonymous enum",
    ),
    "too wide": (
        lambda d: d.member("max_entries", d.enum64("", [("a", 1 << 32)])),
        "more than 32 bits",
    ),
    "no pointer": (lambda d: d.member("key", d.int), "write it as __type"),
    "no size": (lambda d: d.member("key", d.pointer(d.add(h.FWD, "sock", 0))), "has no size"),
    "sizes differ": (
        _two_sizes,
        "value_size is 8 and 4",
    ),
    "pinning": (lambda d: d.number("pinning", 2), "unknown pinning 2"),
    "values": (
        lambda d: d.member("values", d.array(d.pointer(d.int), 0)),
        "only maps of maps and of programs",
    ),
    "no values": (lambda d: d.member("values", d.int), "not an array"),
    "nested": (_nested, "or in an inner map"),
    "pinned inner": (_pinned_inner, "inner map cannot be pinned"),
}


@pytest.mark.parametrize(("define", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(define: Callable[[Definition], None], message: str) -> None:
    d = Definition()
    define(d)
    with pytest.raises(ObjectError, match=message) as caught:
        d.read()
    assert (caught.value.place or "").startswith("section .maps, map m")


def test_not_defined_by_a_struct() -> None:
    with pytest.raises(ObjectError, match="not by a struct"):
        list(mapdefs.read_maps(Definition().types(kind=h.UNION), {}))


@pytest.mark.parametrize("linkage", [btf.STATIC, btf.EXTERN])
def test_static_maps(linkage: int) -> None:
    with pytest.raises(ObjectError, match="static or extern"):
        list(mapdefs.read_maps(Definition().types(linkage=linkage), {}))


def test_a_map_without_name() -> None:
    with pytest.raises(ObjectError, match="no named variable"):
        list(mapdefs.read_maps(Definition().types(name=""), {}))


def test_a_section_without_btf() -> None:
    with pytest.raises(ObjectError, match=r"section \.maps: not described by BTF"):
        list(mapdefs.read_maps(btf.parse(h.Builder().build()[:-1] + b"\0"), {}))


def _of_maps() -> Definition:
    d = Definition()
    inner = _inner(d)
    d.members.clear()
    d.number("type", MapType.ARRAY_OF_MAPS)
    d.member("values", d.array(d.pointer(inner), 0))
    return d


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({0: "m"}, "m at byte 0 is no value"),
        ({12: "m"}, "between two slots"),
        ({16: "program"}, "slot 1 holds program, no map"),
    ],
)
def test_values_that_are_none(values: dict[int, str], message: str) -> None:
    with pytest.raises(ObjectError, match=message):
        _of_maps().read(values)


def test_a_value_in_a_map_that_has_none() -> None:
    with pytest.raises(ObjectError, match="no value of an attribute values"):
        Definition().read({0: "m"})


def test_a_value_before_all_maps() -> None:
    d = Definition()
    variable = d.add(h.VAR, "m", d.struct("", 8, d.members), btf.GLOBAL)
    d.add(h.DATASEC, ".maps", 16, variable, 8, 8, vlen=1)
    with pytest.raises(ObjectError, match=r"offset 0: m is outside all maps"):
        list(mapdefs.read_maps(btf.parse(d.build()), {0: "m"}))


def test_two_maps_of_one_name() -> None:
    d = Definition()
    definition = d.struct("", 8, d.members)
    first, second = (d.add(h.VAR, "m", definition, btf.GLOBAL) for _ in range(2))
    d.add(h.DATASEC, ".maps", 16, first, 0, 8, second, 8, 8, vlen=2)
    with pytest.raises(ObjectError, match="a second map of that name"):
        list(mapdefs.read_maps(btf.parse(d.build()), {}))


def test_tags_are_bounded() -> None:
    d = Definition()
    definition = d.struct("", 8, d.members)
    variable = d.add(h.VAR, "m", definition, btf.GLOBAL)
    for _ in range(300):
        d.add(h.DECL_TAG, "tag", definition, -1)
    d.add(h.DATASEC, ".maps", 8, variable, 0, 8, vlen=1)
    with pytest.raises(ObjectError, match="300 tags"):
        list(mapdefs.read_maps(btf.parse(d.build()), {}))

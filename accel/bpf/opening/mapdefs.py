"""Maps as the object's source defines them: structs of the section .maps.

Pure.  Every member of such a struct is an attribute of the map, and its value is
coded in its type (libbpf's bpf_helpers.h)::

    __uint(name, 5)       int (*name)[5]
    __type(name, T)       T *name
    __array(name, T)      T *name[]
    __ulong(name, 5)      enum { unique = 5 } name

Only what a map of maps, or of programs, holds from the start is a value in the
sense of C; the compiler leaves a relocation for each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.kinds import MapType
from accel.bpf.spec import MapSpec

SECTION = ".maps"
MAPS_OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)

# include/uapi/linux/bpf.h: the map's numa_node counts.
BPF_F_NUMA_NODE = 1 << 2

# These have no keys or values of their own.  Objects give them a value type all the same,
# to name their records in BTF, and the kernel then refuses to create them: EINVAL of
# ringbuf_map_alloc(), kernel/bpf/ringbuf.c, and arena_map_alloc(), kernel/bpf/arena.c.
_WITHOUT_VALUES = (MapType.RINGBUF, MapType.USER_RINGBUF, MapType.ARENA)
_DESCRIPTOR = 4  # bytes of the index, or of a file descriptor, in an array of those
_POINTER = 8
_LIBBPF_PIN_NONE = 0
_LIBBPF_PIN_BY_NAME = 1
# More is no use to anyone, and lets a small file ask for gigabytes of names.
_MAX_TAGS = 256

# Attributes that are numbers: the fields of MapSpec they fill, and their bits.
_NUMBERS = {
    "type": ("type", 32),
    "max_entries": ("max_entries", 32),
    "map_flags": ("flags", 32),
    "numa_node": ("numa_node", 32),
    "key_size": ("key_size", 32),
    "value_size": ("value_size", 32),
    "map_extra": ("map_extra", 64),
}


def read_maps(btf: b.Btf, values: Mapping[int, str]) -> Iterator[tuple[int, MapSpec]]:
    """Each map of the section .maps, and its byte offset there.

    Args:
        values: By byte offset in the section, the map or program whose address a
            relocation puts there.

    Raises:
        ObjectError: A definition asks for something unknown, or contradicts itself; or a
            value is where none can be.
    """
    found = btf.find(SECTION, b.Datasec)
    if found is None:
        raise ObjectError("not described by BTF", place=_place(), remedy="compile with -g")
    entries = sorted(found[1].variables, key=lambda entry: entry.offset)
    variables = _variables(btf, entries)
    values_of = _by_definition([entry.offset for entry in entries], values)
    tags = _tags(btf)
    for entry, (name, variable) in zip(entries, variables.items(), strict=True):
        spec = _Definition(btf, name).read(variable.target, values_of.get(entry.offset, {}))
        for slot, target in spec.values:
            if spec.type in MAPS_OF_MAPS and target not in variables:
                raise ObjectError(f"slot {slot} holds {target}, no map", place=_place(name))
        if tags:
            spec = replace(spec, tags=_tags_of(btf, name, entry.type_id, tags))
        yield entry.offset, spec


def unexplained(contents: bytes, values: Mapping[int, str]) -> bool:
    """Whether the section .maps has a byte that is not 0 and no part of one of `values`.

    Attributes of maps are types: any other value in a definition goes nowhere.
    """
    left = bytearray(contents)
    for offset in values:
        end = min(offset + _POINTER, len(left))
        left[offset:end] = bytes(max(end - offset, 0))
    return any(left)


def adapted(spec: MapSpec, place: str) -> MapSpec:
    """The definition with the sizes that the kernel insists on for its type of map.

    Type ids of records stay, for their readers.

    Raises:
        ObjectError: It has no type, or sizes that its type cannot have.
    """
    if spec.type == MapType.UNSPEC:
        raise ObjectError("has no type", place=place, remedy="give it a BPF_MAP_TYPE_*")
    if spec.type in MAPS_OF_MAPS:
        if spec.value_size not in (0, _DESCRIPTOR):
            raise ObjectError(
                f"value_size of a map of maps is {_DESCRIPTOR}, not {spec.value_size}", place=place
            )
        return replace(spec, value_size=_DESCRIPTOR, value_type_id=0)
    if spec.type in _WITHOUT_VALUES:
        return replace(spec, key_size=0, value_size=0, key_type_id=0)
    if spec.type == MapType.PERF_EVENT_ARRAY:
        key_type_id = spec.key_type_id if spec.key_size == _DESCRIPTOR else 0
        return replace(spec, key_size=_DESCRIPTOR, value_size=_DESCRIPTOR, key_type_id=key_type_id)
    return spec


def _place(name: str | None = None) -> str:
    return f"section {SECTION}" if name is None else f"section {SECTION}, map {name}"


def _variables(btf: b.Btf, entries: Sequence[b.SectionVariable]) -> dict[str, b.Var]:
    """The maps' variables by name, in the order of the entries."""
    variables: dict[str, b.Var] = {}
    for entry in entries:
        variable = btf.type(entry.type_id)
        if not isinstance(variable, b.Var) or not variable.name:
            raise ObjectError(f"BTF type {entry.type_id} is no named variable", place=_place())
        if variable.name in variables:
            raise ObjectError("a second map of that name", place=_place(variable.name))
        if variable.linkage != b.GLOBAL:
            raise ObjectError(
                f"map {variable.name} is static or extern",
                place=_place(),
                remedy="define it as a global variable",
            )
        variables[variable.name] = variable
    return variables


def _by_definition(starts: Sequence[int], values: Mapping[int, str]) -> dict[int, dict[int, str]]:
    """The values by the offset of the definition they are in, then by offset in it."""
    found: dict[int, dict[int, str]] = {}
    for offset, name in values.items():
        position = bisect_right(starts, offset)
        if not position:
            raise ObjectError(f"{name} is outside all maps", place=f"{_place()}, offset {offset}")
        start = starts[position - 1]
        found.setdefault(start, {})[offset - start] = name
    return found


def _tags(btf: b.Btf) -> dict[int, list[str]]:
    """Declaration tags, by what they are tags of; those of members left out."""
    tags: dict[int, list[str]] = {}
    for found in map(btf.type, range(1, len(btf))):
        if isinstance(found, b.DeclTag) and found.component == -1:
            tags.setdefault(found.target, []).append(found.name)
    return tags


def _tags_of(btf: b.Btf, name: str, type_id: int, tags: Mapping[int, list[str]]) -> tuple[str, ...]:
    """Tags of a variable, of its struct, and of the typedefs between."""
    found = list(tags.get(type_id, ()))
    reference = btf.type(type_id)
    # The definition has been read, so this has an end.
    while isinstance(reference, b.Var | b.Modifier):
        type_id = reference.target
        found += tags.get(type_id, ())
        reference = btf.type(type_id)
    if len(found) > _MAX_TAGS:
        raise ObjectError(f"{len(found)} tags, more than {_MAX_TAGS}", place=_place(name))
    return tuple(found)


class _Definition:
    """One definition on its way from BTF to spec, member by member."""

    def __init__(self, btf: b.Btf, name: str, *, is_inner: bool = False) -> None:
        self._btf = btf
        self._name = name
        self._is_inner = is_inner
        self._place = _place(name)
        self._fields: dict[str, Any] = {
            "type": 0,
            "key_size": 0,
            "value_size": 0,
            "max_entries": 0,
        }
        self._values_at: int | None = None

    def read(self, type_id: int, values: Mapping[int, str]) -> MapSpec:
        """The spec that the type says.

        Args:
            values: Names of maps or programs by byte offset in the definition.
        """
        _, definition = self._btf.resolve(type_id)
        if not isinstance(definition, b.Struct):
            raise self._error(f"defined by {self._btf.describe(type_id)}, not by a struct")
        seen = set()
        # What values may be depends on the type of map.
        for member in sorted(definition.members, key=lambda member: member.name == "values"):
            if member.name in seen:
                raise self._error(f"a second attribute {member.name}")
            seen.add(member.name)
            self._apply(member)
        if not self._fields.get("flags", 0) & BPF_F_NUMA_NODE:
            # Without the flag the kernel looks at no node, bpf_map_attr_numa_node().
            self._fields.pop("numa_node", None)
        spec = adapted(MapSpec(name=self._name, **self._fields), self._place)
        return replace(spec, values=self._slots(values)) if values else spec

    def _error(self, message: str, remedy: str | None = None) -> ObjectError:
        return ObjectError(message, place=self._place, remedy=remedy)

    def _apply(self, member: b.Member) -> None:
        match member.name:
            case "key" | "value":
                type_id = self._pointed_to(member)
                try:
                    size = self._btf.size_of(type_id)
                except ObjectError as e:
                    raise e.within(f"{self._place}, attribute {member.name}") from None
                self._set_size(f"{member.name}_size", size)
                self._fields[f"{member.name}_type_id"] = type_id
            case "key_size" | "value_size":
                self._set_size(member.name, self._number(member))
            case "values":
                self._read_values(member)
            case "pinning":
                self._fields["pin_by_name"] = self._pinning(member)
            case known if known in _NUMBERS:
                self._fields[_NUMBERS[known][0]] = self._number(member)
            case unknown:
                raise self._error(f"unknown attribute {unknown!r}")

    def _set_size(self, what: str, size: int) -> None:
        before = self._fields[what]
        if before not in (0, size):
            raise self._error(f"{what} is {before} and {size}")
        self._fields[what] = size

    def _number(self, member: b.Member) -> int:
        _, found = self._btf.resolve(member.type_id)
        number = None
        if isinstance(found, b.Ptr):
            _, array = self._btf.resolve(found.target)
            number = array.count if isinstance(array, b.Array) else None
        elif isinstance(found, b.Enum | b.Enum64) and len(found.enumerators) == 1:
            number = found.enumerators[0].value
        if number is None:
            raise self._error(
                f"attribute {member.name} is {self._btf.describe(member.type_id)}",
                f"write it as __uint({member.name}, ...)",
            )
        bits = _NUMBERS[member.name][1] if member.name in _NUMBERS else 32
        if not -(1 << bits - 1) <= number < 1 << bits:
            raise self._error(f"attribute {member.name} is {number}, more than {bits} bits")
        return number & (1 << bits) - 1

    def _pointed_to(self, member: b.Member) -> int:
        _, found = self._btf.resolve(member.type_id)
        if not isinstance(found, b.Ptr):
            raise self._error(
                f"attribute {member.name} is {self._btf.describe(member.type_id)}",
                f"write it as __type({member.name}, ...)",
            )
        return found.target

    def _pinning(self, member: b.Member) -> bool:
        number = self._number(member)
        if number not in (_LIBBPF_PIN_NONE, _LIBBPF_PIN_BY_NAME):
            raise self._error(f"unknown pinning {number}")
        if number and self._is_inner:
            raise self._error("the template of an inner map cannot be pinned")
        return number == _LIBBPF_PIN_BY_NAME

    def _read_values(self, member: b.Member) -> None:
        """`values`: what the slots of a map of maps, or of programs, hold."""
        self._set_size("value_size", _DESCRIPTOR)
        _, array = self._btf.resolve(member.type_id)
        pointer = self._btf.resolve(array.element)[1] if isinstance(array, b.Array) else None
        if not isinstance(pointer, b.Ptr) or self._is_inner:
            raise self._error(
                "attribute values is not an array of pointers, or in an inner map",
                "write it as __array(values, ...)",
            )
        kind = self._fields["type"]
        if kind in MAPS_OF_MAPS:
            inner = _Definition(self._btf, f"{self._name}.inner", is_inner=True)
            self._fields["inner"] = inner.read(pointer.target, {})
        elif kind != MapType.PROG_ARRAY:
            raise self._error("only maps of maps and of programs have values")
        self._values_at = member.bit_offset // 8

    def _slots(self, values: Mapping[int, str]) -> tuple[tuple[int, str], ...]:
        """(slot, name) of each of the values."""
        slots = []
        for offset, name in sorted(values.items()):
            if self._values_at is None or offset < self._values_at:
                raise self._error(f"{name} at byte {offset} is no value of an attribute values")
            slot, rest = divmod(offset - self._values_at, _POINTER)
            if rest:
                raise self._error(f"{name} at byte {offset} is between two slots")
            slots.append((slot, name))
        return tuple(slots)

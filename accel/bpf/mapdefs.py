"""Maps as the object's source defines them: structs of the section .maps.

Pure.  Every member of such a struct is an attribute of the map, and its value is
coded in its type (libbpf's bpf_helpers.h)::

    __uint(name, 5)       int (*name)[5]
    __type(name, T)       T *name
    __array(name, T)      T *name[]
    __ulong(name, 5)      enum { unique = 5 } name
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from accel.bpf import btf as b
from accel.bpf.errors import ObjectError
from accel.bpf.kinds import MapType
from accel.bpf.spec import MapSpec

SECTION = ".maps"

_MAPS_OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
# These have no keys or values of their own.  Objects give them a value type all the same,
# to name their records in BTF, and the kernel then refuses to create them.
_WITHOUT_VALUES = (MapType.RINGBUF, MapType.USER_RINGBUF, MapType.ARENA)
_LIBBPF_PIN_NONE = 0
_LIBBPF_PIN_BY_NAME = 1

_NUMBERS = {
    "type": "type",
    "max_entries": "max_entries",
    "map_flags": "flags",
    "numa_node": "numa_node",
    "key_size": "key_size",
    "value_size": "value_size",
    "map_extra": "map_extra",
}


def read_maps(btf: b.Btf) -> Iterator[tuple[b.SectionVariable, MapSpec]]:
    """Each map of the section .maps, and where in the section it is.

    Raises:
        ObjectError: A definition asks for something unknown, or contradicts itself.
    """
    found = btf.find(SECTION, b.Datasec)
    if found is None:
        return
    for entry in found[1].variables:
        variable = btf.type(entry.type_id)
        if not isinstance(variable, b.Var):
            raise ObjectError(f"BTF type {entry.type_id} is no variable", place=_place())
        if variable.linkage != b.GLOBAL:
            raise ObjectError(
                f"map {variable.name} is static or extern",
                place=_place(),
                remedy="define it as a global variable",
            )
        yield entry, _read_map(btf, variable.name, variable.target)


def _place(name: str | None = None) -> str:
    return f"section {SECTION}" if name is None else f"section {SECTION}, map {name}"


def _read_map(btf: b.Btf, name: str, type_id: int, *, is_inner: bool = False) -> MapSpec:
    _, definition = btf.resolve(type_id)
    if not isinstance(definition, b.Struct):
        raise ObjectError(
            f"defined by {btf.describe(type_id)}, not by a struct", place=_place(name)
        )
    spec = MapSpec(name, 0, 0, 0, 0)
    sizes: dict[str, int] = {}
    for member in definition.members:
        spec = _apply(btf, spec, member, sizes, is_inner=is_inner)
    return _checked(spec)


def _apply(
    btf: b.Btf, spec: MapSpec, member: b.Member, sizes: dict[str, int], *, is_inner: bool
) -> MapSpec:
    """The spec with what one member of the definition says."""
    match member.name:
        case "key" | "value":
            type_id = _pointed_to(btf, spec.name, member)
            size = btf.size_of(type_id)
            _agree(spec.name, sizes, f"{member.name}_size", size)
            if member.name == "key":
                return replace(spec, key_type_id=type_id, key_size=size)
            return replace(spec, value_type_id=type_id, value_size=size)
        case "values":
            return _with_values(btf, spec, member, sizes, is_inner=is_inner)
        case "pinning":
            return replace(spec, pin_by_name=_pinning(btf, spec.name, member, is_inner=is_inner))
        case known if known in _NUMBERS:
            number = _number(btf, spec.name, member)
            if known in ("key_size", "value_size"):
                _agree(spec.name, sizes, known, number)
            change: dict[str, Any] = {_NUMBERS[known]: number}
            return replace(spec, **change)
        case unknown:
            raise ObjectError(f"unknown attribute {unknown!r}", place=_place(spec.name))


def _agree(name: str, sizes: dict[str, int], what: str, size: int) -> None:
    if sizes.setdefault(what, size) != size:
        raise ObjectError(f"{what} is {sizes[what]} and {size}", place=_place(name))


def _number(btf: b.Btf, name: str, member: b.Member) -> int:
    _, found = btf.resolve(member.type_id)
    if isinstance(found, b.Ptr):
        _, array = btf.resolve(found.target)
        if isinstance(array, b.Array):
            return array.count
    if isinstance(found, b.Enum | b.Enum64) and len(found.enumerators) == 1:
        return found.enumerators[0].value
    raise ObjectError(
        f"attribute {member.name} is {btf.describe(member.type_id)}",
        place=_place(name),
        remedy=f"write it as __uint({member.name}, ...)",
    )


def _pointed_to(btf: b.Btf, name: str, member: b.Member) -> int:
    _, found = btf.resolve(member.type_id)
    if not isinstance(found, b.Ptr):
        raise ObjectError(
            f"attribute {member.name} is {btf.describe(member.type_id)}",
            place=_place(name),
            remedy=f"write it as __type({member.name}, ...)",
        )
    return found.target


def _pinning(btf: b.Btf, name: str, member: b.Member, *, is_inner: bool) -> bool:
    number = _number(btf, name, member)
    if number not in (_LIBBPF_PIN_NONE, _LIBBPF_PIN_BY_NAME):
        raise ObjectError(f"unknown pinning {number}", place=_place(name))
    if number and is_inner:
        raise ObjectError("the template of an inner map cannot be pinned", place=_place(name))
    return number == _LIBBPF_PIN_BY_NAME


def _with_values(
    btf: b.Btf, spec: MapSpec, member: b.Member, sizes: dict[str, int], *, is_inner: bool
) -> MapSpec:
    """`values`: what the slots of a map of maps, or of programs, hold."""
    _agree(spec.name, sizes, "value_size", 4)
    _, array = btf.resolve(member.type_id)
    pointer = btf.resolve(array.element)[1] if isinstance(array, b.Array) else None
    if not isinstance(pointer, b.Ptr) or is_inner:
        raise ObjectError(
            "attribute values is not an array of pointers, or in an inner map",
            place=_place(spec.name),
            remedy="write it as __array(values, ...)",
        )
    if spec.type == MapType.PROG_ARRAY:
        return replace(spec, value_size=4)
    if spec.type not in _MAPS_OF_MAPS:
        raise ObjectError(
            "only maps of maps and of programs have values",
            place=_place(spec.name),
            remedy="give the type first",
        )
    inner = _read_map(btf, f"{spec.name}.inner", pointer.target, is_inner=True)
    return replace(spec, value_size=4, inner=inner)


def _checked(spec: MapSpec) -> MapSpec:
    if spec.type == 0:
        raise ObjectError("has no type", place=_place(spec.name), remedy="add __uint(type, ...)")
    if spec.type in _MAPS_OF_MAPS:
        if spec.value_size not in (0, 4):
            raise ObjectError(
                f"value_size of a map of maps is 4, not {spec.value_size}", place=_place(spec.name)
            )
        return replace(spec, value_size=4, value_type_id=0)
    if spec.type in _WITHOUT_VALUES:
        return replace(spec, key_size=0, value_size=0, key_type_id=0, value_type_id=0)
    return spec


def check_initialisers(maps: Mapping[str, MapSpec], contents: bytes) -> None:
    """Refuse what looks like a value in a definition; it would go nowhere.

    Raises:
        ObjectError: The section .maps has a byte that is not 0.
    """
    if any(contents):
        raise ObjectError(
            f"a map of {', '.join(maps)} is initialised",
            place=_place(),
            remedy="attributes of maps are types; see __uint() and __type()",
        )

"""Maps in the style of before libbpf 1.0: structs of the section "maps".

Pure.  Or of "maps/..."; or ".../maps", as in the "lirc_mode2/maps" of v4l-utils' keymaps.
Every symbol of such a section marks one definition.  Its first words, of 32 bits, are
those of struct bpf_map_def, which all loaders share; the last may be missing::

    type  key_size  value_size  max_entries  map_flags

What follows them each loader made up for itself::

    inner_map_idx  numa_node            bpf_load.c of Linux' samples/bpf, until 5.11
    id  pinning  inner_id  inner_idx    struct bpf_elf_map of iproute2; once only two

It is kept in MapSpec.extra, and read where only one of the two can be meant: in maps
of maps, by the length, and numa_node where the flags ask for it.

Types of key and value come from structs that BPF_ANNOTATE_KV_PAIR() leaves in BTF.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from struct import Struct

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import elf
from accel.bpf.format.byteorder import ByteOrder
from accel.bpf.opening import mapdefs
from accel.bpf.spec import MapSpec

# A definition without map_flags, as before Linux 4.6.
_LEAST_BYTES = 16
_SHARED_BYTES = 20
# With inner_map_idx, and with numa_node.
_SAMPLES_BYTES = (24, 28)
_IPROUTE2_BYTES = 36


@dataclass(frozen=True, slots=True)
class _Definition:
    """One definition: its bytes, padded to the words known, and what its symbol says."""

    name: str
    offset: int
    size: int
    words: tuple[int, ...]
    extra: bytes


def is_section(name: str) -> bool:
    """Whether a section of that name holds such definitions."""
    return name == "maps" or name.startswith("maps/") or name.endswith("/maps")


def read_maps(
    section: elf.Section,
    symbols: Iterable[elf.Symbol],
    byteorder: ByteOrder,
    btf: b.Btf | None,
) -> Iterator[tuple[int, MapSpec]]:
    """Each map of the section, in its order, and its byte offset there.

    A map of maps whose definition names no template has none; the kernel creates it only
    when somebody adds one.

    Args:
        symbols: Those of the section.

    Raises:
        ObjectError: The symbols do not part the section into definitions.
    """
    definitions = _definitions(section, _marks(symbols), byteorder)
    ids = _iproute2_ids(definitions)
    specs = [_spec(definition, section, btf) for definition in definitions]
    for position, (definition, spec) in enumerate(zip(definitions, specs, strict=True)):
        if spec.type in mapdefs.MAPS_OF_MAPS:
            template = _template(definition, position, ids)
            if template is not None and specs[template].type not in mapdefs.MAPS_OF_MAPS:
                spec = replace(spec, inner=specs[template])
        yield definition.offset, spec


def _definitions(
    section: elf.Section, symbols: Sequence[elf.Symbol], byteorder: ByteOrder
) -> list[_Definition]:
    ends = [symbol.value for symbol in symbols[1:]] + [section.size]
    words = Struct("<9I" if byteorder == "little" else ">9I")
    definitions = []
    covered = 0
    names = set()
    for symbol, end in zip(symbols, ends, strict=False):
        place = f"section {section.name}, map {symbol.name}"
        if symbol.name in names:
            raise ObjectError("a second map of that name", place=place)
        names.add(symbol.name)
        # LLVM before 8 gave its symbols no size.
        size = symbol.size or end - symbol.value
        if size < _LEAST_BYTES or symbol.value + size > end:
            raise ObjectError(
                f"{size} bytes, of {end - symbol.value} up to the next, are no definition of a map",
                place=place,
            )
        _refuse_strays(section, covered, symbol.value)
        covered = symbol.value + size
        data = section.data[symbol.value : covered]
        definitions.append(
            _Definition(
                name=symbol.name,
                offset=symbol.value,
                size=size,
                words=words.unpack(data[: words.size].ljust(words.size, b"\0")),
                extra=data[_SHARED_BYTES:],
            )
        )
    _refuse_strays(section, covered, section.size)
    return definitions


def _marks(symbols: Iterable[elf.Symbol]) -> Sequence[elf.Symbol]:
    """The symbols that name definitions, in the order of the section."""
    return sorted(
        (
            symbol
            for symbol in symbols
            if symbol.name
            and (
                symbol.kind == elf.STT_OBJECT
                # LLVM before 8; local ones without a type are the compiler's labels.
                or (symbol.kind == elf.STT_NOTYPE and symbol.binding != elf.STB_LOCAL)
            )
        ),
        key=lambda symbol: symbol.value,
    )


def _refuse_strays(section: elf.Section, start: int, end: int) -> None:
    if any(section.data[start:end]):
        raise ObjectError(
            "bytes of a definition that no symbol names",
            place=f"section {section.name}, offset {start:#x}",
        )


def _spec(definition: _Definition, section: elf.Section, btf: b.Btf | None) -> MapSpec:
    kind, key_size, value_size, max_entries, flags = definition.words[:5]
    key_type_id, value_type_id = _annotated(definition.name, key_size, value_size, btf)
    has_node = definition.size == _SAMPLES_BYTES[1] and flags & mapdefs.BPF_F_NUMA_NODE
    spec = MapSpec(
        name=definition.name,
        type=kind,
        key_size=key_size,
        value_size=value_size,
        max_entries=max_entries,
        flags=flags,
        numa_node=definition.words[6] if has_node else None,
        key_type_id=key_type_id,
        value_type_id=value_type_id,
        extra=definition.extra,
    )
    return mapdefs.adapted(spec, f"section {section.name}, map {definition.name}")


def _annotated(name: str, key_size: int, value_size: int, btf: b.Btf | None) -> tuple[int, int]:
    """Type ids of key and value by the struct ____btf_map_NAME, whose members they are.

    0, 0 without one, or when it is about other sizes: then it annotates something else.
    """
    found = btf.find(f"____btf_map_{name}", b.Struct) if btf is not None else None
    if btf is None or found is None or len(found[1].members) < 2:
        return 0, 0
    key, value = (member.type_id for member in found[1].members[:2])
    try:
        sizes = btf.size_of(key), btf.size_of(value)
    except ObjectError:
        return 0, 0
    return (key, value) if sizes == (key_size, value_size) else (0, 0)


def _iproute2_ids(definitions: Sequence[_Definition]) -> dict[int, int | None]:
    """Numbers of the definitions by iproute2's id; None for what several have."""
    ids: dict[int, int | None] = {}
    for number, definition in enumerate(definitions):
        if definition.size == _IPROUTE2_BYTES:
            identity = definition.words[5]
            ids[identity] = None if identity in ids else number
    return ids


def _template(definition: _Definition, position: int, ids: Mapping[int, int | None]) -> int | None:
    """Number of the definition that says what a map of maps, at `position`, holds."""
    if definition.size in _SAMPLES_BYTES:
        # bpf_load.c created maps in their order, so a template comes before.
        number = definition.words[5]
        return number if number < position else None
    if definition.size == _IPROUTE2_BYTES and definition.words[7]:
        return ids.get(definition.words[7])
    return None

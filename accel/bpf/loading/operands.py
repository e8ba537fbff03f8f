"""Operands that only the loader knows: descriptors of the maps that instructions refer to."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from struct import Struct

from accel.bpf.door.syscall import HasFileno
from accel.bpf.format.insn import CALL, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, SIZE, Instruction, encode
from accel.bpf.spec import MapReference

_IMM = Struct("=I")  # the last four bytes of an instruction

# The helper number libbpf puts where a map was not created, plus the map's place.
_POISONED_MAP = 2_001_000_000


def put_maps(
    code: bytearray,
    references: Iterable[MapReference],
    maps: Mapping[str, HasFileno],
    names: list[str],
) -> dict[int, str]:
    """Fill in the descriptors of maps, in instructions of this machine.

    Args:
        names: Of all maps the object defines.

    Returns:
        Why, by index, of each reference to a map that was not created; the verifier
        refuses it unless it cannot be reached.
    """
    poisoned: dict[int, str] = {}
    for reference in references:
        name, at = reference.map, reference.index * SIZE
        map = maps.get(name)
        if map is None:
            poison = Instruction(CALL, 0, 0, 0, _POISONED_MAP + names.index(name))
            code[at : at + 2 * SIZE] = 2 * encode(poison, sys.byteorder)
            poisoned[reference.index] = f"map {name} is referred to, but was not created"
            continue
        # There are hundreds of them: what is known is written, and nothing decoded.
        offset = reference.value_offset
        _put_source(code, at, PSEUDO_MAP_FD if offset is None else PSEUDO_MAP_VALUE)
        _IMM.pack_into(code, at + SIZE - _IMM.size, map.fileno())
        _IMM.pack_into(code, at + 2 * SIZE - _IMM.size, offset or 0)
    return poisoned


def _put_source(code: bytearray, at: int, source: int) -> None:
    """The source register, one half of the second byte; insn.decode() says which."""
    if sys.byteorder == "little":
        code[at + 1] = code[at + 1] & 0x0F | source << 4
    else:
        code[at + 1] = code[at + 1] & 0xF0 | source

"""CO-RE: makes a program compiled against some kernel's types fit another's.

Pure.  The compiler left a relocation at every instruction that depends on a layout;
here each is looked up in the types of the kernel that is to run the program.  The
rules, which types stand for each other and when two answers are one too many, are
those of libbpf's relo_core.c, so that a program means the same under either loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import insn
from accel.bpf.format.byteorder import ByteOrder
from accel.bpf.spec import CoreKind, CoreRelocation, ProgramSpec

_MAX_PATH = 64
_U64 = (1 << 64) - 1
_MAX_OFFSET = (1 << 15) - 1

_TYPE_KINDS = frozenset(
    (
        CoreKind.TYPE_ID_LOCAL,
        CoreKind.TYPE_ID_TARGET,
        CoreKind.TYPE_EXISTS,
        CoreKind.TYPE_SIZE,
        CoreKind.TYPE_MATCHES,
    )
)
_ENUMS = (b.Enum, b.Enum64)
_ENUM_KINDS = frozenset((CoreKind.ENUMVAL_EXISTS, CoreKind.ENUMVAL_VALUE))


class Relocated(NamedTuple):
    """A program for one kernel.

    Attributes:
        poisoned: What the kernel lacks, by index of the instruction that needs it.
            The verifier refuses these instructions, unless they cannot be reached.
    """

    instructions: bytes
    poisoned: Mapping[int, str]


class Searchable(b.Types, Protocol):
    """Types of a kernel, as KernelBtf has them."""

    def candidates(self, name: str, kinds: Iterable[b.Kind[b.Type]] = ..., /) -> Sequence[int]:
        """Ids, ascending, of the types of these classes whose essential name is `name`."""


class Target(NamedTuple):
    """Where the types of a kernel are to be looked for.

    Attributes:
        vmlinux: Those of the kernel proper.
        modules: Called when those have no candidate: the types of each loaded module, whose
            `candidates()` are the module's own.
    """

    vmlinux: Searchable
    modules: Callable[[], Sequence[Searchable]] = tuple


def relocate(
    program: ProgramSpec, btf: b.Btf, kernel: Searchable | Target, byteorder: ByteOrder
) -> Relocated:
    """Apply the CO-RE relocations of a single program; see Relocator."""
    return Relocator(btf, kernel, byteorder).relocate(program)


class _Step(NamedTuple):
    """One step of an access path: a named member of a struct or union, or an element.

    `type_id` is the struct or union; or the element's type, and then `name` is None.
    """

    type_id: int
    number: int
    name: str | None


class _Access:
    """What a relocation speaks of, within one set of types."""

    __slots__ = ("bit_offset", "depth", "root", "steps", "types")

    def __init__(self, types: b.Types, root: int) -> None:
        self.types = types
        self.root = root
        self.steps: list[_Step] = []
        self.bit_offset = 0
        self.depth = 0

    def advance(self) -> None:
        """Count one level, anonymous ones too."""
        self.depth += 1
        if self.depth > _MAX_PATH:
            raise ObjectError(f"access path of more than {_MAX_PATH} levels")

    def words(self) -> str:
        """The access in C, as in "struct sock___old.sk_cgrp_data.val"."""
        words = b.describe(self.types, self.root)
        for position, step in enumerate(self.steps):
            if step.name is not None:
                words += f".{step.name}"
            elif position or step.number:
                words += f"[{step.number}]"
        return words


class _Value(NamedTuple):
    """What a relocation comes to.

    Attributes:
        size, type_id: Of the field whose offset this is; 0 for anything else, or for
            a bit-field.
        exact: The compiler must have come to the same value for its own types.
    """

    number: int
    size: int = 0
    type_id: int = 0
    exact: bool = True


class _Candidate(NamedTuple):
    types: Searchable
    type_id: int


class _Outcome(NamedTuple):
    """What became of a relocation, whatever instruction it is for.

    Attributes:
        old: What the compiler made of it, by its own types.
        new: What the kernel's types make of it; None when the instruction cannot work there.
        types: Those that have `new.type_id`.
    """

    local: _Access
    old: _Value
    new: _Value | None
    types: b.Types


class Relocator:
    """The relocations of all programs of one object, for one kernel.

    One for all, because what is found for one program serves the others, and because no two
    of them should disagree about which of two types of one name is meant.
    """

    def __init__(self, btf: b.Btf, kernel: Searchable | Target, byteorder: ByteOrder) -> None:
        """Relocate nothing yet.

        Args:
            btf: The object's types.
            kernel: The types of the kernel that is to run the programs.
        """
        self._btf = btf
        self._target = kernel if isinstance(kernel, Target) else Target(kernel)
        self._byteorder = byteorder
        self._candidates: dict[int, list[_Candidate]] = {}
        self._outcomes: dict[tuple[int, str, int], _Outcome] = {}

    def relocate(self, program: ProgramSpec) -> Relocated:
        """Apply the program's CO-RE relocations.

        Raises:
            ObjectError: A relocation is malformed, does not fit its instruction, or has
                more than one answer; the message names the field or type.
        """
        code = bytearray(program.instructions)
        poisoned = {}
        for relocation in program.core_relocations:
            try:
                reason = self._apply(code, relocation)
            except ObjectError as e:
                place = f"program {program.name}, instruction {relocation.index}"
                raise ObjectError(str(e), place=place, remedy=e.remedy) from None
            if reason is not None:
                poisoned[relocation.index] = reason
        return Relocated(bytes(code), MappingProxyType(poisoned))

    def _apply(self, code: bytearray, relocation: CoreRelocation) -> str | None:
        """Patch one instruction.  Returns why it was poisoned, or None."""
        if not 0 <= relocation.index < len(code) // insn.SIZE:
            raise ObjectError("CO-RE relocation outside the program")
        key = relocation.type_id, relocation.access, int(relocation.kind)
        outcome = self._outcomes.get(key)
        if outcome is None:
            # Again the same would be found: what this one prunes no longer counts for anyone.
            outcome = self._outcomes[key] = self._resolve(relocation)
        if outcome.new is None:
            self._poison(code, relocation.index)
            return _missing(relocation.kind, outcome.local)
        return self._patch(code, relocation.index, outcome, outcome.new)

    def _resolve(self, relocation: CoreRelocation) -> _Outcome:
        local = _parse(self._btf, relocation)
        if relocation.kind is CoreKind.TYPE_ID_LOCAL:
            # The linker may have renumbered types since.
            value = _Value(relocation.type_id, exact=False)
            return _Outcome(local, value, value, self._btf)
        root = self._btf.type(relocation.type_id)
        if not root.name or isinstance(root, b.Void):
            raise ObjectError(f"{local.words()}: an anonymous type cannot be looked up")
        old = self._evaluate(relocation.kind, local)
        matching: list[_Candidate] = []
        found: tuple[_Access, _Value] | None = None
        for candidate in self._candidates_of(relocation.type_id):
            target = _match(local, candidate.types, candidate.type_id, relocation.kind)
            if target is None:
                continue
            value = self._evaluate(relocation.kind, target)
            if found is None:
                found = target, value
            else:
                _refuse_ambiguity(local, found, (target, value))
            matching.append(candidate)
        if found is None:
            absent = self._evaluate_absent(relocation.kind)
            return _Outcome(local, old, absent, self._target.vmlinux)
        # Later relocations through this type look at the same ones only, so that the object
        # does not mix the layouts of two types of one name.
        self._candidates[relocation.type_id] = matching
        return _Outcome(local, old, found[1], found[0].types)

    def _candidates_of(self, type_id: int) -> list[_Candidate]:
        candidates = self._candidates.get(type_id)
        if candidates is None:
            local = self._btf.type(type_id)
            candidates = _named_alike(local, [self._target.vmlinux])
            if not candidates:
                candidates = _named_alike(local, self._target.modules())
            self._candidates[type_id] = candidates
        return candidates

    @staticmethod
    def _evaluate_absent(kind: CoreKind) -> _Value | None:
        """The value where the kernel has no such thing; None for "cannot work"."""
        if kind in _TYPE_KINDS or kind in (CoreKind.FIELD_EXISTS, CoreKind.ENUMVAL_EXISTS):
            return _Value(0)
        return None

    def _evaluate(self, kind: CoreKind, access: _Access) -> _Value:
        types = access.types
        match kind:
            case CoreKind.FIELD_EXISTS | CoreKind.TYPE_EXISTS | CoreKind.TYPE_MATCHES:
                return _Value(1)
            case CoreKind.ENUMVAL_EXISTS:
                return _Value(1)
            case CoreKind.TYPE_ID_TARGET:
                return _Value(access.root, exact=False)
            case CoreKind.TYPE_SIZE:
                return _Value(b.size_of(types, access.root))
            case CoreKind.ENUMVAL_VALUE:
                step = access.steps[0]
                found = types.type(step.type_id)
                if isinstance(found, b.Enum):
                    # 32 bits are signed whatever the enum says, as in libbpf.
                    return _Value(insn.to_signed32(found.enumerators[step.number].value) & _U64)
                assert isinstance(found, b.Enum64)
                return _Value(found.enumerators[step.number].value & _U64)
            case _:
                return self._evaluate_field(kind, access)

    def _evaluate_field(self, kind: CoreKind, access: _Access) -> _Value:
        types, step = access.types, access.steps[-1]
        if step.name is None:
            size = b.size_of(types, step.type_id)
            if kind is CoreKind.FIELD_BYTE_OFFSET:
                return _Value(access.bit_offset // 8, size, step.type_id)
            if kind is CoreKind.FIELD_BYTE_SIZE:
                return _Value(size)
            raise ObjectError(f"{access.words()}: {kind.name} of an array element")
        parent = types.type(step.type_id)
        assert isinstance(parent, b.Struct | b.Union)
        member = parent.members[step.number]
        type_id, found = b.resolve(types, member.type_id)
        bits = member.bit_size
        if kind is CoreKind.FIELD_SIGNED:
            return _Value(int(isinstance(found, b.Int | b.Enum | b.Enum64) and found.signed))
        if bits:
            at, size = _bitfield_access(access, found, bits)
        else:
            size = b.size_of(types, type_id)
            at, bits = access.bit_offset // 8, size * 8
        # For a bit-field the compiler may read by other bytes than we would.
        exact = not member.bit_size
        if kind is CoreKind.FIELD_BYTE_OFFSET:
            return _Value(at, size, type_id) if exact else _Value(at, exact=False)
        if kind is CoreKind.FIELD_BYTE_SIZE:
            return _Value(size, exact=exact)
        if kind is CoreKind.FIELD_RSHIFT_U64:
            return _Value(64 - bits)
        within = access.bit_offset - at * 8
        if self._byteorder == "little":
            return _Value((64 - (within + bits)) & _U64, exact=exact)
        return _Value(((8 - size) * 8 + within) & _U64, exact=exact)

    def _patch(self, code: bytearray, index: int, outcome: _Outcome, new: _Value) -> str | None:
        local, old = outcome.local, outcome.old
        instruction = insn.decode(code, self._byteorder, index)
        match instruction.klass:
            case insn.CLASS_ALU | insn.CLASS_ALU64 if not instruction.code & insn.SOURCE_REGISTER:
                self._expect(old, instruction.imm, instruction, local)
                self._put(code, index, instruction._replace(imm=insn.to_signed32(new.number)))
            case insn.CLASS_LDX | insn.CLASS_ST | insn.CLASS_STX:
                self._expect(old, instruction.off, instruction, local)
                return self._patch_access(code, index, instruction, outcome, new)
            case insn.CLASS_LD if instruction.code == insn.LD_IMM64 and not instruction.src:
                self._patch_load(code, index, instruction, old, new, local)
            case _:
                raise ObjectError(f"{local.words()}: {instruction} cannot be relocated")
        return None

    def _expect(
        self, old: _Value, number: int, instruction: insn.Instruction, local: _Access
    ) -> None:
        if old.exact and number & _U64 != old.number:
            raise ObjectError(
                f"{local.words()}: {instruction} has {number}, but its own types say {old.number}"
            )

    def _patch_access(
        self,
        code: bytearray,
        index: int,
        instruction: insn.Instruction,
        outcome: _Outcome,
        new: _Value,
    ) -> str | None:
        local, old = outcome.local, outcome.old
        if new.number > _MAX_OFFSET:
            raise ObjectError(f"{local.words()} is at byte {new.number}, too far for {instruction}")
        if old.size != new.size:
            if not self._can_resize(old, new, outcome.types):
                self._poison(code, index)
                return f"{local.words()} has {new.size} bytes in this kernel, not {old.size}"
            if instruction.access_size != old.size or new.size not in insn.SIZE_CODES:
                raise ObjectError(
                    f"{local.words()}: {instruction} cannot go from {old.size} to {new.size} bytes"
                )
            resized = instruction.code & ~0x18 | insn.SIZE_CODES[new.size]
            instruction = instruction._replace(code=resized)
        self._put(code, index, instruction._replace(off=new.number))
        return None

    def _can_resize(self, old: _Value, new: _Value, types: b.Types) -> bool:
        """Whether reading the field with its new size gives the same number.

        It does for pointers and unsigned integers, because loads extend by zeroes.
        """
        was, now = self._btf.type(old.type_id), types.type(new.type_id)
        if isinstance(was, b.Int) and isinstance(now, b.Int):
            return not _is_plain_signed(was) and not _is_plain_signed(now)
        return isinstance(was, b.Ptr) and isinstance(now, b.Ptr)

    def _patch_load(
        self,
        code: bytearray,
        index: int,
        instruction: insn.Instruction,
        old: _Value,
        new: _Value,
        local: _Access,
    ) -> None:
        if (index + 2) * insn.SIZE > len(code):
            raise ObjectError(f"{local.words()}: {instruction} is cut short")
        second = insn.decode(code, self._byteorder, index + 1)
        if second[:4] != (0, 0, 0, 0):
            raise ObjectError(f"{local.words()}: {instruction} has an unexpected second half")
        number = instruction.imm & 0xFFFFFFFF | (second.imm & 0xFFFFFFFF) << 32
        self._expect(old, number, instruction, local)
        low, high = insn.to_signed32(new.number), insn.to_signed32(new.number >> 32)
        self._put(code, index, instruction._replace(imm=low))
        self._put(code, index + 1, second._replace(imm=high))

    def _poison(self, code: bytearray, index: int) -> None:
        poison = insn.Instruction(insn.CALL, 0, 0, 0, insn.POISON)
        if insn.decode(code, self._byteorder, index).code == insn.LD_IMM64:
            if (index + 2) * insn.SIZE > len(code):
                raise ObjectError("the last instruction is cut short")
            self._put(code, index + 1, poison)
        self._put(code, index, poison)

    def _put(self, code: bytearray, index: int, instruction: insn.Instruction) -> None:
        start = index * insn.SIZE
        code[start : start + insn.SIZE] = insn.encode(instruction, self._byteorder)


def _is_plain_signed(found: b.Int) -> bool:
    # libbpf compares the whole encoding: signed characters pass.
    return found.signed and not found.is_char and not found.is_bool


def _named_alike(local: b.Type, sources: Iterable[Searchable]) -> list[_Candidate]:
    """The types of the same class and essential name, in the order of their ids."""
    name = b.essential_name(local.name)
    kinds = _ENUMS if isinstance(local, _ENUMS) else (local.__class__,)
    return [
        _Candidate(types, type_id) for types in sources for type_id in types.candidates(name, kinds)
    ]


def _missing(kind: CoreKind, local: _Access) -> str:
    if kind in _ENUM_KINDS:
        kind_of_type = b.describe(local.types, local.root)
        return f"{kind_of_type} has no {local.steps[0].name} in this kernel"
    return f"this kernel has no {local.words()}"


def _refuse_ambiguity(
    local: _Access, first: tuple[_Access, _Value], second: tuple[_Access, _Value]
) -> None:
    (one, value), (other, other_value) = first, second
    if one.bit_offset != other.bit_offset or value.number != other_value.number:
        raise ObjectError(
            f"{local.words()} is ambiguous: types {one.root} and {other.root} of the kernel both "
            f"match, at bits {one.bit_offset} and {other.bit_offset}, with values {value.number} "
            f"and {other_value.number}"
        )


def _parse(types: b.Btf, relocation: CoreRelocation) -> _Access:
    """The relocation's access string, checked against the object's types."""
    access = _Access(types, relocation.type_id)
    indexes = _indexes(relocation.access)
    if relocation.kind in _TYPE_KINDS:
        if indexes != [0]:
            raise ObjectError(f"access {relocation.access!r} to a whole type")
        return access
    type_id, found = types.resolve(relocation.type_id)
    first = indexes[0]
    if relocation.kind in _ENUM_KINDS:
        if not isinstance(found, b.Enum | b.Enum64) or len(indexes) > 1:
            raise ObjectError(f"{access.words()} is no enum, or accessed by more than a value")
        if first >= len(found.enumerators):
            raise ObjectError(f"{access.words()} has no value number {first}")
        access.steps.append(_Step(type_id, first, found.enumerators[first].name))
        return access
    access.steps.append(_Step(type_id, first, None))
    access.bit_offset = first * types.size_of(type_id) * 8
    for index in indexes[1:]:
        type_id = _step_into(access, type_id, index)
    return access


def _indexes(text: str) -> list[int]:
    parts = text.split(":")
    if len(parts) > _MAX_PATH or not all(part.isascii() and part.isdigit() for part in parts):
        raise ObjectError(f"malformed access {text!r}: no path of at most {_MAX_PATH} numbers")
    numbers = [int(part[:20]) for part in parts]
    if any(number >= 1 << 31 for number in numbers):
        raise ObjectError(f"malformed access {text!r}: a number of more than 31 bits")
    return numbers


def _step_into(access: _Access, type_id: int, index: int) -> int:
    """Follow one number of an access string; returns the type it leads to."""
    type_id, found = b.resolve(access.types, type_id)
    if isinstance(found, b.Struct | b.Union):
        if index >= len(found.members):
            raise ObjectError(f"{access.words()} has no member number {index}")
        member = found.members[index]
        access.bit_offset += member.bit_offset
        if member.name:
            access.steps.append(_Step(type_id, index, member.name))
        return member.type_id
    if isinstance(found, b.Array):
        _check_element(access, found, index)
        return _enter_element(access, found, index)
    raise ObjectError(f"{access.words()} has no parts")


def _check_element(access: _Access, array: b.Array, index: int) -> None:
    if index >= array.count and not _is_flexible(access, array):
        raise ObjectError(f"{access.words()} has no element {index}")


def _enter_element(access: _Access, array: b.Array, index: int) -> int:
    type_id, _ = b.resolve(access.types, array.element)
    access.steps.append(_Step(type_id, index, None))
    access.bit_offset += index * b.size_of(access.types, type_id) * 8
    return type_id


def _is_flexible(access: _Access, array: b.Array) -> bool:
    """Whether the array that `access` leads to may have any number of elements."""
    step = access.steps[-1]
    if step.name is None or array.count:
        return False
    parent = access.types.type(step.type_id)
    return isinstance(parent, b.Struct | b.Union) and step.number == len(parent.members) - 1


def _match(local: _Access, types: b.Types, candidate: int, kind: CoreKind) -> _Access | None:
    """The access that is to the kernel's type what `local` is to the object's."""
    target = _Access(types, candidate)
    if kind is CoreKind.TYPE_MATCHES:
        matches = _types_match(local.types, local.root, types, candidate, False, b.MAX_DEPTH)
        return target if matches else None
    if kind in _TYPE_KINDS:
        matches = types_are_compatible(local.types, local.root, types, candidate)
        return target if matches else None
    if kind in _ENUM_KINDS:
        return target if _match_enumerator(local.steps[0], target) else None
    type_id = candidate
    for position, step in enumerate(local.steps):
        type_id, found = b.resolve(types, type_id)
        if step.name is not None:
            member = _match_member(local, step, target, type_id)
            if member is None:
                return None
            type_id = member
            continue
        target.advance()
        if position == 0:
            target.steps.append(_Step(type_id, step.number, None))
            target.bit_offset += step.number * b.size_of(types, type_id) * 8
        else:
            if not isinstance(found, b.Array):
                return None
            if step.number >= found.count and not _is_flexible(target, found):
                return None
            type_id = _enter_element(target, found, step.number)
    return target


def _match_enumerator(local: _Step, target: _Access) -> bool:
    assert local.name is not None
    type_id, found = b.resolve(target.types, target.root)
    if not isinstance(found, b.Enum | b.Enum64):
        return False
    wanted = b.essential_name(local.name)
    for index, enumerator in enumerate(found.enumerators):
        if b.essential_name(enumerator.name) == wanted:
            target.steps.append(_Step(type_id, index, enumerator.name))
            return True
    return False


def _match_member(local: _Access, step: _Step, target: _Access, type_id: int) -> int | None:
    """Find the member of that name, in anonymous members too; returns its type."""
    type_id, found = b.resolve(target.types, type_id)
    if not isinstance(found, b.Struct | b.Union):
        return None
    for index, member in enumerate(found.members):
        if member.name and member.name != step.name:
            continue
        depth, bit_offset = target.depth, target.bit_offset
        target.advance()
        target.bit_offset += member.bit_offset
        if member.name:
            parent = local.types.type(step.type_id)
            assert isinstance(parent, b.Struct | b.Union)
            local_type = parent.members[step.number].type_id
            if not fields_are_compatible(local.types, local_type, target.types, member.type_id):
                return None
            target.steps.append(_Step(type_id, index, member.name))
            return member.type_id
        inner = _match_member(local, step, target, member.type_id)
        if inner is not None:
            return inner
        target.depth, target.bit_offset = depth, bit_offset
    return None


def _bitfield_access(access: _Access, found: b.Type, bits: int) -> tuple[int, int]:
    """Byte offset and size of the smallest aligned integer that holds the bit-field."""
    if not isinstance(found, b.Int | b.Enum | b.Enum64) or found.size not in (1, 2, 4, 8):
        raise ObjectError(f"{access.words()} is a bit-field, but no integer")
    size = found.size
    while True:
        at = access.bit_offset // 8 // size * size
        if access.bit_offset + bits <= (at + size) * 8:
            return at, size
        if size == 8:
            raise ObjectError(f"{access.words()} is in no aligned 8 bytes")
        size *= 2


def _too_deep(types: b.Types, type_id: int) -> ObjectError:
    return ObjectError(
        f"{b.describe(types, type_id)} nests more than {b.MAX_DEPTH} deep, or in a circle",
        place=f"BTF type {type_id}",
    )


def _same_kind(one: b.Type, other: b.Type) -> bool:
    if isinstance(one, b.Enum | b.Enum64):
        return isinstance(other, b.Enum | b.Enum64)
    return one.__class__ is other.__class__


def fields_are_compatible(
    local_types: b.Types, local_id: int, types: b.Types, type_id: int
) -> bool:
    """Whether a field of one type may be read as the other; sizes may differ."""
    for _ in range(b.MAX_DEPTH):
        _, local = b.resolve(local_types, local_id)
        _, found = b.resolve(types, type_id)
        composites = b.Struct | b.Union
        if isinstance(local, composites) and isinstance(found, composites):
            return True
        if not _same_kind(local, found):
            return False
        match local, found:
            case b.Array(), b.Array():
                local_id, type_id = local.element, found.element
                continue
            case b.Int(), b.Int():
                return local.bit_offset == 0 == found.bit_offset
            case ((b.Fwd() | b.Enum() | b.Enum64()), _):
                names = b.essential_name(local.name), b.essential_name(found.name)
                return not all(names) or names[0] == names[1]
        return isinstance(local, b.Ptr | b.Float)
    raise _too_deep(local_types, local_id)


def types_are_compatible(
    local_types: b.Types,
    local_id: int,
    types: b.Types,
    type_id: int,
    level: int = b.MAX_DEPTH,
) -> bool:
    """Whether the types are of the same make, by kind; names were compared before."""
    if not _same_kind(local_types.type(local_id), types.type(type_id)):
        return False
    for _ in range(b.MAX_DEPTH):
        _, local = b.resolve(local_types, local_id)
        _, found = b.resolve(types, type_id)
        if not _same_kind(local, found):
            return False
        match local, found:
            case b.Ptr(), b.Ptr():
                local_id, type_id = local.target, found.target
            case b.Array(), b.Array():
                local_id, type_id = local.element, found.element
            case b.Int(), b.Int():
                return local.bit_offset == 0 == found.bit_offset
            case b.FuncProto(), b.FuncProto():
                if len(local.parameters) != len(found.parameters):
                    return False
                for ours, theirs in zip(local.parameters, found.parameters, strict=True):
                    if level <= 0:
                        raise _too_deep(local_types, local_id)
                    one, _ = b.resolve(local_types, ours.type_id)
                    other, _ = b.resolve(types, theirs.type_id)
                    if not types_are_compatible(local_types, one, types, other, level - 1):
                        return False
                local_id, type_id = local.result, found.result
            case ((b.Void() | b.Struct() | b.Union() | b.Enum() | b.Enum64() | b.Fwd()), _):
                return True
            case _:
                return False
    raise _too_deep(local_types, local_id)


def _types_match(
    local_types: b.Types,
    local_id: int,
    types: b.Types,
    type_id: int,
    behind_pointer: bool,
    level: int,
) -> bool:
    """Whether every part of the local type is there in the other, under its name."""
    if level <= 0:
        raise _too_deep(local_types, local_id)
    for _ in range(b.MAX_DEPTH):
        _, local = b.resolve(local_types, local_id)
        _, found = b.resolve(types, type_id)
        if b.essential_name(local.name) != b.essential_name(found.name):
            return False
        match local, found:
            case b.Ptr(), b.Ptr():
                behind_pointer = True
                local_id, type_id = local.target, found.target
            case b.Array(), b.Array():
                if local.count != found.count:
                    return False
                local_id, type_id = local.element, found.element
            case b.FuncProto(), b.FuncProto():
                if len(local.parameters) != len(found.parameters):
                    return False
                for ours, theirs in zip(local.parameters, found.parameters, strict=True):
                    if not _types_match(
                        local_types,
                        ours.type_id,
                        types,
                        theirs.type_id,
                        behind_pointer,
                        level - 1,
                    ):
                        return False
                local_id, type_id = local.result, found.result
            case ((b.Struct() | b.Union()), _) if not behind_pointer:
                return _composites_match(local_types, local, types, found, level)
            case _:
                return _leaves_match(local, found, behind_pointer)
    raise _too_deep(local_types, local_id)


def _leaves_match(local: b.Type, found: b.Type, behind_pointer: bool) -> bool:
    match local, found:
        case b.Void(), b.Void():
            return True
        case b.Int(), b.Int():
            return local.size == found.size and local.signed == found.signed
        case ((b.Enum() | b.Enum64()), (b.Enum() | b.Enum64())):
            if local.size != found.size or len(local.enumerators) > len(found.enumerators):
                return False
            theirs = {b.essential_name(e.name) for e in found.enumerators}
            return all(b.essential_name(e.name) in theirs for e in local.enumerators)
        case ((b.Struct() | b.Union() | b.Fwd()), (b.Struct() | b.Union() | b.Fwd())):
            if not behind_pointer and not (isinstance(local, b.Fwd) and isinstance(found, b.Fwd)):
                return False
            # A forward declaration stands for the struct or union of its name.
            return _is_union(local) == _is_union(found)
    return False


def _is_union(found: b.Struct | b.Union | b.Fwd) -> bool:
    return found.is_union if isinstance(found, b.Fwd) else isinstance(found, b.Union)


def _composites_match(
    local_types: b.Types,
    local: b.Struct | b.Union,
    types: b.Types,
    found: b.Type,
    level: int,
) -> bool:
    if not isinstance(found, b.Struct | b.Union) or local.__class__ is not found.__class__:
        return False
    by_name: dict[str, Sequence[b.Member]] = {}
    for member in found.members:
        name = b.essential_name(member.name)
        by_name[name] = (*by_name.get(name, ()), member)
    return len(local.members) <= len(found.members) and all(
        any(
            _types_match(local_types, ours.type_id, types, theirs.type_id, False, level - 1)
            for theirs in by_name.get(b.essential_name(ours.name), ())
        )
        for ours in local.members
    )

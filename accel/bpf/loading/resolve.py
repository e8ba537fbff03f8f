"""Externs: what an object refers to by name, found in the running kernel.

A setting of the kernel's build becomes bytes of the map ".kconfig"; an address, a variable
or a function becomes operands of the instructions that refer to it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from accel.bpf.door.fd import Fd
from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import insn
from accel.bpf.loading import kconfig
from accel.bpf.loading.kernel import Kernel, Located
from accel.bpf.loading.kernel_btf import KernelBtf
from accel.bpf.loading.relocate import types_are_compatible
from accel.bpf.spec import ExternKind, ExternReference, ExternSpec, ObjectSpec, ProgramSpec

KCONFIG_MAP = ".kconfig"

# The helper number libbpf puts where a kfunc is missing, plus the extern's place in its list.
_POISONED_KFUNC = 2_002_000_000

_WITHOUT = "run a kernel that has it, or declare it __weak to do without"

# An instruction says with 16 bits, signed, which descriptor of the fd_array it means.
_MAX_FDS = 1 << 15


class Resolved(NamedTuple):
    """What the kernel made of an object's externs.

    Attributes:
        kconfig: The value of the map ".kconfig"; None without that map.
        addresses: Of each symbol; weak ones it lacks are at 0.
        types: Of each variable and function that it has.
        fd_array: What instructions call modules' functions by; the first is not used,
            since 0 stands for vmlinux.
        missing: Why each weak variable and function is not there.
    """

    kconfig: bytes | None = None
    addresses: Mapping[str, int] = MappingProxyType({})
    types: Mapping[str, Located] = MappingProxyType({})
    fd_array: tuple[Fd, ...] = ()
    missing: Mapping[str, str] = MappingProxyType({})


NOTHING = Resolved()


class _Finding(NamedTuple):
    """A variable or function in the kernel, or why it is not what the object means.

    Attributes:
        refused: Not even a weak extern may be that.
    """

    located: Located | None
    reason: str
    refused: bool = False


def resolve(spec: ObjectSpec, programs: Iterable[ProgramSpec], kernel: Kernel) -> Resolved:
    """Find what these programs refer to, and every setting.

    Raises:
        ObjectError: The kernel lacks some of it, all of them named.
    """
    if not spec.externs:
        return NOTHING
    wanted = {
        name: spec.externs[name]
        for name in dict.fromkeys(
            reference.extern for program in programs for reference in program.extern_references
        )
    }
    addresses = _addresses(wanted.values(), kernel)
    findings = {
        extern.name: _find(spec, extern, kernel)
        for extern in wanted.values()
        if extern.kind in (ExternKind.VARIABLE, ExternKind.FUNCTION)
    }
    _refuse_missing(spec, wanted.values(), addresses, findings)
    types = {name: found.located for name, found in findings.items() if found.located is not None}
    modules = dict.fromkeys(located.module for located in types.values() if located.module)
    fds = tuple(modules)
    if len(fds) >= _MAX_FDS:
        raise ObjectError(f"{spec.name} calls functions of {len(fds)} modules at once")
    return Resolved(
        kconfig=_settings(spec, kernel),
        addresses=addresses,
        types=types,
        fd_array=fds[:1] + fds,
        missing={name: found.reason for name, found in findings.items() if not found.located},
    )


def with_settings(spec: ObjectSpec, resolved: Resolved) -> ObjectSpec:
    """A copy whose map ".kconfig" holds the kernel's settings."""
    if resolved.kconfig is None:
        return spec
    old = spec.maps[KCONFIG_MAP]
    contents = resolved.kconfig.ljust(old.value_size, b"\0")
    return replace(spec, maps={**spec.maps, KCONFIG_MAP: replace(old, contents=contents)})


def patch(
    code: bytearray,
    references: Collection[ExternReference],
    externs: Mapping[str, ExternSpec],
    resolved: Resolved,
) -> dict[int, str]:
    """Fill in the operands of the instructions that refer to externs.

    Returns:
        Why, by index, of each call that cannot be made; the verifier refuses it unless it
        cannot be reached.
    """
    poisoned: dict[int, str] = {}
    for reference in references:
        name, index = reference.extern, reference.index
        instruction = insn.decode(code, sys.byteorder, index)
        located = resolved.types.get(name)
        if instruction.code != insn.CALL:
            _patch_load(code, index, instruction, resolved.addresses.get(name, 0), located)
        elif located is None:
            number = _POISONED_KFUNC + _listed(externs).index(name)
            _put(code, index, insn.Instruction(insn.CALL, 0, 0, 0, number))
            poisoned[index] = resolved.missing.get(name, f"this kernel has no function {name}")
        else:
            _put(
                code,
                index,
                instruction._replace(
                    src=insn.PSEUDO_KFUNC_CALL,
                    off=resolved.fd_array.index(located.module, 1) if located.module else 0,
                    imm=located.type_id,
                ),
            )
    return poisoned


def _listed(externs: Mapping[str, ExternSpec]) -> list[str]:
    """Names in libbpf's order, cmp_externs(): settings as they lie in their map, then by name."""
    return sorted(
        externs,
        key=lambda name: (
            externs[name].kind is not ExternKind.KCONFIG,
            externs[name].offset,
            name,
        ),
    )


def _patch_load(
    code: bytearray, index: int, first: insn.Instruction, address: int, located: Located | None
) -> None:
    """A 16-byte load: of an address as it is, or of what the kernel knows the type of."""
    second = insn.decode(code, sys.byteorder, index + 1)
    if located is None:
        low, high = insn.to_signed32(address), insn.to_signed32(address >> 32)
        source = 0
    else:
        low = located.type_id
        high = located.module.fileno() if located.module else 0
        source = insn.PSEUDO_BTF_ID
    _put(code, index, first._replace(src=source, imm=low))
    _put(code, index + 1, second._replace(imm=high))


def _put(code: bytearray, index: int, instruction: insn.Instruction) -> None:
    start = index * insn.SIZE
    code[start : start + insn.SIZE] = insn.encode(instruction, sys.byteorder)


# --- finding -----------------------------------------------------------------------------------


def _addresses(externs: Iterable[ExternSpec], kernel: Kernel) -> dict[str, int]:
    names = [extern.name for extern in externs if extern.kind is ExternKind.SYMBOL]
    return dict(kernel.addresses(names)) if names else {}


def _find(spec: ObjectSpec, extern: ExternSpec, kernel: Kernel) -> _Finding:
    """The variable or function by its name, if it is what the object believes it to be."""
    is_function = extern.kind is ExternKind.FUNCTION
    kind: type[b.Type] = b.Func if is_function else b.Var
    # libbpf lets functions have flavours, bpf_thing___v2, to declare them in several ways.
    name = b.essential_name(extern.name) if is_function else extern.name
    located = kernel.locate(name, kind)
    what = "function" if is_function else "variable"
    if located is None:
        return _Finding(None, f"this kernel has no {what} {name}")
    assert spec.btf is not None
    types = types_of(kernel, located)
    ours = _type_of(spec.btf, extern.type_id)
    theirs = _type_of(types, located.type_id)
    if types_are_compatible(spec.btf, ours, types, theirs):
        return _Finding(located, "")
    difference = (
        "has another prototype in this kernel"
        if is_function
        else f"is {b.describe(types, theirs)} in this kernel, not {b.describe(spec.btf, ours)}"
    )
    # libbpf takes a weak function of another prototype for a missing one, but no variable.
    return _Finding(None, f"{what} {name} {difference}", refused=not is_function)


def types_of(kernel: Kernel, located: Located) -> KernelBtf:
    """The types that a located one is among."""
    if located.module is None:
        return kernel.types
    return next(module.types for module in kernel.modules() if module.fd is located.module)


def _type_of(types: b.Types, type_id: int) -> int:
    """The type of a variable, or a function's prototype."""
    found = types.type(type_id)
    if isinstance(found, b.Func):
        return found.proto
    return b.resolve(types, found.target if isinstance(found, b.Var) else type_id)[0]


def _refuse_missing(
    spec: ObjectSpec,
    externs: Iterable[ExternSpec],
    addresses: Mapping[str, int],
    findings: Mapping[str, _Finding],
) -> None:
    reasons = []
    remedy = "declare it as this kernel has it"
    for extern in externs:
        finding = findings.get(extern.name)
        if finding is not None and finding.refused:
            reasons.append(finding.reason)
        elif extern.weak:
            continue
        elif extern.kind is ExternKind.SYMBOL and extern.name not in addresses:
            reasons.append(f"this kernel has no symbol {extern.name}")
            remedy = _WITHOUT
        elif finding is not None and finding.located is None:
            reasons.append(finding.reason)
            remedy = _WITHOUT
    if reasons:
        raise ObjectError(f"{spec.name}: {'; '.join(reasons)}", remedy=remedy)


def _settings(spec: ObjectSpec, kernel: Kernel) -> bytes | None:
    if KCONFIG_MAP not in spec.maps or spec.btf is None:
        return None
    settings = [e for e in spec.externs.values() if e.kind is ExternKind.KCONFIG]
    return kconfig.contents(
        spec.btf, settings, kernel.setting, is_told=lambda: kernel.config_text is not None
    )

"""Externs: what an object wants of the kernel by name.

Pure.  Symbols without a section are externs; the BTF sections they are in say of what
kind: `.kconfig` for settings of the kernel's build, `.ksyms` for its symbols and
functions (`__kconfig` and `__ksym` in libbpf's bpf_helpers.h).  Settings become values of
one map, which instructions refer to as they do to any other; the rest is referred to by
name.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import elf
from accel.bpf.kinds import MapType
from accel.bpf.spec import ExternKind, ExternSpec, MapSpec

# include/uapi/linux/bpf.h: programs may not write the map.
BPF_F_RDONLY_PROG = 1 << 7

_MAX_DEPTH = 32
# A few bytes of BTF can ask for any number.
_MAX_SETTINGS = 1 << 16


class Setting(NamedTuple):
    """Where in the map ".kconfig" a variable is."""

    type_id: int
    offset: int
    size: int


class Externs:
    """The externs of one object.

    Args:
        btf: As the compiler wrote it, before Btf.placed().

    Raises:
        ObjectError: A setting of the kernel is of a type that settings cannot have.
    """

    def __init__(self, object_file: elf.Elf, btf: b.Btf | None) -> None:
        self._btf = btf
        self._symbols = {
            symbol.name: symbol
            for symbol in object_file.symbols
            if symbol.section == elf.SHN_UNDEF and symbol.binding != elf.STB_LOCAL and symbol.name
        }
        self._settings = {} if btf is None else _lay_out(btf)
        self._kernel_symbols = {} if btf is None else _kernel_symbols(btf)
        self._used: dict[str, ExternSpec] = {}

    @property
    def described(self) -> bool:
        """Whether BTF says of any what it is."""
        return bool(self._settings or self._kernel_symbols)

    @property
    def offsets(self) -> dict[str, int]:
        """Of each setting, in the map ".kconfig"."""
        return {name: setting.offset for name, setting in self._settings.items()}

    @property
    def used(self) -> Mapping[str, ExternSpec]:
        """Those that `use()` was asked for; nobody needs the others."""
        return self._used

    def map(self) -> MapSpec | None:
        """The map of the settings, None without any; load() fills in their values."""
        section = None if self._btf is None else self._btf.find(b.KERNEL_SETTINGS, b.Datasec)
        if section is None or not self._settings:
            return None
        size = max(setting.offset + setting.size for setting in self._settings.values())
        return MapSpec(
            name=b.KERNEL_SETTINGS,
            type=MapType.ARRAY,
            key_size=4,
            value_size=size,
            max_entries=1,
            flags=BPF_F_RDONLY_PROG,
            value_type_id=section[0],
            contents=bytes(size),
            frozen=True,
        )

    def use(self, name: str, *, called: bool) -> ExternSpec:
        """The extern of that name, which an instruction calls or takes the address of.

        Raises:
            ObjectError: It is no extern, or cannot be one of the kernel's.
        """
        used = self._used.get(name)
        known = name in self._settings or name in self._kernel_symbols
        # Of what nothing is known, a call says most.
        is_news = called and not known and used is not None and used.kind != ExternKind.FUNCTION
        if used is None or is_news:
            used = self._used[name] = self._describe(name, called=called)
        return used

    def _describe(self, name: str, *, called: bool) -> ExternSpec:
        if name not in self._symbols:
            raise ObjectError(f"{name or 'a symbol without name'!r} is defined nowhere")
        weak = self._symbols[name].binding == elf.STB_WEAK
        setting = self._settings.get(name)
        if setting is not None:
            return ExternSpec(
                name, ExternKind.KCONFIG, setting.type_id, weak, setting.offset, setting.size
            )
        if name in self._kernel_symbols:
            kind, type_id = self._kernel_symbols[name]
            return ExternSpec(name, kind, type_id, weak)
        if name in self._declared:
            raise ObjectError(
                f"{name} is declared, but neither here nor as part of the kernel",
                remedy="link the object that defines it (bpftool gen object), or declare it "
                "__ksym or __kconfig",
            )
        # GCC and old compilers do not describe externs: what is called is a function, and of
        # anything else only an address can be wanted.
        if called:
            return ExternSpec(name, ExternKind.FUNCTION, self._functions.get(name, 0), weak)
        return ExternSpec(name, ExternKind.SYMBOL, 0, weak)

    @cached_property
    def _declared(self) -> Container[str]:
        """Names of variables."""
        return {found.name for _, found in self._types() if isinstance(found, b.Var)}

    @cached_property
    def _functions(self) -> Mapping[str, int]:
        """The first function of each name."""
        found: dict[str, int] = {}
        for type_id, function in self._types():
            if isinstance(function, b.Func):
                found.setdefault(function.name, type_id)
        return found

    def _types(self) -> Iterator[tuple[int, b.Type]]:
        if self._btf is not None:
            for type_id in range(1, len(self._btf)):
                yield type_id, self._btf.type(type_id)


def _kernel_symbols(btf: b.Btf) -> dict[str, tuple[ExternKind, int]]:
    """Kind and type of what is declared __ksym."""
    symbols: dict[str, tuple[ExternKind, int]] = {}
    section = btf.find(b.KERNEL_SYMBOLS, b.Datasec)
    for entry in () if section is None else section[1].variables:
        found = btf.type(entry.type_id)
        if isinstance(found, b.Func):
            symbols[found.name] = (ExternKind.FUNCTION, entry.type_id)
        elif isinstance(found, b.Var):
            type_id, target = btf.resolve(found.target)
            # `extern const void x __ksym` wants an address of no known type.
            untyped = isinstance(target, b.Void)
            kind = ExternKind.SYMBOL if untyped else ExternKind.VARIABLE
            symbols[found.name] = (kind, 0 if untyped else type_id)
    return symbols


def _lay_out(btf: b.Btf) -> dict[str, Setting]:
    """Places of the settings, largest alignment first, as libbpf does it."""
    variables: list[tuple[int, int, str, int]] = []
    section = btf.find(b.KERNEL_SETTINGS, b.Datasec)
    place = f"BTF section {b.KERNEL_SETTINGS}"
    for entry in () if section is None else section[1].variables:
        variable = btf.type(entry.type_id)
        if not isinstance(variable, b.Var):
            raise ObjectError(f"{btf.describe(entry.type_id)} is no variable", place=place)
        size = btf.size_of(variable.target)
        if not size:
            raise ObjectError("has no size", place=f"{place}, variable {variable.name}")
        variables.append((_alignment(btf, variable), size, variable.name, variable.target))
    variables.sort(key=lambda variable: (-variable[0], variable[1], variable[2]))
    settings = {}
    end = 0
    for alignment, size, name, type_id in variables:
        offset = -(-end // alignment) * alignment
        settings[name] = Setting(type_id, offset, size)
        end = offset + size
    if end > _MAX_SETTINGS:
        raise ObjectError(f"{end} bytes of settings, more than {_MAX_SETTINGS}", place=place)
    return settings


def _alignment(btf: b.Btf, variable: b.Var) -> int:
    """Bytes; settings are numbers, truth values, tristates or strings."""
    type_id = variable.target
    for _ in range(_MAX_DEPTH):
        _, found = btf.resolve(type_id)
        if isinstance(found, b.Int | b.Enum | b.Enum64) and found.size in (1, 2, 4, 8):
            return found.size
        if not isinstance(found, b.Array):
            break
        type_id = found.element
    raise ObjectError(
        f"Kconfig has no values of type {btf.describe(variable.target)}",
        place=f"BTF section {b.KERNEL_SETTINGS}, variable {variable.name}",
    )

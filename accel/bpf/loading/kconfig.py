"""Kconfig: how the kernel was built, as the values of an object's `__kconfig` externs.

Pure.  The text is that of /proc/config.gz, for one; reading it is kernel.py's.  The
rules, which setting may go into which type, are those of libbpf, so that a program sees the
same numbers under either loader.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.spec import ExternSpec

Setting = str | int | None
"""As Kconfig writes it ("y", "250", '"local"'), or a number of the loader's own; None: not set."""

# enum libbpf_tristate, libbpf's bpf_helpers.h.
_TRISTATE = {"n": 0, "y": 1, "m": 2}
_TRISTATE_NAME = "libbpf_tristate"

_INTEGER = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]{1,32})|(0[0-7]{0,32})|([1-9][0-9]{0,32}))")


def lookup(text: str, name: str) -> str | None:
    """What the text sets `name` to: "250" for CONFIG_HZ; None when it does not."""
    start = f"\n{name}="
    at = f"\n{text[: len(name) + 1]}".find(start)  # it may be the very first line
    if at < 0:
        at = text.find(start) + 1
        if not at:
            return None
    at += len(start) - 1
    end = text.find("\n", at)
    return text[at : end if end >= 0 else len(text)].rstrip()


_REMEDY = "run a kernel built with them, or declare them __weak to have zeros"
_REMEDY_FOR_SILENCE = (
    "run a kernel with /proc/config.gz (CONFIG_IKCONFIG_PROC=y), or put its settings at "
    "/boot/config-$(uname -r)"
)


def contents(
    btf: b.Btf,
    externs: Iterable[ExternSpec],
    setting: Callable[[str], Setting],
    *,
    is_told: Callable[[], bool] = lambda: True,
) -> bytes:
    """The value of the map ".kconfig": every extern at its offset, weak ones not set as zeros.

    Args:
        setting: What the kernel says, by an extern's name.
        is_told: Whether the settings of the kernel's build were to be had at all.

    Raises:
        ObjectError: Strong ones are not set, all of them named; or a value does not fit.
    """
    values: list[tuple[int, bytes]] = []
    missing: list[str] = []
    for extern in externs:
        value = setting(extern.name)
        if value is None and not extern.weak:
            missing.append(extern.name)
        else:
            data = value_for(btf, extern, value)
            assert len(data) == extern.size  # or it would move those behind it
            values.append((extern.offset, data))
    if missing:
        raise ObjectError(
            f"this kernel does not say what {', '.join(sorted(missing))} "
            f"{'is' if len(missing) == 1 else 'are'}",
            remedy=_REMEDY if is_told() else _REMEDY_FOR_SILENCE,
        )
    made = bytearray(max((offset + len(data) for offset, data in values), default=0))
    for offset, data in values:
        made[offset : offset + len(data)] = data
    return bytes(made)


def value_for(btf: b.Btf, extern: ExternSpec, setting: Setting) -> bytes:
    """The extern's bytes, `extern.size` of them, in the object's byte order.

    Args:
        setting: None makes them zeros.

    Raises:
        ObjectError: The setting does not fit the extern's type.
    """
    place = f"extern {extern.name}"
    found = btf.type(extern.type_id)
    type_id, found = btf.resolve(found.target if isinstance(found, b.Var) else extern.type_id)
    size = btf.size_of(type_id)
    if size != extern.size:
        raise ObjectError(
            f"{btf.describe(type_id)} has {size} bytes, not {extern.size}", place=place
        )
    if setting is None:
        return bytes(size)
    try:
        match found:
            case b.Array() if _is_char(btf, found.element):
                return _text(setting, size)
            case b.Int() if found.is_bool and size == 1:
                number = _bool(setting)
            case b.Int() if not found.is_bool and size in (1, 2, 4, 8):
                number = _number(setting, size, found.signed)
            case b.Enum() | b.Enum64() if found.name == _TRISTATE_NAME:
                number = _tristate(setting)
            case _:
                raise ObjectError(f"Kconfig has no values for {btf.describe(type_id)}")
    except ObjectError as e:
        raise ObjectError(str(e), place=place) from None
    return number.to_bytes(size, btf.byteorder)


def _is_char(btf: b.Btf, type_id: int) -> bool:
    _, found = btf.resolve(type_id)
    return isinstance(found, b.Int) and found.size == 1 and not found.is_bool


def _text(setting: str | int, size: int) -> bytes:
    """The string, cut where it does not fit, with NULs to its end."""
    if not isinstance(setting, str) or len(setting) < 2 or not setting[0] == setting[-1] == '"':
        raise ObjectError(f"{setting} is no string")
    return setting[1:-1].encode()[: max(size - 1, 0)].ljust(size, b"\0")


def _bool(setting: str | int) -> int:
    if setting in ("y", "n"):
        return int(setting == "y")
    if isinstance(setting, int) and setting in (0, 1):
        return setting
    raise ObjectError(f"{setting} is neither y nor n")


def _tristate(setting: str | int) -> int:
    if not isinstance(setting, str) or setting not in _TRISTATE:
        raise ObjectError(f"{setting} is neither y, n nor m")
    return _TRISTATE[setting]


def _number(setting: str | int, size: int, signed: bool) -> int:
    """The number as an unsigned one of `size` bytes."""
    if size == 1 and setting in _TRISTATE:
        return ord(str(setting))
    number = setting if isinstance(setting, int) else _parse(setting)
    bits = size * 8
    # Kconfig's own numbers have 64 bits, and both signs fit in 8 bytes of either kind.
    least, most = -(1 << bits - 1) if signed or size == 8 else 0, 1 << bits - (signed and size < 8)
    if not least <= number < most:
        kind = "signed" if signed else "unsigned"
        raise ObjectError(f"{setting} does not fit in {size} {kind} bytes")
    return number & (1 << bits) - 1


def _parse(setting: str) -> int:
    """As strtoull() with base 0, which takes a sign as well."""
    match = _INTEGER.fullmatch(setting)
    if match is None:
        raise ObjectError(f"{setting} is no number")
    sign, hexadecimal, octal, decimal = match.groups()
    number = int(hexadecimal or octal or decimal, 16 if hexadecimal else 8 if octal else 10)
    if number >= 1 << 64:
        raise ObjectError(f"{setting} is no number of 64 bits")
    return -number if sign else number

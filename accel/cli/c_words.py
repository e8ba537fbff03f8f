"""BTF as a C programmer would have written it: types, declarations, accesses.

For people to read; whatever BTF says, the words stay short.
"""

from __future__ import annotations

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.spec import CoreRelocation

# Of types behind types, and of parameters; types may well lead in a circle.
_MAX_DEPTH = 12
_MAX_PARAMETERS = 8
_CUT = "..."

_QUALIFIERS: dict[type[object], str] = {
    b.Const: "const",
    b.Volatile: "volatile",
    b.Restrict: "restrict",
}
_KEYWORDS: dict[type[object], str] = {
    b.Struct: "struct",
    b.Union: "union",
    b.Enum: "enum",
    b.Enum64: "enum",
}


def declaration(types: b.Types, type_id: int, name: str = "") -> str:
    """The type, or with a name its declaration: "char *(*name)(int)".

    Raises:
        ObjectError: It refers to a type that does not exist.
    """
    return _declare(types, type_id, name, 0, _MAX_DEPTH)


def _declare(types: b.Types, type_id: int, inner: str, calls: int, depth: int) -> str:
    """C declares inside out: `inner` is what is already known to surround the name.

    Args:
        calls: Functions around this one; the parameters of the innermost are left out,
            since a few types could make words without end.
    """
    if depth == 0:
        return _join(_CUT, inner)
    found = types.type(type_id)
    match found:
        case b.Ptr():
            target = types.type(found.target)
            pointer = f"(*{inner})" if isinstance(target, b.Array | b.FuncProto) else f"*{inner}"
            return _declare(types, found.target, pointer, calls, depth - 1)
        case b.Const() | b.Volatile() | b.Restrict():
            word = _QUALIFIERS[found.__class__]
            if _is_pointer(types, found.target):
                return _declare(types, found.target, _join(word, inner), calls, depth - 1)
            return f"{word} {_declare(types, found.target, inner, calls, depth - 1)}"
        case b.Array():
            array = f"{inner}[{found.count}]"
            return _declare(types, found.element, array, calls, depth - 1)
        case b.FuncProto():
            function = f"{inner}({_parameters(types, found, inner, calls, depth)})"
            return _declare(types, found.result, function, calls, depth - 1)
        case b.Func():
            return _declare(types, found.proto, found.name, calls, depth - 1)
        case b.Var():
            return _declare(types, found.target, found.name, calls, depth - 1)
        case b.TypeTag():
            return _declare(types, found.target, inner, calls, depth - 1)
        case _:
            return _join(_named(found), inner)


def _parameters(types: b.Types, proto: b.FuncProto, name: str, calls: int, depth: int) -> str:
    """Those of the function `name`.

    Kernels want names of a kernel function's parameters; where the compiler left them out,
    opening gave them the function's own, which says nothing.
    """
    if calls > 1:
        return _CUT
    shown = [
        _declare(
            types,
            parameter.type_id,
            parameter.name if parameter.name != name else "",
            calls + 1,
            depth - 1,
        )
        if parameter.type_id
        else _CUT
        for parameter in proto.parameters[:_MAX_PARAMETERS]
    ]
    if len(proto.parameters) > _MAX_PARAMETERS:
        shown.append(_CUT)
    return ", ".join(shown) or "void"


def _is_pointer(types: b.Types, type_id: int) -> bool:
    for _ in range(_MAX_DEPTH):
        found = types.type(type_id)
        if not isinstance(found, b.Const | b.Volatile | b.Restrict | b.TypeTag):
            return isinstance(found, b.Ptr)
        type_id = found.target
    return False


def _named(found: b.Type) -> str:
    if isinstance(found, b.Fwd):
        return f"{'union' if found.is_union else 'struct'} {found.name}"
    if isinstance(found, b.Datasec):
        return f"section {found.name}"
    keyword = _KEYWORDS.get(found.__class__)
    return f"{keyword} {found.name or '{...}'}" if keyword else found.name


def _join(word: str, inner: str) -> str:
    return f"{word} {inner}" if inner and not inner.startswith("[") else word + inner


def access(types: b.Types, relocation: CoreRelocation) -> str:
    """What a CO-RE relocation asks about: "struct sock.sk_cgrp_data.val", "enum x: VALUE".

    Where the path leads nowhere the rest of it is left as numbers.
    """
    words = declaration(types, relocation.type_id)
    path = relocation.access.split(":")
    if not all(part.isdecimal() for part in path):
        return f"{words} at {relocation.access!r}"
    try:
        type_id, found = b.resolve(types, relocation.type_id)
        if isinstance(found, b.Enum | b.Enum64) and len(path) == 1:
            return f"{words}: {found.enumerators[int(path[0])].name}"
        # The first number is an index of the pointer the access started from.
        if path[0] != "0":
            words += f"[{path[0]}]"
        del path[0]
        while path:
            step, type_id = _step(types, type_id, int(path[0]))
            words += step
            del path[0]
    except (ObjectError, ValueError, IndexError):
        words += f" at {':'.join(path)}"
    return words


def _step(types: b.Types, type_id: int, number: int) -> tuple[str, int]:
    """One number of an access path in words, and the type it leads to."""
    _, found = b.resolve(types, type_id)
    if isinstance(found, b.Array):
        return f"[{number}]", found.element
    if not isinstance(found, b.Struct | b.Union):
        raise ObjectError("it has no parts")
    member = found.members[number]
    return f".{member.name}" if member.name else "", member.type_id

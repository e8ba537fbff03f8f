"""Where the kernel's symbols are: the text of /proc/kallsyms, searched.

Pure.  A hundred thousand lines are not split into a hundred thousand objects: the few names
asked for are searched in the bytes.
"""

from __future__ import annotations

from collections.abc import Collection

from accel.bpf.errors import ObjectError


def addresses(text: bytes, names: Collection[str]) -> dict[str, int]:
    """Addresses of those symbols that exist.

    Args:
        text: Lines of "ffffffff81000000 T name", modules' with a tab and "[module]" after.

    Raises:
        ObjectError: A name has several addresses, or every address is hidden.
    """
    found: dict[str, int] = {}
    for name in names:
        places = _places(text, name.encode())
        if len(places) > 1:
            raise ObjectError(
                f"kernel symbol {name} is ambiguous: it is at "
                + ", ".join(f"{place:#x}" for place in sorted(places))
            )
        found.update((name, place) for place in places)
    if found and not any(found.values()) and not any(_places(text, b"_text")):
        raise ObjectError(
            "the kernel hides the addresses of its symbols from this process",
            remedy="give it CAP_SYSLOG, and set kernel.kptr_restrict to less than 2",
        )
    return found


def _places(text: bytes, name: bytes) -> set[int]:
    """Every address of the symbol, under its name or as "name.llvm.123"."""
    places: set[int] = set()
    # Link-time optimisation renames static functions so; libbpf knows them by the plain name.
    for wanted in (b" " + name + b"\n", b" " + name + b"\t", b" " + name + b".llvm."):
        at = text.find(wanted)
        while at >= 0:
            start = text.rfind(b"\n", 0, at) + 1
            places.add(int(text[start : text.index(b" ", start)], 16))
            at = text.find(wanted, at + 1)
    return places

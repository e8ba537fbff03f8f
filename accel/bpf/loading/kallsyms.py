"""Where the kernel's symbols are: the text of /proc/kallsyms, searched.

Pure.  A hundred thousand lines are not split into a hundred thousand objects: the few names
asked for are searched in the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from accel.bpf.errors import ObjectError

# From so many names on, looking at every line once is quicker than a search for each.
_MANY = 32

_LINE = re.compile(rb"([0-9a-f]+) (\S) (\S+)")
# Link-time optimisation renames static variables so; to libbpf, kallsyms_cb(), what has
# another type is not the one that is meant.
_RENAMED = b".llvm."
_STATIC_DATA = b"d"


def addresses(text: bytes, names: Collection[str]) -> dict[str, int]:
    """Addresses of those symbols that exist.

    Args:
        text: Lines of "ffffffff81000000 T name", modules' with a tab and "[module]" after.

    Raises:
        ObjectError: A name has several addresses, or every address is hidden.
    """
    places = _places(text, [name.encode() for name in names])
    found: dict[str, int] = {}
    for name in names:
        of_name = places.get(name.encode(), set())
        if len(of_name) > 1:
            raise ObjectError(
                f"kernel symbol {name} is ambiguous: it is at "
                + ", ".join(f"{place:#x}" for place in sorted(of_name))
            )
        found.update((name, place) for place in of_name)
    if found and not any(found.values()) and not any(_search(text, b"_text")):
        raise ObjectError(
            "the kernel hides the addresses of its symbols from this process",
            remedy="give it CAP_SYSLOG, and set kernel.kptr_restrict to less than 2",
        )
    return found


def _places(text: bytes, names: Collection[bytes]) -> dict[bytes, set[int]]:
    """Every address of each symbol."""
    if len(names) < _MANY:
        return {name: _search(text, name) for name in names}
    found: dict[bytes, set[int]] = {name: set() for name in names}
    for address, kind, name in (line.groups() for line in _LINE.finditer(text)):
        known = name.partition(_RENAMED)[0] if kind == _STATIC_DATA else name
        if known in found:
            found[known].add(int(address, 16))
    return found


def _search(text: bytes, name: bytes) -> set[int]:
    """Every address of one symbol."""
    places: set[int] = set()
    for hit in re.finditer(rb" %s([\n\t]|\.llvm\.)" % re.escape(name), text):
        kind = text[hit.start() - 1 : hit.start()]
        if hit[1] != _RENAMED or kind == _STATIC_DATA:
            start = text.rfind(b"\n", 0, hit.start()) + 1
            places.add(int(text[start : text.index(b" ", start)], 16))
    return places

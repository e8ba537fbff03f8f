"""Tables of names: the string sections of ELF and BTF.

Pure.  Names end with NUL and may share bytes, as in "name" and "rename"; nothing in either
format says how much they may share.
"""

from __future__ import annotations

from accel.bpf.errors import ObjectError

# Longer names are no use to anyone.
MAX_NAME = 4096
# What all names of a table together may come to: compilers let few of them share their ends.
_FREE_BYTES = 1 << 20
_MOST_COPIES = 4


class Strings:
    """The names of one table, which a small file cannot make gigabytes of."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = _FREE_BYTES + _MOST_COPIES * len(data)

    def read(self, offset: int) -> str:
        """The name at that offset.

        Raises:
            ObjectError: None is there, or those read so far are longer than the table can mean.
        """
        end = self._data.find(b"\0", offset, offset + MAX_NAME)
        if end < 0:
            raise ObjectError(f"no name at offset {offset:#x} of the strings")
        self._left -= end - offset
        if self._left < 0:
            raise ObjectError(
                f"names overlap: they come to more than {_MOST_COPIES} times the "
                f"{len(self._data)} bytes of their table"
            )
        return self._data[offset:end].decode("utf-8", "backslashreplace")


class Names(dict[int, str]):
    """Names by their offset, each read once, for what refers to the same ones often."""

    def __init__(self, strings: Strings) -> None:
        super().__init__()
        self._strings = strings

    def __missing__(self, offset: int) -> str:
        name = self[offset] = self._strings.read(offset)
        return name

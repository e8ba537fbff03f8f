"""Remarks: what of an object was left out, in words."""

from __future__ import annotations

# A small file can hold one cause for a remark per symbol, and name the same long name in each.
MOST = 256


class Remarks(list[str]):
    """A list of remarks that ends where nobody would read on."""

    def append(self, remark: str) -> None:
        if len(self) < MOST:
            super().append(remark)
        elif len(self) == MOST:
            super().append("and more that are not listed")

"""The two byte orders an object may be in."""

from typing import Literal

ByteOrder = Literal["little", "big"]

# What the struct module calls them.
MARKS: dict[ByteOrder, str] = {"little": "<", "big": ">"}

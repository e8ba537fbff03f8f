"""Ownership of one file descriptor."""

from __future__ import annotations

import fcntl
import os
import warnings

from accel.bpf.closing import Closing

# Below this live the standard streams.  bpf(2) reads a 0 in an attr as "none",
# and a daemon whose streams are closed would otherwise be given one of these.
_LOWEST = 3


class Fd(Closing):
    """Owns a descriptor: closes it once, and says so when forgotten.

    `fileno()` lets os, select and anyio take the object itself.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        """Take ownership of `number`, moving it away from the standard streams."""
        if number < _LOWEST:
            moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
            os.close(number)
            number = moved
        self._number = number

    @property
    def closed(self) -> bool:
        return self._number < 0

    def fileno(self) -> int:
        """The descriptor's number.

        Raises:
            ValueError: It is closed, as file objects say it.
        """
        if self._number < 0:
            raise ValueError("operation on a closed descriptor")
        return self._number

    def close(self) -> None:
        """Close it; a second time does nothing."""
        number, self._number = self._number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        if getattr(self, "_number", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        return "<Fd closed>" if self.closed else f"<Fd {self._number}>"

"""What the rings shared with the kernel have in common: order, and typed records."""

from __future__ import annotations

import threading
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Decoder(Protocol[T_co]):
    """What makes records of bytes: codec_for() returns one, Map.record_codec() too."""

    @property
    def size(self) -> int: ...
    def unpack(self, buffer: Any, /) -> T_co: ...


class Barrier:
    """Keeps the loads and stores before pass_through() before those after it.

    The interpreter has no memory barriers, but a lock's release orders what
    was before it, its acquisition what comes after, and the two are not
    exchanged.  x86 and s390x need this only between a store and a load;
    others between loads too.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def pass_through(self) -> None:
        self._lock.release()
        self._lock.acquire()

"""Arenas: memory that programs and this process share, at the same addresses.

kernel/bpf/arena.c: a page comes into being when either side first touches it, and all
processes must map an arena at one address, which the first of them finds or the map's
definition says (map_extra).  Pointers inside it are those of user space.
"""

from __future__ import annotations

import ctypes
from errno import EBUSY, EINVAL, ERANGE
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, finalize

from accel.bpf.closing import Closing
from accel.bpf.door import syscall, uapi
from accel.bpf.door.syscall import HasFileno
from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType
from accel.bpf.spec import MapSpec

if TYPE_CHECKING:
    from accel.bpf.maps.map import Map

Pages = ctypes.Array[ctypes.c_char]

# The mappings of this process, by the maps' ids: an arena has one address, so it can be
# mapped once only.  They go with the last view of their memory.
_MAPPED: WeakValueDictionary[int, Pages] = WeakValueDictionary()


class Arena(Closing):
    """An arena map, mapped into this process; a context manager.

    Attributes:
        address: Where it begins, as programs' pointers see it.
        memory: All of it, writable.  Reading a page no one has written allocates it; of
            a map with BPF_F_SEGV_ON_FAULT, touching a page that no program has allocated
            kills this process.
    """

    def __init__(self, map: Map[Any, Any]) -> None:
        """Map it.  Does not own the map, but works on after its close.

        Raises:
            BpfError: It is no arena; its address is taken in this process; or it was
                mapped elsewhere at an address its definition does not tell.
        """
        action = f"map arena {map.name} into memory"
        if map.spec.type != MapType.ARENA:
            raise BpfError(action, EINVAL)
        pages = _pages(map, map.spec, action)
        self.address = ctypes.addressof(pages)
        self.memory = memoryview(pages).cast("B")
        self._size = len(pages)
        self._closed = False

    def close(self) -> None:
        """Let go of `memory`; it is unmapped when the last slice of it is gone too."""
        self.memory.release()
        self._closed = True

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return f"<Arena of {self._size} bytes at {self.address:#x}{closed}>"


def fill_arena(fd: HasFileno, spec: MapSpec, offset: int) -> Pages:
    """Give a new arena its address and its contents.

    Programs that use an arena are refused until it has an address, and it keeps it for
    good; it stays taken in this process while the result is there.
    """
    action = f"map arena {spec.name} into memory"
    contents = spec.contents or b""
    size = spec.max_entries * PAGESIZE
    if offset < 0 or offset + len(contents) > size:
        raise BpfError(f"{action}: {len(contents)} bytes at {offset} of {size}", ERANGE)
    pages = _pages(fd, spec, action)
    ctypes.memmove(ctypes.addressof(pages) + offset, contents, len(contents))
    return pages


def _pages(map: HasFileno, spec: MapSpec, action: str) -> Pages:
    """The arena's memory: what is mapped already, or else anew."""
    number = syscall.obj_get_info_by_fd(map, uapi.MapInfo, action).id
    pages = _MAPPED.get(number)
    if pages is None:
        size = spec.max_entries * PAGESIZE
        address = _mapped(map, size, spec.map_extra, action)
        pages = _MAPPED[number] = (ctypes.c_char * size).from_address(address)
        # Every view of the pages, slices too, keeps them alive: none dangles.
        finalize(pages, syscall.munmap, address, size).atexit = False
    return pages


def _mapped(map: HasFileno, size: int, where: int, action: str) -> int:
    try:
        return syscall.mmap_at(map, size, where, action)
    except BpfError as error:
        if where or error.errno not in (EINVAL, EBUSY):
            raise
        raise BpfError(
            action,
            error.errno,
            remedy="define the arena with an address (map_extra): another process chose one "
            "that cannot be found out",
        ) from None

"""Everything of one kind that is in the kernel, by its id."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError

T = TypeVar("T")

NextId = type[uapi.ProgGetNextId | uapi.MapGetNextId | uapi.LinkGetNextId]
FdById = type[uapi.ProgGetFdById | uapi.MapGetFdById | uapi.LinkGetFdById]


def iter_by_id(
    next_id: NextId,
    fd_by_id: FdById,
    action: str,
    ask: Callable[[Fd, int], T],
    passed_over: Collection[int] = (errno.ENOENT,),
) -> Iterator[T]:
    """What `ask` answers of each, given its descriptor and id.

    Args:
        passed_over: Errors that say it went meanwhile, or is not there yet.

    Raises:
        BpfError: Listing needs CAP_SYS_ADMIN.
    """
    number = 0
    while (following := syscall.get_next_id(next_id, number, action)) is not None:
        number = following
        try:
            with syscall.get_fd_by_id(fd_by_id, number, action) as fd:
                answer = ask(fd, number)
        except BpfError as error:
            if error.errno not in passed_over:
                raise
            continue
        yield answer

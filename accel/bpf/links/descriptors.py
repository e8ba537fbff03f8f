"""Descriptors of what programs are attached to: opened by path, or of our own beside others'."""

from __future__ import annotations

import errno
import os

from accel.bpf.door import syscall
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError


def open_path(
    path: str | os.PathLike[str],
    action: str,
    *,
    directory: bool = False,
    remedy: str | None = None,
) -> Fd:
    """Open a file, or with `directory` nothing but a directory.

    Raises:
        BpfError: The system refused; with `remedy`.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECTORY if directory else 0)
    try:
        return Fd(os.open(path, flags))
    except OSError as error:
        raise BpfError(action, error.errno or errno.EIO, remedy=remedy) from error


def duplicate(owner: syscall.HasFileno, action: str) -> Fd:
    """A descriptor of our own for what another one is for.

    Raises:
        BpfError: EMFILE when this process has too many.
    """
    try:
        return Fd(os.dup(owner.fileno()))
    except OSError as error:
        raise BpfError(action, error.errno or errno.EIO) from error

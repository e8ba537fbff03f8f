"""A page that is not there until somebody says so: whoever touches it waits, in the kernel too."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import select
import struct
from types import TracebackType
from typing import Self

# The system call's number, arch/*/entry/syscalls.
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_UFFD_API = 0xAA
_REGISTER_MODE_MISSING = 1

# include/uapi/linux/userfaultfd.h
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_ZEROPAGE = 0xC020AA04


class Fault:
    """An anonymous page under userfaultfd(2), and the means to fill it.

    Raises:
        OSError: ENOSYS where the kernel has no userfaultfd.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        number = _USERFAULTFD[platform.machine()]
        self._fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        self.page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = (ctypes.c_char * mmap.PAGESIZE).from_buffer(self.page)
        self._address = ctypes.addressof(self._view)
        fcntl.ioctl(self._fd, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, 0, 0))
        register = struct.pack("QQQQ", self._address, mmap.PAGESIZE, _REGISTER_MODE_MISSING, 0)
        fcntl.ioctl(self._fd, _UFFDIO_REGISTER, register)

    def wait(self, seconds: float) -> None:
        """Until somebody has touched the page, and waits."""
        if not select.select([self._fd], [], [], seconds)[0]:
            raise TimeoutError(f"nobody touched the page for {seconds} s")

    def resolve(self) -> None:
        """The page is there, all zero, and who waits goes on.  Once."""
        zero = struct.pack("QQQQ", self._address, mmap.PAGESIZE, 0, 0)
        fcntl.ioctl(self._fd, _UFFDIO_ZEROPAGE, zero)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)  # whoever still waits is let go, too
        del self._view
        self.page.close()

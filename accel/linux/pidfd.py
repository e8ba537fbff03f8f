"""The ends of processes, as the kernel tells them: a descriptor for each, behind one."""

from __future__ import annotations

import errno
import os
import resource
import select
from collections.abc import Hashable
from typing import Generic, TypeVar

import anyio

from accel.errors import LinuxError

_REMEDIES = {errno.EMFILE: "raise the hard limit of open files (ulimit -Hn, LimitNOFILE=)"}

K = TypeVar("K", bound=Hashable)


def allow_many() -> None:
    """Let this process have as many descriptors as it may.

    Each process that is watched takes one, and many systems start a service with 1,024.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Lives(Generic[K]):
    """Processes whose end somebody wants to know, each under a key.

    A pid is a number that is used again; what is watched here is the process that had it
    when watch() was called.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._fds: dict[K, int] = {}
        self._keys: dict[int, K] = {}

    def watch(self, key: K, pid: int) -> bool:
        """Watch this process, instead of the one that had the key before.

        Returns:
            False when there is no such process, or it has ended.

        Raises:
            LinuxError: It could not be looked for.
        """
        self.forget(key)
        try:
            fd = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:  # no number that a process has
                return False
            raise LinuxError(
                f"watch process {pid}: {error.strerror}", remedy=_REMEDIES.get(error.errno or 0)
            ) from error
        self._fds[key], self._keys[fd] = fd, key
        self._epoll.register(fd, select.EPOLLIN)
        return self.alive(key)

    def alive(self, key: K) -> bool:
        """Whether the process of this key is watched and has not ended."""
        fd = self._fds.get(key)
        if fd is None:
            return False
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return not poll.poll(0)

    def forget(self, key: K) -> None:
        """Watch it no more, if it was."""
        fd = self._fds.pop(key, None)
        if fd is not None:
            del self._keys[fd]
            os.close(fd)  # which also takes it from the epoll set

    def forget_all(self) -> None:
        for key in tuple(self._fds):
            self.forget(key)

    async def wait(self) -> tuple[K, ...]:
        """Wait until some have ended; their keys, which are forgotten."""
        while True:
            await anyio.wait_readable(self._epoll.fileno())
            ended = tuple(self._keys[fd] for fd, _ in self._epoll.poll(0) if fd in self._keys)
            for key in ended:
                self.forget(key)
            if ended:
                return ended

    def close(self) -> None:
        self.forget_all()
        self._epoll.close()

"""Network namespaces that nobody else can see, and the networks in them.

A namespace is held by a file descriptor alone: no name under /run/netns, so it goes when
the last process in it and its holder have gone, whatever ends them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from accel.demo.enter import CLONE_NEWNET
from accel.demo.errors import MissingProgram, TestbedError
from accel.linux.netns import call_inside

T = TypeVar("T")


class Netns:
    """A new, empty network namespace with its loopback up; a context manager.  See also of()."""

    def __init__(self) -> None:
        # The namespace belongs to the thread that made it, which ends with this.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as thread:
            self.fd = thread.submit(_new_namespace).result()
        try:
            self.run(("ip", "link", "set", "lo", "up"))
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, pid: int) -> Self:
        """The namespace that a process is in, whoever made it.

        Raises:
            OSError: The process is gone, or not ours to look into.
        """
        found = cls.__new__(cls)
        found.fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return found

    def __repr__(self) -> str:
        return f"<Netns {self.inode if self.fd >= 0 else 'closed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def inode(self) -> int:
        """What identifies the namespace: `readlink /proc/PID/ns/net` shows the same number."""
        return os.fstat(self.fd).st_ino

    @property
    def path(self) -> str:
        """A path that opens the namespace, for as long as this object is open."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on a thread of its own inside the namespace."""
        return call_inside(self.path, function)

    def run(self, argv: Sequence[str], *, stdin: str | None = None) -> str:
        """Run a network tool as root inside the namespace and return its output.

        Raises:
            MissingProgram: The tool is not installed.
            TestbedError: It failed; the message has its last words.
        """
        if shutil.which(argv[0]) is None:
            raise MissingProgram(argv[0], remedy=_TOOL_REMEDY)
        # A child inherits the namespace of the thread that starts it.
        done = self.call(
            lambda: subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        )
        if done.returncode != 0:
            raise TestbedError(
                f"{' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}",
                remedy="run as root on a kernel with network namespaces, veth and netfilter",
            )
        return done.stdout

    def set_sysctl(self, name: str, value: int) -> None:
        """Set one of the namespace's own sysctls, as in "net.ipv4.conf.all.rp_filter"."""
        path = Path("/proc/sys", *name.split("."))
        self.call(lambda: path.write_text(str(value)))

    def close(self) -> None:
        """Let go of the namespace; the kernel frees it once it is empty."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_TOOL_REMEDY = "apt-get install iproute2 iptables"


def _new_namespace() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise TestbedError(f"make a network namespace: {reason}", remedy="run as root")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

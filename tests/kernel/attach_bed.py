"""What the tests of attaching share: tests/objects/attach.bpf.c loaded, and a network of one's own."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from accel.bpf.door import syscall
from accel.bpf.errors import BpfError
from accel.bpf.kinds import AttachType
from accel.bpf.loading.object import Object, load
from accel.bpf.maps.variable import with_variables
from accel.bpf.opening.opener import open_object
from tests.bpf.conftest import Compile, compiled
from tests.patience import scaled

__all__ = [
    "Load",
    "Netns",
    "attach_object",
    "compiled",
    "hits",
    "is_since",
    "load_attach",
    "needs",
    "netns",
    "skip_without_trampolines",
    "wait_for",
]

PATIENCE_SECONDS = scaled(10.0)
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3

TRAMPOLINED = (
    AttachType.TRACE_FENTRY,
    AttachType.TRACE_FEXIT,
    AttachType.MODIFY_RETURN,
    AttachType.LSM_MAC,
)

# The first kernel that takes a program, where it is younger than our oldest.
SINCE = {
    "instead": (6, 3),  # bpf_modify_return_test() may be modified
    "on_entry": (5, 15),  # bpf_get_attach_cookie()
    "on_getpgid": (5, 15),
    "on_function": (5, 15),
    "on_functions": (6, 6),
    "by_hand": (5, 14),
    "drop_packet": (6, 4),
    "cgroups": (6, 1),
}

T = TypeVar("T")
Load = Callable[..., Object]

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="session")
def attach_object(compiled: Compile) -> Path:
    """tests/objects/attach.bpf.c, built."""
    return compiled("attach")


@pytest.fixture
def load_attach(attach_object: Path) -> Iterator[Load]:
    """load_attach(*names): these programs of attach.bpf.c, counting this process's calls."""
    objects: list[Object] = []

    def run(*names: str) -> Object:
        spec = with_variables(open_object(attach_object), pid=os.getpid())
        try:
            objects.append(load(spec, programs=names))
        except BpfError as error:
            for name in names:
                needs(SINCE.get(name, (0, 0)))
                if spec.programs[name].attach_type in TRAMPOLINED:
                    skip_without_trampolines(error)
            raise
        return objects[-1]

    yield run
    for obj in objects:
        obj.close()


def is_since(since: tuple[int, int]) -> bool:
    """Whether this kernel is that one or younger."""
    return tuple(map(int, os.uname().release.split(".")[:2])) >= since


def needs(since: tuple[int, int]) -> None:
    """Skip the test on a kernel that is older."""
    if not is_since(since):
        pytest.skip(f"needs Linux {since[0]}.{since[1]}")


def skip_without_trampolines(error: BpfError) -> None:
    """Some machines' kernels refuse programs that need one, to everybody and without a reason."""
    if error.errno == errno.EPERM and syscall.explain_eperm() is None:
        pytest.skip("this kernel loads no program with a trampoline")


def hits(obj: Object) -> int:
    """How often its programs were run."""
    number: int = obj.variables["hits"].get()
    return number


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


class Netns:
    """A network namespace with the two ends of a veth pair in it, "left" and "right".

    It belongs to one thread, which does what it is told.
    """

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    def call(self, function: Callable[[], T]) -> T:
        """Run it inside; what it raises is raised here."""
        return self._thread.submit(function).result()

    def send(self) -> None:
        """One frame from right to left."""
        self.call(_send)

    @property
    def path(self) -> str:
        return self.call(lambda: f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net")


def _send() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("right", 0))
        sender.send(b"\xff" * 12 + b"\x88\xb5" + bytes(46))


def _unshare() -> None:
    assert _libc.unshare(CLONE_NEWNET) == 0
    for command in (
        "link set lo up",
        "link add left type veth peer name right",
        "link set left up",
        "link set right up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


@contextmanager
def _private() -> Iterator[Netns]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(_unshare).result()
        yield Netns(thread)


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A network namespace of the test's own."""
    with _private() as made:
        yield made

"""What every test against the running kernel relies on.

Places to work in (`cgroup`, `bpffs`), and rules: root only, nothing left
behind, and a missing feature skips a test only where the kernel is honestly
too old for it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import assemble
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.format.insn import Instruction
from accel.bpf.loading.program import Program
from accel.bpf.spec import ProgramSpec
from tests.bpf.conftest import Compile, compiled
from tests.patience import scaled

__all__ = ["compiled"]

MNT_DETACH = 2
LINGER_SECONDS = scaled(10.0)  # how long the kernel may take to free what nobody holds

_libc = ctypes.CDLL(None, use_errno=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kernel") and os.geteuid() != 0:
        pytest.skip("loads BPF into the kernel: run as root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """NotSupported skips on a kernel before the feature, and fails on one that should have it."""
    try:
        return (yield)
    except NotSupported as error:
        numbers = re.findall(r"\d+", os.uname().release)
        release = (int(numbers[0]), int(numbers[1]))
        if release >= error.since:
            pytest.fail(f"{error.feature}: not found, though Linux has it since {error.since}")
        pytest.skip(str(error))


# --- nothing left behind -------------------------------------------------------------------

_NextId = type[uapi.MapGetNextId | uapi.ProgGetNextId | uapi.LinkGetNextId]
_IDS: dict[uapi.Cmd, tuple[str, type[uapi.Info], _NextId]] = {
    uapi.Cmd.MAP_CREATE: ("map", uapi.MapInfo, uapi.MapGetNextId),
    uapi.Cmd.PROG_LOAD: ("program", uapi.ProgInfo, uapi.ProgGetNextId),
    uapi.Cmd.LINK_CREATE: ("link", uapi.LinkInfo, uapi.LinkGetNextId),
    uapi.Cmd.RAW_TRACEPOINT_OPEN: ("link", uapi.LinkInfo, uapi.LinkGetNextId),
}


class Ledger:
    """Ids of the maps, programs and links this process made.

    Comparing all ids before and after would blame a test for what other
    processes load meanwhile, so the door to the kernel is watched instead.
    """

    def __init__(self) -> None:
        self._made: set[tuple[uapi.Cmd, int]] = set()
        self._bpf = syscall.bpf
        self._map_create_log = syscall.map_create_log

    def map_create_log(self, attr: uapi.MapCreate, log_bytes: int) -> tuple[Fd | None, str]:
        """The one command that goes past bpf(), for its second attr."""
        made, log = self._map_create_log(attr, log_bytes)
        if made is not None:
            self._note(attr.CMD, made.fileno())
        return made, log

    def bpf(self, attr: uapi.Attr, action: str) -> int:
        result = self._bpf(attr, action)
        if attr.CMD in _IDS:
            self._note(attr.CMD, result)
        return result

    def _note(self, cmd: uapi.Cmd, fd: int) -> None:
        info = _IDS[cmd][1]()
        question = uapi.ObjGetInfoByFd(
            bpf_fd=fd, info_len=ctypes.sizeof(info), info=ctypes.addressof(info)
        )
        self._bpf(question, "note what was made")
        self._made.add((cmd, info.id))

    def alive(self) -> list[str]:
        return [
            f"{_IDS[cmd][0]} {number}" for cmd, number in sorted(self._made) if _exists(cmd, number)
        ]


def _exists(cmd: uapi.Cmd, number: int) -> bool:
    return syscall.get_next_id(_IDS[cmd][2], number - 1, "look for what is left") == number


def _open_fds() -> dict[str, str]:
    fds = {}
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            fds[number] = os.readlink(f"/proc/self/fd/{number}")
    return fds


@pytest.fixture(autouse=True)
def no_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Descriptors, maps, programs and links of this process are the same after as before."""
    ledger = Ledger()
    before = _open_fds()
    monkeypatch.setattr(syscall, "bpf", ledger.bpf)
    monkeypatch.setattr(syscall, "map_create_log", ledger.map_create_log)
    yield
    gc.collect()
    assert _open_fds() == before
    give_up = time.monotonic() + LINGER_SECONDS
    while (left := ledger.alive()) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert left == []


# --- places --------------------------------------------------------------------------------


def cgroup2_mount() -> Path | None:
    """Where a writable cgroup v2 hierarchy is mounted, or None."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        fields = mount.split()
        if rest.startswith("cgroup2 ") and "rw" in fields[5].split(","):
            return Path(fields[4])
    return None


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup v2 directory of the test's own; processes it leaves there go to the root."""
    root = cgroup2_mount()
    if root is None:
        pytest.skip("no writable cgroup v2 mount")
    path = root / f"accel-test-{uuid4().hex[:12]}"
    path.mkdir()
    try:
        yield path
    finally:
        _remove_cgroup(path, root)


def _remove_cgroup(path: Path, root: Path) -> None:
    if not path.exists():
        return
    for directory, _, _ in sorted(os.walk(path), reverse=True):
        for pid in Path(directory, "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                (root / "cgroup.procs").write_text(pid)
        os.rmdir(directory)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpf file system of the test's own; its pins go with it."""
    path = tmp_path / "bpffs"
    path.mkdir()
    if _libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, None) != 0:
        pytest.skip(f"cannot mount a bpf file system: {os.strerror(ctypes.get_errno())}")
    try:
        yield path
    finally:
        assert _libc.umount2(os.fsencode(path), MNT_DETACH) == 0


# --- objects and programs ----------------------------------------------------------------------

LoadProgram = Callable[..., Program]


@pytest.fixture(scope="session")
def loading_object(compiled: Compile) -> Path:
    """tests/objects/loading.bpf.c, built."""
    return compiled("loading")


@pytest.fixture
def load_program() -> Iterator[LoadProgram]:
    """load_program(type, *instructions, attach_type=None, name=...): loaded, closed afterwards."""
    loaded: list[Program] = []

    def load(
        type: int, *instructions: Instruction, attach_type: int | None = None, name: str = "test"
    ) -> Program:
        code = assemble(*instructions)
        spec = ProgramSpec(name, "test", type, attach_type, None, code)
        loaded.append(Program.load(spec, code, license="GPL"))
        return loaded[-1]

    yield load
    for program in loaded:
        program.close()


@pytest.fixture
def refused() -> Callable[[Callable[[], object]], BpfError]:
    """refused(call): the BpfError that `call` must end in."""

    def run(call: Callable[[], object]) -> BpfError:
        with pytest.raises(BpfError) as caught:
            call()
        return caught.value

    return run

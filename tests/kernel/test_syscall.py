"""The door to the kernel: errors that say what was tried, and why it failed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import mov
from accel.bpf.errors import BpfError
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import MapType, ProgramType
from tests.kernel.conftest import LoadProgram

ALL = (1 << 41) - 1
NET_ADMIN, SYS_ADMIN, PERFMON, BPF = (1 << bit for bit in (12, 21, 38, 39))


@pytest.mark.parametrize(
    ("effective", "missing"),
    [
        (ALL, []),
        (SYS_ADMIN | NET_ADMIN, []),
        (SYS_ADMIN, ["CAP_NET_ADMIN"]),
        (BPF | PERFMON | NET_ADMIN, []),
        (NET_ADMIN | PERFMON, ["CAP_BPF"]),
        (0, ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]),
    ],
)
def test_missing_capabilities_are_named(effective: int, missing: list[str]) -> None:
    """CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON, never for CAP_NET_ADMIN."""
    assert syscall.missing_capabilities(effective) == missing


@pytest.mark.kernel
def test_a_failure_says_what_was_tried() -> None:
    with pytest.raises(BpfError) as caught:
        syscall.map_create(uapi.MapCreate(map_type=MapType.HASH), "create map of nothing")

    assert str(caught.value) == "create map of nothing: Invalid argument (EINVAL)"
    assert caught.value.errno == errno.EINVAL
    assert caught.value.remedy is None


@pytest.mark.kernel
def test_enotsupp_has_a_name() -> None:
    """Errno 524 is not for user space, and would read "Unknown error 524"."""
    attr = uapi.MapCreate(map_type=MapType.SOCKHASH, key_size=4, value_size=8, max_entries=1)
    with syscall.map_create(attr, "create") as fd:
        batch = uapi.MapLookupBatch(map_fd=fd.fileno(), count=1)
        with pytest.raises(BpfError, match="Operation not supported"):
            syscall.map_lookup_batch(batch, "read a sockhash in batches")


@pytest.mark.kernel
def test_nobody_is_told_what_to_be_allowed() -> None:
    """Without privilege the remedy names the capabilities, whatever else there is."""
    code = """
import os
from accel.bpf.door import syscall, uapi
from accel.bpf.errors import BpfError
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    syscall.map_create(
        uapi.MapCreate(map_type=18, key_size=4, value_size=8, max_entries=1), "create map x"
    )
except BpfError as error:
    print(f"{error} | {error.remedy}")
"""
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    ).stdout

    assert said.startswith("create map x: Operation not permitted (EPERM) | give this process ")
    assert "CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON" in said


@pytest.mark.kernel
def test_signals_do_not_stop_a_load(load_program: LoadProgram) -> None:
    """A timer that fires faster than the program verifies makes the kernel say EAGAIN."""
    fired = 0

    def count(*_: object) -> None:
        nonlocal fired
        fired += 1

    body = [Instruction(0x07, 0, 0, 0, 1)] * 200_000  # r0 += 1, milliseconds to verify
    before = signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        program = load_program(
            ProgramType.SOCKET_FILTER, mov(0, 0), *body, Instruction(EXIT, 0, 0, 0, 0)
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert program.id
    assert fired


@pytest.mark.kernel
def test_ids_are_walked_upwards(load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SOCKET_FILTER, mov(0, 0), Instruction(EXIT, 0, 0, 0, 0))
    number = program.id

    assert syscall.get_next_id(uapi.ProgGetNextId, number - 1, "walk") == number
    with syscall.get_fd_by_id(uapi.ProgGetFdById, number, "open by id") as again:
        assert isinstance(again, Fd)
        assert os.readlink(f"/proc/self/fd/{again.fileno()}") == "anon_inode:bpf-prog"
    with pytest.raises(BpfError, match="ENOENT"):
        syscall.get_fd_by_id(uapi.MapGetFdById, 0xFFFFFFF0, "open by id")

"""The stress for some seconds, in every mode; tests/stress/run.py has the hours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from accel.linux.cgroup import find_mount
from tests.kernel.instance import wait_until
from tests.stress import run
from tests.stress.conductor import SLOTS, Conductor, Tally, Wanted
from tests.stress.place import Here
from tests.stress.run import Options, stress
from tests.stress.script import Plot
from tests.stress.table import FAR, Table

SHORT = Options(connections=500, bytes=50 << 20, seed=4, concurrency=100, workers=2, calm=20)
SLOW_SECONDS = 180.0


def _nothing(tally: Tally) -> None:
    pass


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces and loads BPF: run as root")


def test_the_harness_alone() -> None:
    """Plain relays on loopback: whatever is wrong here is not accel's doing."""
    report = stress(replace(SHORT, mode="here", calm=5), _nothing)
    assert report["problems"] == []
    whole = report["connections"]["complete"] + report["connections"]["aborted"]
    assert whole >= SHORT.connections
    assert report["bytes"] >= SHORT.bytes
    assert report["chaos"]["worker killed"]


def test_a_connection_that_stands_still_is_found() -> None:
    plot = Plot(seed=1, workers=1, mean_bytes=10_000)
    stopped: list[int] = []

    with (
        Here(1) as place,
        Conductor(
            place,
            plot,
            Wanted(connections=10**9, bytes=0),
            concurrency=20,
            calm=10**9,
            deadline_seconds=2.0,
        ) as conductor,
    ):

        def stop_a_relay(tally: Tally) -> None:
            if not stopped:
                stopped.append(conductor.pid_of(FAR, 0))
                os.kill(stopped[0], signal.SIGSTOP)

        conductor.run(stop_a_relay)
        faults = conductor.tally.faults
    assert faults
    assert {fault["kind"] for fault in faults} == {"hang"}
    assert all(fault["sockets"] for fault in faults)


@pytest.mark.kernel
@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("mode", ["default", "trust"])
def test_stress(mode: str) -> None:
    report = stress(replace(SHORT, mode=mode, deadline_seconds=SLOW_SECONDS), _nothing)
    assert report["problems"] == []
    whole = report["connections"]["complete"] + report["connections"]["aborted"]
    assert whole >= SHORT.connections
    assert report["bytes"] >= SHORT.bytes
    assert {"agent killed", "paused and resumed", "trust changed"} <= report["chaos"].keys()


@pytest.mark.kernel
@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    script = subprocess.Popen(
        [sys.executable, run.__file__, "--seed", "1", "--concurrency", "50", "--seconds", "600"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    cgroups = find_mount().point
    try:
        table = f"accel-stress-{script.pid}-*/table"
        wait_until(lambda: any(map(_has_begun, tmp_path.glob(table))), script.poll)
        script.send_signal(number)
        script.wait(60)
    finally:
        script.kill()
        script.wait()
    assert list(tmp_path.iterdir()) == []
    assert list(cgroups.glob(f"accel-stress-{script.pid}-*")) == []
    left = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _session(pid) == script.pid]
    assert left == []


def _has_begun(table: Path) -> bool:
    """Whether the first client took its first number."""
    try:
        with closing(Table(table, SLOTS)) as shared:
            return shared.next_of(0) > 0
    except FileNotFoundError:
        return False


def _session(pid: str) -> int:
    try:
        return os.getsid(int(pid))
    except ProcessLookupError:
        return -1

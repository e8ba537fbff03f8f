"""The whole demonstration, short, and cut short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from accel.demo.errors import TestbedError
from accel.demo.options import DemoOptions
from accel.demo.report import DIRECTIONS, HOPS
from accel.demo.run import run_demo
from accel.linux.cgroup import find_mount

pytestmark = [pytest.mark.demo, pytest.mark.kernel]

SHORT = DemoOptions(connections=4, rounds=1, round_seconds=1, trust_apps=True)

TELLING = """
import sys
from accel.demo.options import DemoOptions
from accel.demo.run import run_demo

def tell(doing, done):
    print(doing, flush=True)

run_demo(DemoOptions(connections=4, rounds=1, round_seconds=5), tell)
"""


def traces(pid: int) -> list[str]:
    """What is left of a demonstration by that process: cgroups, files, mounts."""
    name = f"accel-demo-{pid}-"
    places = (find_mount().point, Path(tempfile.gettempdir()))
    return [
        *(str(path) for place in places for path in place.glob(f"{name}*")),
        *(line for line in Path("/proc/mounts").read_text().splitlines() if name in line),
    ]


def test_all_six_directions_are_accelerated_and_no_request_fails() -> None:
    told: list[float] = []

    report = run_demo(SHORT, lambda doing, done: told.append(done))

    facts = report.to_json()
    assert facts["hops"] == {hop: dict.fromkeys(DIRECTIONS, "accelerated") for hop in HOPS}
    assert facts["errors"] == 0
    assert facts["messages_redirected"] > 0
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert traces(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "stage", ["building two pairs of pods", "starting the agent", "warming up", "measuring"]
)
def test_an_interrupt_leaves_nothing_behind(stage: str, number: signal.Signals) -> None:
    """Also when it comes twice: the taking down is not for interrupting."""
    with subprocess.Popen(
        [sys.executable, "-c", TELLING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as demo:
        assert demo.stdout is not None
        while not demo.stdout.readline().decode().startswith(stage):
            assert demo.poll() is None
        demo.send_signal(number)
        demo.send_signal(number)

    # Python ends by the signal itself after a KeyboardInterrupt that nobody caught.
    assert demo.returncode == (-number if number == signal.SIGINT else 128 + number)
    assert traces(demo.pid) == []


def test_only_root_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(TestbedError, match="needs root") as failure:
        run_demo(SHORT, lambda doing, done: None)

    assert failure.value.remedy == "run it again with sudo"

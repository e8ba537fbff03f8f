"""Runs accel where it is to leave the node alone; prints as JSON what it said and what it left.

Run in the guest by test_refusal.py:

    python -m tests.vm.guest_refusal [arguments for accel check and accel run]
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from accel import bpf
from accel.bpf.links.link_info import iter_links
from accel.bpf.maps.info import iter_maps
from accel.cli import main as accel
from tests.patience import scaled

PINS = Path("/sys/fs/bpf")


def _answer(*arguments: str) -> dict[str, Any]:
    """What a command says, and its exit status; in this process: an emulated one starts slowly."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = accel(list(arguments))
    said = out.getvalue()
    return {"code": code, "said": json.loads(said) if "--json" in arguments and said else said}


def _ids(listing: Callable[[], Iterable[Any]]) -> list[int]:
    try:
        return [info.id for info in listing()]
    except bpf.BpfError:  # before Linux 5.8 there are no links to list
        return []


def _present() -> dict[str, list[Any]]:
    """BPF objects and pins of this machine."""
    return {
        "programs": _ids(bpf.iter_programs),
        "maps": _ids(iter_maps),
        "links": _ids(iter_links),
        "pins": sorted(map(str, PINS.rglob("*"))) if PINS.is_dir() else [],
    }


def _settle(agent: subprocess.Popen[str], run_dir: str) -> dict[str, Any]:
    """Status once the agent knows what it does, or has ended."""
    give_up = time.monotonic() + scaled(30)
    while True:
        status = _answer("status", "--json", "--run-dir", run_dir)
        undecided = status["said"] and status["said"]["health"] in ("not running", "starting")
        if agent.poll() is not None or not undecided or time.monotonic() > give_up:
            return status
        time.sleep(0.1)


def main(arguments: list[str]) -> None:
    check = _answer("check", "--json", *arguments)
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as log:
        before = _present()
        run_dir = f"{directory}/run"
        agent = subprocess.Popen(
            [sys.executable, "-m", "accel", "run", "--run-dir", run_dir, *arguments],
            stderr=log,
            text=True,
        )
        status = _settle(agent, run_dir)
        facts = {
            "check": check,
            "running": agent.poll() is None,
            "status": status,
            "status_text": _answer("status", "--run-dir", run_dir)["said"],
            "present": _present(),
            "before": before,
        }
        agent.terminate()
        facts["code"] = agent.wait(scaled(30))
        log.seek(0)
        facts["log"] = log.read()
    print(json.dumps(facts))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main(sys.argv[1:])

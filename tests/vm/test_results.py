"""From what the guests print to the table in the README."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.vm.machine import PROJECT

HOPS = ("app-sidecar", "sidecar-sidecar")


def _load(name: str) -> ModuleType:
    path = PROJECT / "build" / "vm" / name
    loader = SourceFileLoader(f"vm_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # as for a script
        patch.setitem(sys.modules, loader.name, module)
        loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def support() -> ModuleType:
    return _load("support.py")


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    return _load("matrix")


def _answer(*accelerated: str) -> dict[str, Any]:
    """As accel check says it; only these hops accelerated."""
    return {
        "reasons": [],
        "era": "old",
        "trust_possible": False,
        "findings": [{"name": "kernel", "detail": "Linux 5.10.262"}],
        "strategy": {
            hop: {way: {"accelerated": hop in accelerated} for way in ("request", "response")}
            for hop in HOPS
        },
    }


def test_the_readme_shows_what_was_recorded() -> None:
    script = PROJECT / "build" / "vm" / "support.py"
    done = subprocess.run([script, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_readme_with_another_table_is_renewed(support: ModuleType, matrix: ModuleType) -> None:
    row = _row(matrix, [_answer(HOPS[1])] * 2 + [_answer(*HOPS)])
    old = f"before\n{support.BEGIN}| an old table |\n{support.END}after\n"
    new = support.renewed(old, [row])
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old table" not in new
    assert "| 5.10.262 | old | forced | forced | default | default |" in new
    assert support.renewed(new, [row]) == new


def _row(matrix: ModuleType, answers: list[dict[str, Any]]) -> dict[str, Any]:
    printed = "\n".join(json.dumps(answer, indent=2) for answer in answers)
    facts = matrix._facts(matrix.Ran(0, f"kernel 5.10: boots\n{printed}\n"))
    return {"name": "5.10", "steps": {}, **facts}


def test_a_kernel_that_is_refused_has_its_reasons(matrix: ModuleType) -> None:
    refused = {"usable": False, "reasons": ["lockdown: it is"]}
    facts = matrix._facts(matrix.Ran(1, json.dumps(refused)))
    assert facts == {"usable": False, "reasons": ["lockdown: it is"]}
    assert matrix._line({"name": "x", "steps": {}, **facts}) == "x: not usable: lockdown: it is"


@pytest.mark.parametrize(
    ("printed", "counts"),
    [
        (
            "..\n= 1 failed, 12 passed, 3 skipped in 4.2s =\n",
            {"failed": 1, "passed": 12, "skipped": 3},
        ),
        ("2 passed in 1s\nand again\n5 passed in 2s\nleft behind:\n", {"passed": 5}),
        ("no such line\n", {}),
    ],
)
def test_counts(matrix: ModuleType, printed: str, counts: dict[str, int]) -> None:
    assert matrix._counts(printed) == counts


def test_a_step_that_failed_is_told(support: ModuleType, matrix: ModuleType) -> None:
    row = _row(matrix, [_answer(*HOPS)] * 3)
    row["steps"] = {"tests": {"ok": False, "passed": 1200}, "stress": {"ok": True}}
    assert "| 1,200 passed (not ok) | run |" in support.table([row])
    assert not matrix._passed(row)


def test_steps_run_one_by_one_are_kept(
    support: ModuleType, matrix: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same release; another one has yet to show it all."""
    before = _row(matrix, [_answer(*HOPS)] * 3) | {"steps": {"essential": {"ok": True}}}
    monkeypatch.setattr(support, "read_results", lambda: [before])
    monkeypatch.setattr(matrix, "support", support)
    now = before | {"steps": {"stress": {"ok": True}}}
    assert [*matrix._merged([now])[0]["steps"]] == ["essential", "stress"]
    assert [*matrix._merged([now | {"release": "5.10.999"}])[0]["steps"]] == ["stress"]


def test_the_running_kernel_has_commands_of_its_own(
    matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(matrix, "PRIVATE_BPFFS", ":")
    arguments = argparse.Namespace(venv=tmp_path, logs=tmp_path)
    for step, said in (
        (matrix.Step("both", "echo emulated", 1, host="echo bare"), "bare"),
        (matrix.Step("one", "echo emulated", 1), "emulated"),
    ):
        assert matrix._run("host", step, arguments) == matrix.Ran(0, f"{said}\n")

"""What an agent does on a node that is not fit, without the node."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest

from accel import agent, state
from accel.cli import status
from accel.composing import Notice
from accel.core.strategy import Era
from accel.datapath import selftest
from accel.datapath.fitness import Finding, Fitness, Status
from accel.settings import Settings


def _fitness(*findings: Finding) -> Fitness:
    return Fitness("Linux", findings, None, trust_possible=False, enrol_apps_possible=False)


UNFIT = _fitness(Finding("self-test", Status.UNFIT, "not done after 60 s", "look again"))
BROKEN = _fitness(Finding("bpffs", Status.BROKEN, "not mounted", "mount it"))
FIT = _fitness(Finding("kernel", Status.OK, "Linux"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(run_dir=tmp_path)


def _answer(monkeypatch: pytest.MonkeyPatch, *answers: Fitness) -> None:
    """What examine() says, one after the other."""
    rest = iter(answers)
    monkeypatch.setattr(agent, "examine", lambda *_: next(rest))
    monkeypatch.setattr(agent, "_LOOK_AGAIN_SECONDS", 0)


def test_it_looks_again_and_says_each_reason_once(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _answer(monkeypatch, UNFIT, UNFIT, FIT)
    with caplog.at_level(logging.WARNING):
        assert anyio.run(agent._fit, settings, Notice(settings)) is FIT
    assert caplog.messages == [
        "this node is not accelerated: self-test: not done after 60 s (try: look again)"
    ]
    told = state.read(settings.run_dir)
    assert told is not None
    assert told.idle_reasons == ("self-test: not done after 60 s",)


def test_what_keeps_it_from_starting_is_in_its_status(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, BROKEN)
    with pytest.raises(agent.CannotStart, match="not mounted") as caught:
        anyio.run(agent._fit, settings, Notice(settings))
    assert caught.value.remedy == "mount it"
    told = state.read(settings.run_dir)
    assert told is not None
    assert told.idle_reasons == ("bpffs: not mounted",)


@pytest.mark.parametrize(
    ("pid", "pinned", "health"),
    [
        (None, False, "not running"),
        (None, True, "agent stopped, acceleration goes on"),
        (7, False, "idle"),
        (7, True, "agent idle, acceleration goes on"),
        (8, False, "starting"),
    ],
)
def test_health_of_an_idle_agent(
    settings: Settings, pid: int | None, pinned: bool, health: str
) -> None:
    told = agent._about(settings, UNFIT, None).base(usable=False)
    datapath: Any = SimpleNamespace(enabled=True) if pinned else None
    ours = msgspec.structs.replace(told, idle_reasons=UNFIT.reasons, pid=7)
    assert status._health(ours, pid, datapath) == health


def test_a_self_test_that_does_not_end_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "_DEADLINE_SECONDS", 0.001)
    facts = selftest.run(tmp_path)
    assert (facts.era, facts.usable) == (Era.UNKNOWN, False)
    assert facts.error == "not done after 0.001 s"
    assert facts.remedy is not None
    assert list(tmp_path.iterdir()) == []

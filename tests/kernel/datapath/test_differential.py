"""Stories told by TCP and accelerated; see tests/differential."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.differential.compare import part
from tests.differential.differences import DIFFERENCES, Difference, explain
from tests.differential.run import run
from tests.differential.stage import Mode, Stage, set_up
from tests.kernel.datapath.bed import Network
from tests.patience import few

pytestmark = pytest.mark.kernel

STORIES_A_MODE = few(120, least=40)
MINUTES = 10


@pytest.fixture
def stage(network: Network) -> Iterator[Stage]:
    with set_up(network) as stage:
        yield stage


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
def test_stories(stage: Stage, mode: Mode) -> None:
    """Some each time, always the same; tests/differential/run.py tells more."""
    signal.alarm(MINUTES * 60)
    tally = run(stage, mode, STORIES_A_MODE, 1, lambda mode, count: None)
    assert tally.complaints == []
    assert tally.redirected > 0 or not mode.redirects(stage.facts)


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.name)
def test_listed_difference_is_there(stage: Stage, difference: Difference) -> None:
    """In each mode in which it is said to be, and in no other; proxies do no such thing."""
    signal.alarm(MINUTES * 60)
    for mode in Mode:
        if mode.app is None and not difference.occurs(mode, stage.facts):
            continue
        parting = part(stage, mode, difference.story(mode))
        if difference.occurs(mode, stage.facts):
            assert parting is not None, f"no longer different in {mode.value}"
            found = explain(parting)
            assert found is difference, parting
        else:
            assert parting is None, str(parting)

"""Why a direction is not accelerated: the reason that holds, and no other."""

from __future__ import annotations

import pytest

from accel.core.plan import Policy
from accel.core.strategy import Era, bears_enrolled_apps, strategy

INTO_APP = (("app-sidecar", "response"), ("sidecar-app", "request"))


def _policy(
    era: Era, *, trust_possible: bool = False, trust_apps: bool, trust_forced: bool = False
) -> Policy:
    return Policy(trust_apps, trust_possible, trust_forced, bears_enrolled_apps(era))


@pytest.mark.parametrize("era", Era)
def test_into_sidecars_by_default_and_into_apps_by_force(era: Era) -> None:
    for forced in (False, True):
        paths = strategy(_policy(era, trust_apps=forced, trust_forced=forced), era)
        assert paths["sidecar-sidecar"]["request"].accelerated
        assert {paths[hop][way].accelerated for hop, way in INTO_APP} == {forced}


@pytest.mark.parametrize(
    ("era", "reason"),
    [
        (Era.OLD, "does not count redirected bytes"),
        (Era.REGRESSED, "two queues, or a known bug"),
        (Era.FIXED, "two queues, or a known bug"),
        (Era.UNKNOWN, "two queues, or a known bug"),
    ],
)
def test_trust_is_refused_with_the_reason(era: Era, reason: str) -> None:
    paths = strategy(_policy(era, trust_apps=True), era)
    for hop, way in INTO_APP:
        assert not paths[hop][way].accelerated
        said = paths[hop][way].reason or ""
        assert said.startswith("trust refused: ")
        assert reason in said
        assert "--force-trust" in said


@pytest.mark.parametrize("era", [Era.REGRESSED, Era.FIXED])
def test_trust_where_the_kernel_bears_it(era: Era) -> None:
    paths = strategy(_policy(era, trust_apps=True, trust_possible=True), era)
    assert all(path.accelerated for ways in paths.values() for path in ways.values())

"""Why a direction is not accelerated: the reason that holds, and no other."""

from __future__ import annotations

import pytest

from accel.core.plan import Policy
from accel.core.strategy import Era, bears_enrolled_apps, bears_trust, strategy

INTO_APP = (("app-sidecar", "response"), ("sidecar-app", "request"))


def _policy(era: Era, **more: bool) -> Policy:
    told = {"trust_possible": bears_trust(era), "enrol_apps_possible": bears_enrolled_apps(era)}
    return Policy(**(told | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("era", Era)
def test_into_sidecars_by_default_and_into_apps_by_force(era: Era) -> None:
    for forced in (False, True):
        paths = strategy(_policy(era, trust_apps=forced, trust_forced=forced), era)
        assert paths["sidecar-sidecar"]["request"].accelerated
        assert {paths[hop][way].accelerated for hop, way in INTO_APP} == {forced}


@pytest.mark.parametrize(
    ("era", "bug", "reason"),
    [
        (Era.OLD, False, "does not count redirected bytes"),
        (Era.REGRESSED, False, "misses the TCP bytes"),
        (Era.UNKNOWN, False, "could not be found out"),
        (Era.FIXED, True, "a known bug of this kernel"),
    ],
)
def test_trust_is_refused_with_the_reason(era: Era, bug: bool, reason: str) -> None:
    policy = _policy(era, trust_apps=True, **({"trust_possible": False} if bug else {}))
    paths = strategy(policy, era)
    for hop, way in INTO_APP:
        assert not paths[hop][way].accelerated
        said = paths[hop][way].reason or ""
        assert said.startswith("trust refused: ")
        assert reason in said
        assert "--force-trust" in said


def test_trust_where_the_kernel_bears_it() -> None:
    paths = strategy(_policy(Era.FIXED, trust_apps=True), Era.FIXED)
    assert all(path.accelerated for ways in paths.values() for path in ways.values())

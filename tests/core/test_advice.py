"""Annotations, read word for word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import ACCELERATE, NO_ADVICE, TRUST_APPS, Advice, read_advice


def test_what_is_said() -> None:
    assert read_advice({}) == NO_ADVICE
    assert read_advice({"app": "web", "accel.development/x": "1"}) == NO_ADVICE
    assert read_advice({ACCELERATE: "false", TRUST_APPS: "true", "app": "web"}) == Advice(
        trust_apps=True, accelerate=False
    )
    assert read_advice({TRUST_APPS: "true"}) == Advice(trust_apps=True)


@pytest.mark.parametrize("value", ["True", "yes", "1", "", " true", "true\n", "on", "да"])
def test_what_is_not_understood_counts_as_false_and_is_told(value: str) -> None:
    for key in (ACCELERATE, TRUST_APPS):
        advice = read_advice({key: value})

        assert (advice.accelerate, advice.trust_apps) == (
            (False, None) if key == ACCELERATE else (None, False)
        )
        (mistake,) = advice.mistakes
        assert mistake == f'{key} is {value!r}, neither "true" nor "false": taken for "false"'


def test_a_key_that_is_not_known_changes_nothing_and_is_told() -> None:
    advice = read_advice({"accel.dev/trust-app": "true", "accel.dev/x": "", TRUST_APPS: "true"})

    assert advice.trust_apps is True
    (mistake,) = advice.mistakes
    assert mistake == (
        "accel.dev/trust-app, accel.dev/x: not known, so ignored "
        "(known: accel.dev/accelerate, accel.dev/trust-apps)"
    )


def test_a_pod_cannot_flood_the_notes() -> None:
    hostile = {f"accel.dev/{i:04}{'x' * 200}": "true" for i in range(1000)}

    advice = read_advice({**hostile, TRUST_APPS: "y" * 200_000})

    assert sum(map(len, advice.mistakes)) < 400
    assert "and 997 more" in advice.mistakes[1]


@given(st.dictionaries(st.sampled_from([ACCELERATE, TRUST_APPS]) | st.text(), st.text()))
def test_only_true_switches_on(annotations: dict[str, str]) -> None:
    advice = read_advice(annotations)

    assert (advice.accelerate is True) == (annotations.get(ACCELERATE) == "true")
    assert (advice.trust_apps is True) == (annotations.get(TRUST_APPS) == "true")
    assert all(mistake.isprintable() for mistake in advice.mistakes)

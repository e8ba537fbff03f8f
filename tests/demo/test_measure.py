"""Rounds are interleaved fairly and summed up by medians."""

from __future__ import annotations

import pytest

from accel.demo.errors import TestbedError
from accel.demo.load import Sample, parse
from accel.demo.measure import Figures, Pair, compare, interleave


def sample(p50: float = 100, p99: float = 200, rps: float = 1000, errors: int = 0) -> Sample:
    return Sample(p50, p99, rps, errors)


def test_every_other_round_begins_with_the_other_side() -> None:
    """A drift of the machine within a round favours each side as often as the other."""
    order: list[str] = []

    def side(name: str, rps: float) -> Sample:
        order.append(name)
        return sample(rps=rps)

    ticks: list[None] = []
    pairs = interleave(
        3, lambda: side("plain", 1), lambda: side("accelerated", 2), lambda: ticks.append(None)
    )

    assert order == ["plain", "accelerated", "accelerated", "plain", "plain", "accelerated"]
    assert pairs == [Pair(sample(rps=1), sample(rps=2))] * 3
    assert len(ticks) == 6


def test_one_bad_round_does_not_move_the_medians() -> None:
    good = Pair(sample(100, 200, 1000), sample(50, 100, 2000))
    stalled = Pair(sample(9000, 9000, 10), sample(9000, 9000, 10))

    result = compare([good, stalled, good])

    assert result.plain == Figures(100, 200, 1000)
    assert result.accelerated == Figures(50, 100, 2000)
    assert result.ratio == Figures(0.5, 0.5, 2.0)


def test_a_ratio_is_taken_within_its_round() -> None:
    """The machine was half as fast in the second round; the gain was the same."""
    pairs = [
        Pair(sample(rps=1000), sample(rps=1500)),
        Pair(sample(rps=500), sample(rps=750)),
    ]

    assert compare(pairs).ratio.rps == 1.5


def test_failures_of_all_rounds_and_sides_add_up() -> None:
    pairs = [Pair(sample(errors=1), sample(errors=2)), Pair(sample(), sample(errors=4))]

    assert compare(pairs).errors == 7


def test_the_numbers_come_after_wrks_own_report() -> None:
    output = (
        b"Running 1s test @ http://10.0.0.3:8080/\n  1 threads and 16 connections\n\n"
        b'{"p50_us": 1500, "p99_us": 4000, "requests": 5000, "duration_us": 2000000, "errors": 3}\n'
    )

    assert parse(output) == Sample(p50_us=1500, p99_us=4000, rps=2500, errors=3)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"unable to connect to 10.0.0.3:8080 Connection refused\n",
        b'{"p50_us": 0, "p99_us": 0, "requests": 0, "duration_us": 1000000, "errors": 16}\n',
    ],
)
def test_no_numbers_or_no_request_is_an_error(output: bytes) -> None:
    with pytest.raises(TestbedError):
        parse(output)

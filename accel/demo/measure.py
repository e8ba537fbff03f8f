"""Before and after, interleaved: what else the machine does then touches both alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from accel.demo.load import Sample


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: the same load, plain and accelerated."""

    plain: Sample
    accelerated: Sample


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds of one side, in the units of Sample."""

    p50_us: float
    p99_us: float
    rps: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides, their ratio (accelerated / plain) and the failures of both."""

    plain: Figures
    accelerated: Figures
    ratio: Figures
    errors: int


def interleave(
    rounds: int,
    plain: Callable[[], Sample],
    accelerated: Callable[[], Sample],
    measured: Callable[[], None],
) -> list[Pair]:
    """Measure both sides in turn; every other round begins with the other side.

    Args:
        rounds: How many pairs.
        plain: One measurement without acceleration.
        accelerated: One measurement with it.
        measured: Told after each of the 2 * rounds measurements.
    """
    pairs = []
    for number in range(rounds):
        samples = {}
        for side in (plain, accelerated) if number % 2 == 0 else (accelerated, plain):
            samples[side] = side()
            measured()
        pairs.append(Pair(samples[plain], samples[accelerated]))
    return pairs


def compare(pairs: Sequence[Pair]) -> Comparison:
    """Medians of each side, and the median of the ratios within the rounds.

    A ratio within a round is free of what slowed the machine in that round; the ratio of
    two medians taken from different rounds is not.
    """
    sides = [pair.plain for pair in pairs], [pair.accelerated for pair in pairs]
    return Comparison(
        plain=_medians(sides[0]),
        accelerated=_medians(sides[1]),
        ratio=_medians([_ratio(pair) for pair in pairs]),
        errors=sum(sample.errors for side in sides for sample in side),
    )


def _ratio(pair: Pair) -> Figures:
    return Figures(
        pair.accelerated.p50_us / pair.plain.p50_us,
        pair.accelerated.p99_us / pair.plain.p99_us,
        pair.accelerated.rps / pair.plain.rps,
    )


def _medians(items: Iterable[Sample | Figures]) -> Figures:
    items = list(items)
    return Figures(
        statistics.median(item.p50_us for item in items),
        statistics.median(item.p99_us for item in items),
        statistics.median(item.rps for item in items),
    )

"""How long tests wait for what should happen: longer where everything takes longer.

TEST_PATIENCE says how many times the usual; build/vm/run sets it for its emulated machines.
"""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("TEST_PATIENCE", "1"))


def scaled(seconds: float) -> float:
    """A deadline that is that many seconds on an ordinary machine."""
    return seconds * FACTOR


def few(many: int, least: int = 1) -> int:
    """How often to repeat what is repeated `many` times on an ordinary machine."""
    return max(least, round(many / FACTOR))


def stride() -> int:
    """Of a number of steps that are all tried on an ordinary machine, to try each such."""
    return max(1, round(FACTOR / 3))

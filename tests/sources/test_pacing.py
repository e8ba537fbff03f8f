"""How long to wait after a failure, and what is said of it."""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.errors import AccelError
from accel.sources.pacing import Backoff, Complaint


@given(st.integers())
def test_waits_double_up_to_a_limit(seed: int) -> None:
    backoff = Backoff(random.Random(seed))

    waits = [backoff.seconds(float(attempt)) for attempt in range(8)]

    for wait, step in zip(waits, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30], strict=True):
        assert step / 2 <= wait <= step


def test_after_a_good_while_the_next_failure_is_the_first() -> None:
    backoff = Backoff(random.Random(1))
    for attempt in range(6):
        backoff.seconds(float(attempt))

    assert backoff.seconds(5.0 + Backoff.RESET_SECONDS) <= Backoff.FIRST_SECONDS


def test_a_complaint_is_made_once_and_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    complaint = Complaint("annotations")
    with caplog.at_level(logging.INFO):
        complaint.over()
        for _ in range(3):
            complaint.say(AccelError("no route", remedy="dig"))
        complaint.say(AccelError("no answer"))
        complaint.over()
        complaint.over()
        complaint.say(AccelError("no answer"))

    assert [record.getMessage() for record in caplog.records] == [
        "annotations: no route (try: dig); trying again",
        "annotations: no answer; trying again",
        "annotations: works again",
        "annotations: no answer; trying again",
    ]

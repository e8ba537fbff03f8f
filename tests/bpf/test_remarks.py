"""A file does not decide how much is remarked on it."""

from __future__ import annotations

from accel.bpf.opening.remarks import MOST, Remarks


def test_remarks_end() -> None:
    remarks = Remarks()

    for number in range(10 * MOST):
        remarks.append(f"{number} left out")

    assert remarks[MOST - 1] == f"{MOST - 1} left out"
    assert remarks[MOST:] == ["and more that are not listed"]

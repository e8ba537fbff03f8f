"""Fd owns one descriptor."""

from __future__ import annotations

import gc
import os
import select

import pytest

from accel.bpf.door.fd import Fd


def test_it_closes_once() -> None:
    """After the first close the number may be someone else's."""
    fd = Fd(os.open("/dev/null", os.O_RDONLY))
    fd.close()
    other = os.open("/dev/null", os.O_RDONLY)
    try:
        fd.close()

        os.fstat(other)
    finally:
        os.close(other)


def test_a_closed_one_has_no_number() -> None:
    fd = Fd(os.open("/dev/null", os.O_RDONLY))
    with fd:
        assert os.fstat(fd.fileno())

    assert fd.closed
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()


def test_it_stays_away_from_the_standard_streams() -> None:
    """bpf(2) reads descriptor 0 as "none"."""
    kept = os.dup(0)
    try:
        os.close(0)
        with Fd(os.open("/dev/null", os.O_RDONLY)) as fd:
            assert fd.fileno() > 2
            assert not os.get_inheritable(fd.fileno())
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)


def test_select_takes_it() -> None:
    reader, writer = os.pipe()
    with Fd(reader) as fd, Fd(writer):
        assert select.select([fd], [], [], 0) == ([], [], [])


def test_a_forgotten_one_complains_and_is_closed() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    fd = Fd(number)

    with pytest.warns(ResourceWarning, match=f"unclosed <Fd {number}>"):  # noqa: PT031
        del fd
        gc.collect()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)

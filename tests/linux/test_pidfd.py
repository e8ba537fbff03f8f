"""Ends of real processes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import closing

import anyio
import pytest

from accel.errors import LinuxError
from accel.linux.pidfd import Lives, allow_many
from tests.patience import scaled


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "infinity"]) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def lives() -> Iterator[Lives[str]]:
    before = os.listdir("/proc/self/fd")
    with closing(Lives[str]()) as lives:
        yield lives
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.anyio
async def test_ends_are_told_once(
    lives: Lives[str], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    for key, process in zip("abc", sleepers, strict=True):
        assert lives.watch(key, process.pid)
    for process in sleepers[:2]:
        process.kill()
    ended: set[str] = set()
    with anyio.fail_after(scaled(10)):
        while ended != {"a", "b"}:
            news = await lives.wait()
            assert ended.isdisjoint(news)
            ended |= set(news)
    assert [lives.alive(key) for key in "abc"] == [False, False, True]


@pytest.mark.anyio
async def test_what_is_forgotten_may_end(
    lives: Lives[str], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    for key, process in zip("abc", sleepers, strict=True):
        lives.watch(key, process.pid)
    lives.forget("a")
    lives.watch("b", sleepers[2].pid)  # instead of another
    for process in sleepers[:2]:
        process.kill()
        process.wait()
    sleepers[2].kill()
    ended: set[str] = set()
    with anyio.fail_after(scaled(10)):
        while ended != {"b", "c"}:
            ended |= set(await lives.wait())


def test_what_has_ended_cannot_be_watched(
    lives: Lives[str], sleepers: list[subprocess.Popen[bytes]]
) -> None:
    sleepers[0].kill()
    os.waitid(os.P_PID, sleepers[0].pid, os.WEXITED | os.WNOWAIT)
    assert not lives.watch("zombie", sleepers[0].pid)
    sleepers[0].wait()
    assert not lives.watch("gone", sleepers[0].pid)
    for nonsense in (0, 1 << 31, 1 << 32):
        assert not lives.watch("nonsense", nonsense)
    assert not lives.alive("nobody")


def test_no_descriptor_is_left_until_many_are_allowed(lives: Lives[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        with pytest.raises(LinuxError, match="watch process 1: Too many open files") as caught:
            lives.watch("first", 1)
        assert caught.value.remedy is not None
        allow_many()
        assert lives.watch("first", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

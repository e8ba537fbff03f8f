"""The load client: wrk, asked for exact numbers instead of its rounded prose."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from accel.demo.container import Container
from accel.demo.errors import MissingProgram, TestbedError
from accel.demo.process import Process

WRK_REMEDY = "apt-get install wrk"
GRACE_SECONDS = 30.0
LONG_SECONDS = 3600

SCRIPT = """\
done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        '\\n{"p50_us": %d, "p99_us": %d, "requests": %d, "duration_us": %d, "errors": %d}\\n',
        latency:percentile(50), latency:percentile(99), summary.requests, summary.duration,
        e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one measurement gave.

    Attributes:
        p50_us: Median latency of a request, in microseconds.
        p99_us: Its 99th percentile.
        rps: Requests answered in a second.
        errors: Failed connects, reads, writes and timeouts, and answers other than 2xx or 3xx.
    """

    p50_us: float
    p99_us: float
    rps: float
    errors: int


class _Summary(msgspec.Struct):
    p50_us: int
    p99_us: int
    requests: int
    duration_us: int
    errors: int


class LoadClient:
    """wrk in a container; it makes new connections each time it runs."""

    def __init__(self, container: Container, directory: Path) -> None:
        if shutil.which("wrk") is None:
            raise MissingProgram("wrk", remedy=WRK_REMEDY)
        self._container = container
        self._script = directory / "report.lua"
        self._script.write_text(SCRIPT)
        for path in (directory, self._script):
            container.give(path)

    def run(self, url: str, *, connections: int, seconds: int) -> Sample:
        """Ask for `url` as fast as the answers come.

        Raises:
            TestbedError: wrk failed, or no request was answered at all.
        """
        argv = self._argv(url, connections, seconds)
        done = self._container.run(argv, seconds=seconds + GRACE_SECONDS)
        if done.returncode != 0:
            words = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise TestbedError(f"wrk {url} ended with status {done.returncode}: {words}")
        return parse(done.stdout)

    def running(self, url: str, *, connections: int) -> AbstractContextManager[Process]:
        """The same without numbers, for as long as the context lasts."""
        return self._container.started(self._argv(url, connections, LONG_SECONDS))

    def _argv(self, url: str, connections: int, seconds: int) -> tuple[str, ...]:
        return (
            *("wrk", "--threads", "1", "--connections", str(connections)),
            *("--duration", f"{seconds}s", "--timeout", "10s"),
            *("--script", str(self._script), url),
        )


def parse(output: bytes) -> Sample:
    """The numbers in what wrk wrote; its own report comes before them.

    Raises:
        TestbedError: They are not there, or tell of no request.
    """
    last = output.strip().rpartition(b"\n")[2]
    try:
        summary = msgspec.json.decode(last, type=_Summary)
    except msgspec.DecodeError as error:
        raise TestbedError(f"wrk gave no numbers: {error}; it wrote {last!r}") from error
    if summary.requests == 0:
        raise TestbedError(f"not one request was answered, {summary.errors} failed")
    rps = summary.requests * 1e6 / summary.duration_us
    return Sample(summary.p50_us, summary.p99_us, rps, summary.errors)

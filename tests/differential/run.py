"""Tells stories by TCP and accelerated, by the ten thousand: no difference that is not listed.

    .venv/bin/python tests/differential/run.py --count 20000 [--seed N] [--mode MODE] [--json]

As root.  Prints each unlisted difference, made small, as a story that can be pasted into a
test; exits 1 if there was any.  The same seed draws the same stories.  All of it happens
in namespaces and cgroups of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tests.differential.calls import Story
from tests.differential.compare import part, short
from tests.differential.differences import explain
from tests.differential.stage import Mode, Stage, Stuck, set_up
from tests.differential.stories import stories
from tests.kernel.conftest import cgroup2_mount
from tests.kernel.datapath.bed import Network

BATCH = 250

Progress = Callable[[Mode, int], None]


class Tally(msgspec.Struct):
    """What came of one mode.

    Attributes:
        told: Stories.
        whole: Those without a difference, to their end.
        listed: Those that ended at a listed difference, by its name.
        redirected: Messages.
        complaints: Unlisted differences and stories that got stuck; each has its story.
    """

    mode: str
    told: int = 0
    whole: int = 0
    listed: dict[str, int] = {}
    redirected: int = 0
    complaints: list[str] = []


class Unlisted(AssertionError):
    """A difference that is in no table."""


def run(stage: Stage, mode: Mode, count: int, seed: int, progress: Progress) -> Tally:
    """Tell `count` stories.  Ends with the first batch that had something to complain of."""
    listed: Counter[str] = Counter()
    tally = Tally(mode.value)
    before = _redirected(stage)
    for batch in range(0, count, BATCH):
        size = min(BATCH, count - batch)
        tally.told += size
        complaint = _batch(stage, mode, size, seed * 1_000_003 + batch, listed)
        progress(mode, size)
        if complaint is not None:
            tally.complaints.append(complaint)
            break
    tally.listed = dict(sorted(listed.items()))
    tally.whole = tally.told - sum(listed.values()) - len(tally.complaints)
    tally.redirected = _redirected(stage) - before
    return tally


def _batch(stage: Stage, mode: Mode, count: int, seed: int, listed: Counter[str]) -> str | None:
    last: list[str] = []
    stuck: list[str] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(stories(mode))
    def try_one(story: Story) -> None:
        try:
            parting = part(stage, mode, story)
        except Stuck as e:  # not made smaller: each try would take as long
            stuck.append(f"{mode.value}: {e}, in\n    {short(story)}")
            return
        if parting is None:
            return
        difference = explain(parting)
        if difference is None:
            last[:] = [str(parting)]
            raise Unlisted(str(parting))
        if not last:
            listed[difference.name] += 1

    try:
        try_one()
    except Exception:
        if not last:
            raise
    return (stuck + last)[-1] if stuck or last else None


def _redirected(stage: Stage) -> int:
    return stage.bed.datapath.statistics().total.messages_redirected


def tell(
    network: Network, count: int, seed: int, modes: list[Mode], progress: Progress
) -> Iterator[Tally]:
    """`count` stories, evenly over `modes`."""
    each = -(-count // len(modes))
    with set_up(network) as stage:
        for mode in modes:
            yield run(stage, mode, each, seed, progress)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", action="append", type=Mode, choices=list(Mode))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    root = cgroup2_mount()
    if os.geteuid() != 0 or root is None:
        parser.error("run as root, with the cgroup v2 file system writable")
    modes = asked.mode or list(Mode)
    began = time.monotonic()
    done = 0

    def progress(mode: Mode, more: int) -> None:
        nonlocal done
        done += more
        seconds = time.monotonic() - began
        print(
            f"\r{done:6} of {asked.count}, {mode.value}, {seconds:.0f} s ", end="", file=sys.stderr
        )

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    tallies = []
    with Network(root / f"accel-differential-{uuid4().hex[:12]}") as network:
        for tally in tell(network, asked.count, asked.seed, modes, progress):
            print(file=sys.stderr)
            tallies.append(tally)
            if not asked.json:
                _print(tally)
    if asked.json:
        print(json.dumps(msgspec.to_builtins(tallies), indent=2))
    else:
        wrong = sum(len(tally.complaints) for tally in tallies)
        told = sum(tally.told for tally in tallies)
        print(f"{told - wrong} passed, {wrong} failed")  # as build/vm/matrix counts
    return 1 if any(tally.complaints for tally in tallies) else 0


def _print(tally: Tally) -> None:
    listed = ", ".join(f"{name} {count}" for name, count in tally.listed.items())
    print(
        f"{tally.mode}: {tally.told} stories, {tally.whole} the same to their end, "
        f"{tally.redirected} messages redirected; listed differences: {listed or 'none'}"
    )
    for complaint in tally.complaints:
        print(f"  UNLISTED {complaint}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Opens damaged objects by the hundred thousand; only ObjectError may come of it.

    .venv/bin/python tests/fuzz/run.py --count 100000 [--seed N] [--jobs N] [OBJECT ...]

Without OBJECTs: the accelerator's own, those of tests/objects, and what build/corpus has
fetched.  No mutant reaches the kernel.  Every batch has a process of its own, which may
not hold more than 512 MB nor take more than five seconds for one mutant.  Prints each
broken promise with the number that makes the mutant again; exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tests.fuzz.trial import SECONDS

BATCH = 500


class Result(NamedTuple):
    """What a batch came to.

    Attributes:
        complaints: One line each.
        peak_kib: The most memory its process held.
    """

    complaints: list[str]
    peak_kib: int


def run_batch(
    objects: Sequence[Path],
    first: int,
    count: int,
    *,
    keep: Path | None = None,
    as_they_are: bool = False,
) -> Result:
    """Try mutants `first` to `first + count`, or the objects, in a process of their own."""
    command = [sys.executable, "-m", "tests.fuzz.trial", str(first), str(count)]
    if as_they_are:
        command.append("--as-they-are")
    if keep is not None:
        command += ["--keep", str(keep)]
    try:
        done = subprocess.run(
            [*command, *map(str, objects)],
            check=False,  # a worker that dies is a finding
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60 + count * SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Result([f"mutants {first} to {first + count}: the process hangs"], 0)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    complaints = [_describe(line) for line in lines if "broke" in line]
    finished = next((line for line in lines if "done" in line), None)
    if finished is None:
        error = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        complaints.append(f"mutants {first} to {first + count}: the process died: {error[0]}")
    return Result(complaints, finished["peak_kib"] if finished else 0)


def _describe(line: dict[str, Any]) -> str:
    return f"mutant {line['number']} of {line['object']}: {line['broke']}"


def own_objects() -> Iterator[Path]:
    """What can be had without compiling anything."""
    yield from sorted((PROJECT / "accel/datapath").glob("*.o"))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    yield from sorted((cache / "accel-objects").glob("*/**/*.o"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000, help="mutants (100,000)")
    parser.add_argument("--seed", type=int, default=0, help="where to start counting them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="write offending mutants to this directory")
    parser.add_argument("objects", nargs="*", type=Path)
    chosen = parser.parse_args()
    objects = [path.resolve() for path in chosen.objects or own_objects()]
    if not objects:
        parser.error("no objects: run build/setup test first, or name some")
    if chosen.keep is not None:
        chosen.keep.mkdir(parents=True, exist_ok=True)
    return _run_all(objects, chosen)


def _run_all(objects: Sequence[Path], chosen: argparse.Namespace) -> int:
    from rich.progress import Progress

    broken, peak = 0, 0
    starts = range(chosen.seed, chosen.seed + chosen.count, BATCH)
    end = chosen.seed + chosen.count
    with Progress() as progress, ThreadPoolExecutor(chosen.jobs) as pool:
        task = progress.add_task(f"{len(objects)} objects", total=chosen.count)
        running = {
            pool.submit(run_batch, objects, start, min(BATCH, end - start), keep=chosen.keep): min(
                BATCH, end - start
            )
            for start in starts
        }
        for finished in as_completed(running):
            result = finished.result()
            for complaint in result.complaints:
                progress.console.print(complaint, markup=False, soft_wrap=True)
            broken += len(result.complaints)
            peak = max(peak, result.peak_kib)
            progress.advance(task, running[finished])
    print(f"{chosen.count} mutants of {len(objects)} objects: {broken} broke a promise")
    print(f"the largest process held {peak / 1024:.0f} MB")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

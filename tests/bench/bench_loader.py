"""Opening and loading the accelerator's own object, ours beside bpftool.

    sudo .venv/bin/python tests/bench/bench_loader.py

Both verify the same programs and find the same kernel types, neither keeps anything.
Times are processor time, user's and kernel's together, because the rest of a shared machine
is not in it; elapsed time stands beside it.  bpftool's is that of its whole process, of which
`bpftool version` shows how much is its start; ours is taken inside a fresh interpreter, from
open_object() to the last program verified, and the import is shown by itself.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from rich.console import Console
from rich.table import Table

OBJECT = PROJECT / f"accel/datapath/accel.bpf{'el' if sys.byteorder == 'little' else 'eb'}.o"
ROUNDS = 15

_OURS = """
import json, resource, sys, time
def now():
    return time.process_time(), time.perf_counter()
start = now()
import accel.bpf as bpf
imported = now()
spec = bpf.open_object(sys.argv[1])
opened = now()
with bpf.load(spec):
    loaded = now()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([start, imported, opened, loaded, [peak / 1024]]))
"""
_FIELD = """
import json, time
from accel.bpf import KernelBtf
start = time.process_time(), time.perf_counter()
with KernelBtf.open() as types:
    types.struct_field("tcp_sock", "copied_seq")
print(json.dumps([start, [time.process_time(), time.perf_counter()]]))
"""
# Where bpftool pins what it loads: a file system of BPF's own, which goes with this process.
_PINS = Path("/mnt")

Clocks = tuple[float, float]
"""Milliseconds of processor time, and elapsed."""


def _python(script: str, *arguments: str) -> list[list[float]]:
    """What the script printed; run once before, it finds compiled modules, as users do."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    printed: list[list[float]] = json.loads(done.stdout)
    return printed


def _between(start: list[float], end: list[float]) -> Clocks:
    return (end[0] - start[0]) * 1e3, (end[1] - start[1]) * 1e3


def _bpftool(*arguments: str) -> Clocks:
    """A run of bpftool, all of its process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["bpftool", *arguments], check=True, capture_output=True)
    elapsed = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    shutil.rmtree(_PINS / "o", ignore_errors=True)
    return used * 1e3, elapsed * 1e3


def main() -> None:
    if shutil.which("bpftool") is None:
        sys.exit("needs bpftool")
    if sys.argv[1:] != ["--within"]:
        os.execvp("unshare", ["unshare", "--mount", sys.executable, __file__, "--within"])
    subprocess.run(["mount", "-t", "bpf", "bpf", str(_PINS)], check=True)
    _python(_OURS, str(OBJECT))
    times: dict[str, list[Clocks]] = {}
    peaks = []
    for _ in range(ROUNDS):
        start, imported, opened, loaded, (peak,) = _python(_OURS, str(OBJECT))
        field = _python(_FIELD)
        for what, clocks in {
            "bpftool version": _bpftool("version"),
            "bpftool prog loadall": _bpftool("prog", "loadall", str(OBJECT), str(_PINS / "o")),
            "open + load": _between(imported, loaded),
            "  open": _between(imported, opened),
            "  load": _between(opened, loaded),
            "import accel.bpf": _between(start, imported),
            "first CO-RE field": _between(*field),
        }.items():
            times.setdefault(what, []).append(clocks)
        peaks.append(peak)
    table = Table(title=f"{OBJECT.name}: medians of {ROUNDS} interleaved rounds")
    for column in ("", "processor ms", "least", "elapsed ms", "of bpftool's"):
        table.add_column(column, justify="right" if column else "left")
    theirs = statistics.median(used for used, _ in times["bpftool prog loadall"])
    for what, measured in times.items():
        used = statistics.median(used for used, _ in measured)
        table.add_row(
            what,
            f"{used:.1f}",
            f"{min(used for used, _ in measured):.1f}",
            f"{statistics.median(elapsed for _, elapsed in measured):.1f}",
            f"{used / theirs:.2f}" if what in ("bpftool prog loadall", "open + load") else "",
        )
    Console().print(table)
    Console().print(f"peak memory of the process: {max(peaks):.0f} MB")
    Console().print(f"load average: {', '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()

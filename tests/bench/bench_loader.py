"""Opening and loading the accelerator's own object, ours beside bpftool.

    sudo .venv/bin/python tests/bench/bench_loader.py

bpftool's time is that of its whole process, ours is taken inside a fresh interpreter, from
open_object() to the last program verified; the import is shown by itself.  Both verify
the same programs and find the same kernel types, neither keeps anything.
"""

from __future__ import annotations

import json
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
start = time.perf_counter()
import accel.bpf as bpf
imported = time.perf_counter()
spec = bpf.open_object(sys.argv[1])
opened = time.perf_counter()
with bpf.load(spec):
    loaded = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([imported - start, opened - imported, loaded - opened, peak / 1024]))
"""
_FIELD = """
import time
from accel.bpf import KernelBtf
start = time.perf_counter()
with KernelBtf.open() as types:
    types.struct_field("tcp_sock", "copied_seq")
print(time.perf_counter() - start)
"""
# A file system of BPF's own, which goes with the process: bpftool wants a place for its pins.
_THEIRS = 'mount -t bpf bpf /mnt && date +%s%N && bpftool prog loadall "$1" /mnt/o && date +%s%N'


def _python(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=True,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def _bpftool_ms() -> float:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _THEIRS, "sh", str(OBJECT)],
        check=True,
        capture_output=True,
        text=True,
    )
    before, after = map(int, done.stdout.split())
    return (after - before) / 1e6


def main() -> None:
    if shutil.which("bpftool") is None:
        sys.exit("needs bpftool")
    theirs, fields = [], []
    ours: list[list[float]] = []
    for _ in range(ROUNDS):
        theirs.append(_bpftool_ms())
        ours.append(json.loads(_python(_OURS, str(OBJECT))))
        fields.append(float(_python(_FIELD)) * 1e3)
        time.sleep(0.05)
    imported, opened, loaded, peak = (statistics.median(part) for part in zip(*ours, strict=True))
    bpftool = statistics.median(theirs)
    table = Table(title=f"{OBJECT.name}: medians of {ROUNDS} interleaved rounds")
    for column in ("", "ms", "of bpftool's"):
        table.add_column(column, justify="right")
    both = (opened + loaded) * 1e3
    table.add_row("bpftool prog loadall", f"{bpftool:.1f}", "1.00")
    table.add_row("open + load", f"{both:.1f}", f"{both / bpftool:.2f}")
    table.add_row("  open", f"{opened * 1e3:.1f}", "")
    table.add_row("  load", f"{loaded * 1e3:.1f}", "")
    table.add_row("import accel.bpf", f"{imported * 1e3:.1f}", "")
    table.add_row("first CO-RE field", f"{statistics.median(fields):.1f}", "")
    Console().print(table)
    Console().print(f"peak memory of the process: {peak:.0f} MB")


if __name__ == "__main__":
    main()

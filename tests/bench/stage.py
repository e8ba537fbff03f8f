"""What the data path's benches share: a private bed, interleaving, and a table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from tests.kernel.conftest import cgroup2_mount
from tests.kernel.datapath.bed import Bed, Network, attached


@contextmanager
def network() -> Iterator[Network]:
    """Two pods, a namespace that is none, and host sockets; nothing attached yet."""
    root = cgroup2_mount()
    if root is None:
        sys.exit("no writable cgroup v2 mount")
    with Network(root / f"accel-bench-{uuid4().hex[:12]}") as made:
        yield made


@contextmanager
def trusting_bed() -> Iterator[Bed]:
    """The programs attached, and every hop and direction allowed."""
    with network() as made, attached(made) as bed:
        bed.trust()
        yield bed


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each case, tried in turn: what the machine does meanwhile meets all alike."""
    results: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, measure in cases.items():
            results[name].append(measure())
    return {name: statistics.median(values) for name, values in results.items()}


class Report:
    """A table that is printed when it is complete."""

    def __init__(self, title: str, *columns: str) -> None:
        self._table = Table(title=title)
        for column in columns:
            self._table.add_column(column, justify="right")

    def row(self, *cells: str) -> None:
        self._table.add_row(*cells)

    def show(self) -> None:
        Console().print(self._table)

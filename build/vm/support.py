#!/usr/bin/env python3
"""The support table of the README, made of docs/kernels.json.

build/vm/support.py           writes the table between its markers
build/vm/support.py --check   exit status 1 if it is another
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
RESULTS = PROJECT / "docs" / "kernels.json"
README = PROJECT / "README.md"

BEGIN = "<!-- from docs/kernels.json by build/vm/support.py -->\n"
END = "<!-- end -->\n"

# Who must be told to trust applications, for a direction to be accelerated: nobody, ...
LEVELS = ("default", "trusted", "forced")

Row = Mapping[str, Any]


def table(rows: Iterable[Row]) -> str:
    """One line for each kernel, in Markdown."""
    rows = list(rows)
    ways = [(hop, way) for hop, both in rows[0]["default"].items() for way in both]
    steps = list(dict.fromkeys(step for row in rows for step in row["steps"]))
    head = ["Linux", "FIONREAD", *(f"{hop}, {way}" for hop, way in ways), *steps]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [_level(row, hop, way) for hop, way in ways]
        counts = [count(row["steps"].get(step)) for step in steps]
        lines.append([f"{row['release']}", row["era"], *cells, *counts])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _level(row: Row, hop: str, way: str) -> str:
    return next((level for level in LEVELS if row[level][hop][way]), "no")


def count(step: Row | None) -> str:
    """How many tests did what."""
    if step is None:
        return "not run"
    said = [f"{step[what]:,} {what}" for what in ("passed", "skipped", "failed") if step.get(what)]
    return (", ".join(said) or "run") + ("" if step["ok"] else " (not ok)")


def renewed(readme: str, rows: Iterable[Row]) -> str:
    """The README with the table of these rows in place of the one it has."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise SystemExit(f"README.md lacks the lines {BEGIN!r} and {END!r}")
    return before + BEGIN + table(rows) + END + after


def read_results() -> list[dict[str, Any]]:
    """The rows that docs/kernels.json holds, oldest kernel first."""
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text())
    return rows


def write_results(rows: Iterable[Row]) -> None:
    """Both, the data and the README."""
    rows = list(rows)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    README.write_text(renewed(README.read_text(), rows))


def main() -> int:
    parser = argparse.ArgumentParser(description="The support table of the README.")
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args()
    text = README.read_text()
    wanted = renewed(text, read_results())
    if arguments.check:
        if text != wanted:
            sys.stderr.write("README.md and docs/kernels.json disagree: build/vm/support.py\n")
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())

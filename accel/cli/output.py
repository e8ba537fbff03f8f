"""Tables and colours for people, JSON for tools, errors for both."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from accel.errors import AccelError

# A pipe has no width: grep and awk want whole lines.
_UNLIMITED = 100_000

STYLES = {
    "ok": "green",
    "warn": "yellow",
    "unfit": "bold red",
    "broken": "bold red",
    "redirect": "green",
    "tcp": "yellow",
    "idle": "dim",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Ours to handle, in accel.cli: rich would make it an error."""
        raise  # noqa: PLE0704  called while the BrokenPipeError is handled


def _width() -> int | None:
    """None lets rich ask the terminal; $COLUMNS is the reader's own wish."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNLIMITED


console = _Console(highlight=False, soft_wrap=False, width=_width())
errors = _Console(stderr=True, highlight=False, soft_wrap=True)


def as_json(facts: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")


def error(e: AccelError, *, as_json: bool = False) -> None:
    """What was tried, what the kernel or the system said, what to do next."""
    if as_json:
        document = {"error": str(e), "remedy": e.remedy}
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    errors.print(Text("accel: ", "bold red") + _lines(str(e)))
    if e.remedy:
        errors.print(_lines(f"  try: {e.remedy}"))


def _lines(text: str) -> Text:
    return Text("\n".join(map(visible, text.split("\n"))))


def note(text: str) -> None:
    """A word beside the facts, on standard error."""
    errors.print(Text(text))


def line(text: str | Text = "") -> None:
    """One line, however long: a terminal wraps it better than we do."""
    console.print(text if isinstance(text, Text) else Text(text), soft_wrap=True)


def lines(texts: Iterable[str]) -> None:
    """Many lines without style, as they are: rich would take a tenth of a millisecond for each."""
    sys.stdout.writelines(f"{visible(text)}\n" for text in texts)


Rows = Iterable[Iterable[str | Text]]


def table(columns: Iterable[str], rows: Rows, *, numbers: Iterable[str] = ()) -> None:
    """Columns in line; only the last one may wrap.  Those in `numbers` end in line."""
    _print(_grid(columns, rows, frozenset(numbers)))


def table_if_it_fits(columns: Iterable[str], rows: Rows, *, numbers: Iterable[str] = ()) -> bool:
    """A table, unless a line of it would have to wrap; then nothing, and False."""
    grid = _grid(columns, rows, frozenset(numbers))
    unlimited = console.options.update(max_width=_UNLIMITED)
    if Measurement.get(console, unlimited, grid).maximum > console.width:
        return False
    _print(grid)
    return True


def _grid(columns: Iterable[str], rows: Rows, numbers: frozenset[str]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(
            column,
            overflow="fold",
            no_wrap=True,
            justify="right" if column in numbers else "left",
        )
    grid.columns[-1].no_wrap = False
    for row in rows:
        # Text, since rich reads a str as markup: "[web]" would vanish.
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return grid


def _print(grid: Table) -> None:
    """Without the blanks that fill the last column."""
    with console.capture() as captured:
        console.print(grid)
    for row in captured.get().splitlines():
        sys.stdout.write(row.rstrip() + "\n")


def styled(text: str, style: str | None = None) -> Text:
    return Text(text, STYLES.get(style or text, ""))


def pairs(facts: Mapping[str, str | Text]) -> None:
    """Names and values, one a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        line(Text(f"{name:<{width}}  ", "bold") + value)


def visible(text: str) -> str:
    """The text without what only a terminal understands: names in files may hold anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(number: float) -> str:
    """Bytes as people read them, in powers of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("the loop returns")

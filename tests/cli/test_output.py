"""Tables that people read, grep reads, and a terminal does not fold."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from accel.cli import output
from accel.errors import AccelError


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "console", Console(highlight=False, width=40))


ROWS = [("netns:4026532511", "a reason that is longer than forty columns are wide", "12")]


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("pod", "why", "count"), ROWS * 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1] == "netns:4026532511  a reason that is longer than forty columns are wide  12"


@pytest.mark.usefixtures("narrow")
def test_only_the_last_column_wraps(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("pod", "why"), [ROWS[0][:2]])
    out = capsys.readouterr().out
    assert "netns:4026532511  a reason that" in out
    assert all(len(line) <= 40 and line == line.rstrip() for line in out.splitlines())


@pytest.mark.usefixtures("narrow")
def test_a_table_that_does_not_fit_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert not output.table_if_it_fits(("pod", "why", "count"), ROWS)
    assert capsys.readouterr().out == ""
    assert output.table_if_it_fits(("pod", "count"), [("shop", "1")])
    assert capsys.readouterr().out == "pod   count\nshop  1\n"


def test_numbers_end_in_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("hop", "count"), [("a", "9"), ("b", "1,000")], numbers=("count",))
    assert capsys.readouterr().out == "hop  count\na        9\nb    1,000\n"


def test_text_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.line("[red]pod[/red]")
    output.table(("pod",), [("[bold]",)])
    output.error(AccelError("open [::1]:80: refused", remedy="[try]"))
    captured = capsys.readouterr()
    assert captured.out == "[red]pod[/red]\npod\n[bold]\n"
    assert captured.err == "accel: open [::1]:80: refused\n  try: [try]\n"


def test_a_long_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.line("x " * 500)
    output.note("y " * 500)
    captured = capsys.readouterr()
    assert (captured.out.count("\n"), captured.err.count("\n")) == (1, 1)


def test_an_error_for_tools(capsys: pytest.CaptureFixture[str]) -> None:
    output.error(AccelError("what", remedy=None), as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "what", "remedy": None}
    assert captured.err == "accel: what\n"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 40, "5120.0 GiB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert output.size(number) == text

"""What the verbs say, without a kernel under them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import accel
from accel.cli import main, output
from accel.cli.check import print_strategy
from accel.cli.connections import print_directions
from accel.cli.reasons import count, explain
from accel.core.strategy import Path as Course
from accel.errors import AccelError

NUMBERS = {"redirected": "messages_redirected", "by TCP": "messages_tcp"}


def connection(pod: str, port: int, reason: str | None = None) -> dict[str, Any]:
    direction = {
        "state": "tcp" if reason else "redirect",
        "reason": reason,
        "messages_redirected": 12345,
        "messages_tcp": 0,
    }
    return {
        "pod": pod,
        "hop": None if reason else "app-sidecar",
        "active": {"local": f"127.0.0.1:{port}", "remote": "127.0.0.1:15001"},
        "passive": None,
        "directions": {"request": direction, "response": direction},
    }


def test_connections_are_sorted_and_every_line_is_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_directions([connection("b", 2, "blocking"), connection("a", 1)], NUMBERS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pod", "a", "a", "b", "b", "blocking"]
    assert lines[1].split() == [
        *("a", "app-sidecar", "127.0.0.1:1", "127.0.0.1:15001"),
        *("request", "redirect", "12,345", "0"),
    ]


def test_an_active_end_elsewhere_is_told_from_the_passive_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    item = connection("a", 1)
    item["passive"] = {"local": "10.0.0.2:15006", "remote": "10.0.0.1:40000"}
    item["active"] = None
    print_directions([item], NUMBERS)
    assert "10.0.0.1:40000  10.0.0.2:15006" in capsys.readouterr().out


def test_where_a_table_would_fold_each_direction_has_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.console, "width", 60)
    print_directions([connection("netns:4026532511", 1, "settled")], NUMBERS)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "netns:4026532511  -  127.0.0.1:1 → 127.0.0.1:15001",
        "  request   tcp       12,345 redirected, 0 by TCP  settled",
        "  response  tcp       12,345 redirected, 0 by TCP  settled",
    ]


def test_a_reason_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    yes, no, other = Course(True), Course(False, "why"), Course(False, "why else")
    print_strategy({"a": {"request": yes, "response": no}, "b": {"request": no, "response": other}})
    assert capsys.readouterr().out.splitlines() == [
        "hop  request      response",
        "a    accelerated  by TCP (1)",
        "b    by TCP (1)   by TCP (2)",
        "(1) why",
        "(2) why else",
    ]


def test_reasons_are_counted_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    count("refused:", {"mptcp": 2, "no_peer": 1000, "of a later version": 1})
    count("nothing:", {})
    explain(["", "settled", "settled"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "refused:"
    assert [line.split()[:2] for line in lines[1:3]] == [["1,000", "no_peer"], ["2", "mptcp"]]
    assert lines[3] == "      1  of a later version"
    assert lines[4].startswith("  settled  bytes went by TCP")
    assert len(lines) == 5


def test_config_tells_where_a_value_is_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "accel.yaml"
    config.write_text("relist_seconds: 5\n")
    monkeypatch.setenv("ACCEL_LOG_LEVEL", "debug")
    arguments = ["config", "--config", str(config), "--run-dir", "/run/x"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    for key, value, origin in (
        ("relist_seconds", 5, str(config)),
        ("log_level", "debug", "ACCEL_LOG_LEVEL"),
        ("run_dir", "/run/x", "--run-dir"),
        ("trust_apps", False, "default"),
    ):
        assert (facts["settings"][key], facts["origins"][key]) == (value, origin)
    assert main(arguments) == 0
    assert "/run/x" in capsys.readouterr().out


def test_an_error_ends_in_1_and_an_interrupt_in_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_in(error: BaseException) -> int:
        def verb(_: object) -> int:
            raise error

        monkeypatch.setattr("accel.cli.switch.remove", verb)
        return main(["remove"])

    assert end_in(AccelError("no", remedy="do")) == 1
    assert capsys.readouterr().err == "accel: no\n  try: do\n"
    assert end_in(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        end_in(ZeroDivisionError())


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"accel {accel.__version__}\n"

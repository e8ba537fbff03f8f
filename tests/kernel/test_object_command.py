"""`accel object load` against the running kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from accel.bpf import Map, Program, Variables, open_object, unpin
from accel.cli import main
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel

Capture = pytest.CaptureFixture[str]

NATIVE, FOREIGN = ("bpfel", "bpfeb") if sys.byteorder == "little" else ("bpfeb", "bpfel")


@pytest.fixture
def pinned(compiled: Compile) -> Path:
    return compiled("pinned", NATIVE)


def load(*arguments: object, code: int = 0) -> None:
    assert main(["object", "load", *map(str, arguments)]) == code


def loaded(capsys: Capture, *arguments: object) -> dict[str, Any]:
    load("--json", *arguments)
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def below(directory: Path) -> set[str]:
    """What is there; a new bpf file system may hold the kernel's own "maps.debug"."""
    paths = (path for path in directory.rglob("*") if path.suffix != ".debug")
    return {str(path.relative_to(directory)) for path in paths}


def test_verified_and_let_go_again(loading_object: Path, capsys: Capture) -> None:
    facts = loaded(capsys, loading_object)
    assert (facts["name"], facts["pinned"]) == ("loading", False)
    assert [program["name"] for program in facts["programs"]] == ["track", "pass"]
    track = facts["programs"][0]
    assert (track["type"], track["pin"]) == ("SOCK_OPS", None)
    assert len(track["tag"]) == 16
    spec = open_object(loading_object)
    assert track["instructions"] == len(spec.programs["track"].instructions) // 8
    assert track["verified_instructions"] is None or track["verified_instructions"] > 0
    (sockets,) = [item for item in facts["maps"] if item["name"] == "sockets"]
    assert (sockets["type"], sockets["max_entries"], sockets["reused"]) == ("SOCKHASH", 64, False)


def test_a_table_says_what_became_of_it(pinned: Path, capsys: Capture) -> None:
    load(pinned)
    out = capsys.readouterr().out
    assert "let go again" in out
    assert {"first", "second", "shared", "own"} <= {line.split(" ")[0] for line in out.split("\n")}


def test_programs_by_name(loading_object: Path, capsys: Capture) -> None:
    facts = loaded(capsys, loading_object, "--program", "pass", "--program", "track")
    assert {program["name"] for program in facts["programs"]} == {"pass", "track"}
    load(loading_object, "--program", "nobody", code=1)
    assert "nobody" in capsys.readouterr().err


def test_pins(pinned: Path, bpffs: Path, capsys: Capture) -> None:
    directory = bpffs / "a" / "b"
    facts = loaded(capsys, pinned, "--pin", directory)
    maps = {"maps/shared", "maps/own", "maps/_rodata", "maps/_bss"}
    assert below(directory) == {"first", "second", "maps"} | maps
    assert {item["pin"] for item in facts["programs"]} == {
        *(str(directory / "first"), str(directory / "second")),
    }
    with Program.from_pin(directory / "first") as program:
        assert program.id == facts["programs"][0]["id"]
    assert str(directory / "maps" / "_rodata") in {item["pin"] for item in facts["maps"]}


def test_a_map_pinned_by_name_is_shared(
    pinned: Path, bpffs: Path, compiled: Compile, capsys: Capture
) -> None:
    first = loaded(capsys, pinned, "--pin", bpffs)
    before = {item["name"]: item for item in first["maps"]}
    for name in ("first", "second", "maps/own", "maps/_rodata", "maps/_bss"):
        unpin(bpffs / name)
    second = loaded(capsys, pinned, "--pin", bpffs)
    after = {item["name"]: item for item in second["maps"]}
    assert after["shared"]["id"] == before["shared"]["id"]
    assert after["shared"]["reused"]
    assert not before["shared"]["reused"]
    assert after["own"]["id"] != before["own"]["id"]


def test_a_pin_of_another_shape_is_named(pinned: Path, bpffs: Path, capsys: Capture) -> None:
    load(pinned, "--pin", bpffs)
    for name in ("first", "second", "maps/own", "maps/_rodata", "maps/_bss"):
        unpin(bpffs / name)
    load(pinned, "--pin", bpffs, "--max-entries", "shared=9", code=1)
    assert "max_entries is 8, expected 9" in capsys.readouterr().err
    assert below(bpffs) == {"maps", "maps/shared"}


def test_all_pins_or_none(pinned: Path, bpffs: Path, capsys: Capture) -> None:
    directory = bpffs / "taken"
    directory.mkdir()
    with Map.create(open_object(pinned).maps["own"]) as other:
        other.pin(directory / "second")
    load(pinned, "--pin", directory, code=1)
    assert f"pin program second at {directory}/second" in capsys.readouterr().err
    assert below(directory) == {"second"}


def test_nothing_is_left_of_a_refusal(loading_object: Path, bpffs: Path, capsys: Capture) -> None:
    load(loading_object, "--program", "careless", "--pin", bpffs / "new", code=1)
    captured = capsys.readouterr()
    assert "load program careless" in captured.err
    assert "loading.bpf.c:" in captured.err
    assert captured.out == ""
    assert below(bpffs) == set()


def test_the_whole_log_on_request(loading_object: Path, capsys: Capture) -> None:
    load(loading_object, "--program", "careless", code=1)
    short = capsys.readouterr().err
    load(loading_object, "--program", "careless", "--log", code=1)
    long = capsys.readouterr().err
    assert long.endswith(short)
    assert len(long.splitlines()) > len(short.splitlines()) + 5


def test_an_error_as_json(loading_object: Path, capsys: Capture) -> None:
    load(loading_object, "--program", "careless", "--json", code=1)
    error = json.loads(capsys.readouterr().out)
    assert set(error) == {"error", "remedy"}
    assert "careless" in error["error"]


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("port=0x1f90", 8080),
        ("verbose=true", True),
        ("verbose=0", False),
        ("name=café", "café".encode().ljust(16, b"\0")),
        ("name=[1, 2]", b"\x01\x02".ljust(16, b"\0")),
        ("mode=OFF", 0),
        ("mode=3", 3),
        ("ports=[80, 443]", (80, 443)),
        ("total=18446744073709551615", 2**64 - 1),
    ],
)
def test_variables_start_as_told(assignment: str, value: object, pinned: Path, bpffs: Path) -> None:
    load(pinned, "--set", assignment, "--max-entries", "own=16", "--pin", bpffs)
    spec = open_object(pinned)
    assert spec.btf is not None
    name = assignment.partition("=")[0]
    home = spec.variables[name].map
    with (
        Map.from_pin(bpffs / "maps" / home.replace(".", "_")) as data,
        Map.from_pin(bpffs / "maps" / "own") as own,
    ):
        data.spec = spec.maps[home]
        with Variables(data, spec.variables, spec.btf) as variables:
            assert variables[name].get() == value
        assert own.info().max_entries == 16


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--set", "port=many"), "'many' is no value for variable port"),
        (("--set", "port=4294967296"), "4294967296"),
        (("--set", "ports={"), "is no value for variable ports"),
        (("--set", "ports=[1]"), "1 elements, not 2"),
        (("--set", "nobody=1"), "nobody"),
        (("--max-entries", "nobody=1"), "nobody"),
        (("--pin", "/proc/nowhere"), "no bpf file system"),
        (("--pin", "/proc/version"), "no directory"),
    ],
)
def test_refused_before_anything_is_loaded(
    arguments: tuple[str, ...], complaint: str, pinned: Path, capsys: Capture
) -> None:
    load(pinned, *arguments, code=1)
    assert complaint in capsys.readouterr().err


def test_the_other_byte_order(compiled: Compile, capsys: Capture) -> None:
    load(compiled("pinned", FOREIGN), code=1)
    assert "-endian" in capsys.readouterr().err

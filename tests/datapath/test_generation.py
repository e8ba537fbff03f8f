"""Which directories below a bpffs are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel.datapath.errors import NotRunning
from accel.datapath.generation import Generation, generations, running


@pytest.mark.parametrize("name", ["", "x", "maps", "abc-", "abc-x", "abc--1", "abc-1.5", "-"])
def test_other_names_are_no_generation(name: str) -> None:
    assert Generation.parse(Path("/sys/fs/bpf/accel") / name) is None


def test_a_name_is_parsed() -> None:
    directory = Path("/sys/fs/bpf/accel/0123456789ab-1024")
    assert Generation.parse(directory) == Generation(directory, "0123456789ab", 1024)


def test_a_map_of_the_compiler_gets_a_name_that_bpffs_takes() -> None:
    generation = Generation(Path("/pins"), "0123456789ab", 16)
    assert generation.map(".data") == Path("/pins/data")
    assert generation.map("pods") == Path("/pins/pods")


def test_only_one_with_a_link_runs(tmp_path: Path) -> None:
    for name in ("aaaaaaaaaaaa-16", "bbbbbbbbbbbb-16", "notes"):
        (tmp_path / name).mkdir()
    with pytest.raises(NotRunning):
        running(tmp_path)
    (tmp_path / "bbbbbbbbbbbb-16" / "link").touch()
    assert running(tmp_path).object_id == "bbbbbbbbbbbb"
    assert [g.object_id[0] for g in generations(tmp_path)] == ["a", "b"]


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert list(generations(tmp_path / "missing")) == []
    with pytest.raises(NotRunning) as refused:
        running(tmp_path / "missing")
    assert "accel run" in str(refused.value.remedy)

"""What maps hold from the start, and maps that objects share by their pins."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from accel.bpf.door.probe import assemble, mov
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import ProgramType
from accel.bpf.loading.object import load
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map
from accel.bpf.maps.pins import path_of
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def spec(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("map_values"))


@pytest.fixture(scope="module")
def sharing(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("pinned"))


def key(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def number(value: bytes | None) -> int:
    assert value is not None
    return int.from_bytes(value, sys.byteorder)


def names_in(bpffs: Path) -> set[str]:
    """What is pinned there, beside what the kernel puts into a new one."""
    return {path.name for path in bpffs.iterdir()} - {"maps.debug", "progs.debug"}


def test_maps_of_maps_hold_maps(spec: ObjectSpec) -> None:
    """What is read back is the inner map's id."""
    with load(spec) as obj:
        one, two = obj.maps["one"].info().id, obj.maps["two"].info().id
        by_index = obj.maps["by_index"]

        assert [by_index.lookup(key(slot)) for slot in (1,)] == [None]
        assert [number(by_index.lookup(key(slot))) for slot in (0, 2, 3)] == [one, two, one]
        assert number(obj.maps["by_key"].lookup(key(5))) == two


def test_program_arrays_hold_programs(spec: ObjectSpec) -> None:
    with load(spec) as obj:
        held = {slot: obj.maps["programs"].lookup(key(slot)) for slot in range(4)}

        assert number(held[1]) == obj.programs["second"].id
        assert number(held[3]) == obj.programs["first"].id
        assert held[0] is held[2] is None


def test_slots_of_programs_that_are_not_loaded_stay_empty(spec: ObjectSpec) -> None:
    with load(spec, programs=["first"]) as obj:
        assert obj.maps["programs"].lookup(key(1)) is None
        assert number(obj.maps["programs"].lookup(key(3))) == obj.programs["first"].id


def test_a_map_unlike_the_template_is_named(spec: ObjectSpec) -> None:
    """The last step but one: all that was made before goes again."""
    odd = replace(spec.maps["two"], value_size=8, value_type_id=0)

    with pytest.raises(BpfError, match="put map two in slot 2 of map by_index"):
        load(replace(spec, maps={**spec.maps, "two": odd}))


def test_arrays_of_others_get_back_what_they_held(spec: ObjectSpec) -> None:
    """They are written last; the second cannot be, so the first is put right again."""
    programs = spec.maps["programs"]
    tiny = replace(programs, name="tiny", max_entries=1, values=((3, "first"),))
    failing = replace(spec, maps={**spec.maps, "tiny": tiny})
    with (
        Map.create(replace(programs, values=())) as given,
        Map.create(replace(tiny, values=())) as too_small,
        load(spec, programs=["first"]) as other,
    ):
        given.update(key(1), key(other.programs["first"].fileno()))
        with pytest.raises(BpfError, match="put program first in slot 3 of map tiny"):
            load(failing, maps={"programs": given, "tiny": too_small})
        assert number(given.lookup(key(1))) == other.programs["first"].id
        assert given.lookup(key(3)) is None

        with load(spec, maps={"programs": given}) as obj:
            assert number(given.lookup(key(1))) == obj.programs["second"].id


# --- pins --------------------------------------------------------------------------------------


def test_the_first_pins_and_the_next_finds(sharing: ObjectSpec, bpffs: Path) -> None:
    directory = bpffs / "some" / "where"
    with load(sharing, pin_directory=directory) as obj:
        first = obj.maps["shared"].info().id
        obj.maps["shared"].update(key(1), bytes(8))
    with load(sharing, pin_directory=directory) as again:
        assert again.maps["shared"].info().id == first
        assert again.maps["shared"].lookup(key(1)) == bytes(8)
    assert [path.name for path in directory.iterdir()] == ["shared"]


def test_without_a_directory_nothing_is_pinned(sharing: ObjectSpec, bpffs: Path) -> None:
    with load(sharing) as obj:
        assert "shared" in obj.maps
    assert names_in(bpffs) == set()


def test_a_pinned_map_that_does_not_fit_is_described(sharing: ObjectSpec, bpffs: Path) -> None:
    with load(sharing, pin_directory=bpffs):
        pass
    larger = sharing.with_max_entries(shared=9)

    with pytest.raises(ShapeError, match="max_entries is 8, expected 9") as caught:
        load(larger, pin_directory=bpffs)
    assert str(bpffs / "shared") in str(caught.value)


def test_a_failed_load_takes_its_pins_away(sharing: ObjectSpec, bpffs: Path) -> None:
    code = assemble(mov(1, 0), Instruction(EXIT, 0, 0, 0, 0))
    broken = replace(sharing.programs["first"], instructions=code, map_references=())
    spec = replace(sharing, programs={"first": replace(broken, func_info=(), line_info=())})

    with pytest.raises(BpfError):
        load(spec, pin_directory=bpffs / "new")
    assert names_in(bpffs) == set()

    with load(sharing, pin_directory=bpffs):
        pass
    with pytest.raises(BpfError):
        load(spec, pin_directory=bpffs)
    assert names_in(bpffs) == {"shared"}  # another's


def _fail_after(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Programs are refused, once `act` is done."""

    def refuse(*_: object, **__: object) -> None:
        act()
        raise BpfError("load program first", errno.EACCES)

    monkeypatch.setattr(Program, "load", refuse)


def test_undoing_pins_hides_no_error(
    sharing: ObjectSpec, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when a pin has gone already, nor when something else is beside it."""
    directory = bpffs / "new"
    _fail_after(monkeypatch, (directory / "shared").unlink)
    with pytest.raises(BpfError, match="load program first"):
        load(sharing, pin_directory=directory)
    assert not directory.exists()

    with Map.create(sharing.maps["own"]) as another:
        _fail_after(monkeypatch, lambda: another.pin(directory / "another"))
        with pytest.raises(BpfError, match="load program first") as caught:
            load(sharing, pin_directory=directory)
    assert [path.name for path in directory.iterdir()] == ["another"]
    assert any("left behind" in note for note in caught.value.__notes__)


def test_another_ones_pin_is_left_alone(
    sharing: ObjectSpec, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has removed ours and put theirs there."""
    with Map.create(sharing.maps["shared"]) as theirs:

        def replace_it() -> None:
            (bpffs / "shared").unlink()
            theirs.pin(bpffs / "shared")

        _fail_after(monkeypatch, replace_it)
        with pytest.raises(BpfError, match="load program first"):
            load(sharing, pin_directory=bpffs)
        with Map.from_pin(bpffs / "shared") as found:
            assert found.info().id == theirs.info().id


@pytest.mark.parametrize("name", ["/etc/x", "a/../../b", "..", ""])
def test_names_that_lead_elsewhere_are_not_pinned(bpffs: Path, name: str) -> None:
    with pytest.raises(ObjectError, match="nothing can be pinned under the name"):
        path_of(bpffs, name)
    assert path_of(bpffs, ".rodata.a") == bpffs / "_rodata_a"


def test_a_pin_that_came_meanwhile_is_used(
    sharing: ObjectSpec, bpffs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = Map.pin

    def pin_after_another(map: Map[bytes, bytes], path: Path) -> None:
        monkeypatch.setattr(Map, "pin", pin)
        with load(sharing, pin_directory=bpffs) as quicker:
            ids.append(quicker.maps["shared"].info().id)
        pin(map, path)

    ids: list[int] = []
    monkeypatch.setattr(Map, "pin", pin_after_another)
    with load(sharing, pin_directory=bpffs) as obj:
        assert obj.maps["shared"].info().id == ids[0]


def test_the_place_must_be_a_bpf_file_system(sharing: ObjectSpec, tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="pin map shared") as caught:
        load(sharing, pin_directory=tmp_path / "plain")
    assert "bpf file system" in str(caught.value.remedy)
    assert list(tmp_path.iterdir()) == []


# --- programs of no kind -------------------------------------------------------------------------


def test_a_program_of_no_type_is_named(spec: ObjectSpec) -> None:
    programs = {**spec.programs, "first": replace(spec.programs["first"], type=0)}
    untyped = replace(spec, programs=programs)

    with pytest.raises(ObjectError, match="program first: SEC\\('socket'\\) names no program type"):
        load(untyped)
    with load(untyped.with_program("first", type=ProgramType.SOCKET_FILTER)) as obj:
        assert obj.programs["first"].type == ProgramType.SOCKET_FILTER
    with load(untyped.with_program("first", autoload=False)) as obj:
        assert set(obj.programs) == {"second"}
    with pytest.raises(ObjectError, match="has no program 'third'"):
        spec.with_program("third")

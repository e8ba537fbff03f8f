"""What is taken on which node."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.sources.discover import CONTAINERD, CRI, NRI, discover, socket_of

Listen = Callable[[str], None]


@pytest.fixture
def listen(tmp_path: Path) -> Listen:
    def make(place: str) -> None:
        path = tmp_path / place.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))

    return make


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ((), ["processes"]),
        (NRI, ["nri", "processes"]),
        (CONTAINERD[:1], ["containerd"]),
        ((NRI[0], CONTAINERD[1]), ["nri", "containerd"]),
        (CRI[:1], ["cri"]),
        ((NRI[0], CRI[0]), ["nri", "cri"]),
        ((CONTAINERD[0], CRI[1]), ["containerd"]),
    ],
)
def test_the_best_first(
    tmp_path: Path, listen: Listen, there: tuple[str, ...], taken: list[str]
) -> None:
    for place in there:
        listen(place)
    found = discover(tmp_path)
    assert [one.name for one in found] == taken
    assert {one.socket for one in found if one.socket} <= set(there)
    assert all(one.why in str(one) for one in found)


@pytest.mark.parametrize("place", CONTAINERD)
def test_every_place_of_containerd(tmp_path: Path, listen: Listen, place: str) -> None:
    listen(place)
    assert [(one.name, one.socket) for one in discover(tmp_path)] == [("containerd", place)]
    assert socket_of("containerd", tmp_path) == socket_of("cri", tmp_path) == place


def test_the_usual_place_of_what_is_not_there(tmp_path: Path) -> None:
    assert socket_of("nri", tmp_path) == NRI[0]


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / NRI[0].lstrip("/")
    path.parent.mkdir(parents=True)
    path.touch()
    assert [one.name for one in discover(tmp_path)] == ["processes"]

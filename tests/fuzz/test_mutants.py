"""A bounded run of the fuzzer: the same mutants every time, some thousands of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import compiled
from tests.fuzz.hostile import CONSTRUCTIONS
from tests.fuzz.mutation import Subject
from tests.fuzz.run import run_batch
from tests.fuzz.trial import MEMORY_BYTES, complaint_about

__all__ = ["compiled"]

OBJECTS = ("calls", "core", "jump_table", "maps", "types", "variables")
MUTANTS = 2_500


@pytest.fixture(scope="session")
def subjects(compiled: Callable[..., Path]) -> list[Path]:
    """Objects of every feature, in both byte orders."""
    return [compiled(name, target) for name in OBJECTS for target in ("bpfel", "bpfeb")]


def test_only_object_errors_come_of_damage(subjects: list[Path]) -> None:
    result = run_batch(subjects, 0, MUTANTS)

    assert result.complaints == []
    assert 0 < result.peak_kib * 1024 < MEMORY_BYTES


def test_only_object_errors_come_of_malice(tmp_path: Path) -> None:
    paths = []
    for make in CONSTRUCTIONS:
        paths.append(tmp_path / f"{make.__name__}.bpf.o")
        paths[-1].write_bytes(make())
    result = run_batch(paths, 0, len(paths), as_they_are=True)

    assert result.complaints == []
    assert 0 < result.peak_kib * 1024 < MEMORY_BYTES


def test_mutants_can_be_made_again(subjects: list[Path]) -> None:
    subject = Subject("calls", subjects[0].read_bytes())

    assert subject.mutant(7) == subject.mutant(7)
    assert len({subject.mutant(number) for number in range(50)}) > 40


def test_the_fuzzer_notices_a_broken_promise() -> None:
    class Treacherous(bytes):
        def __getitem__(self, key: object) -> bytes:  # type: ignore[override]
            raise OverflowError("leaked")

    complaint = complaint_about(Treacherous(b"\x7fELF"), None)

    assert complaint is not None
    assert complaint.startswith("OverflowError: leaked")

"""Probes, on a kernel that honestly has or has not what they ask for."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.bpf.door import probe
from accel.bpf.door.probe import Answer
from accel.bpf.errors import NotSupported
from accel.bpf.format.btf import BtfFeature
from accel.bpf.kinds import MapType, ProgramType

GET_SOCKET_COOKIE, SK_LOOKUP_TCP, SK_RELEASE, SOCK_HASH_UPDATE = 46, 84, 86, 70
MSG_REDIRECT_HASH, SK_STORAGE_GET, SK_CGROUP_ID, SKC_TO_TCP_SOCK = 71, 107, 128, 137
NO_HELPER = 99_999
PROJECT = Path(__file__).parents[2]


def test_only_yes_and_no_are_remembered() -> None:
    answers = [Answer.UNKNOWN, Answer.NO, Answer.YES]

    @probe.remembered
    def ask(question: int) -> Answer:
        return answers.pop(0)

    assert [ask(1), ask(1), ask(1)] == [Answer.UNKNOWN, Answer.NO, Answer.NO]
    assert ask(2) is Answer.YES
    assert answers == []


def test_only_yes_is_true() -> None:
    assert [bool(answer) for answer in Answer] == [True, False, False]


@pytest.mark.kernel
@pytest.mark.parametrize(
    "number",
    [
        MapType.HASH,
        MapType.PERCPU_ARRAY,
        MapType.SOCKHASH,
        MapType.SK_STORAGE,
        MapType.HASH_OF_MAPS,
        MapType.RINGBUF,
        MapType.QUEUE,
    ],
)
def test_map_types_the_oldest_kernel_has(number: MapType) -> None:
    assert probe.map_type(number) is Answer.YES


@pytest.mark.kernel
@pytest.mark.parametrize(
    "number",
    [
        ProgramType.SOCK_OPS,
        ProgramType.SK_MSG,
        ProgramType.CGROUP_SOCK_ADDR,
        ProgramType.SK_LOOKUP,
        ProgramType.TRACING,
    ],
)
def test_program_types_the_oldest_kernel_has(number: ProgramType) -> None:
    assert probe.program_type(number) is Answer.YES


@pytest.mark.kernel
def test_what_no_kernel_has_is_no() -> None:
    assert probe.map_type(9999) is Answer.NO
    assert probe.program_type(9999) is Answer.NO
    assert probe.helper(ProgramType.SK_MSG, NO_HELPER) is Answer.NO


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("program_type", "helper", "answer"),
    [
        # Accepted, and refused for its arguments: allowed both times.
        (ProgramType.SOCK_OPS, GET_SOCKET_COOKIE, Answer.YES),
        (ProgramType.SOCK_OPS, SOCK_HASH_UPDATE, Answer.YES),
        (ProgramType.SOCK_OPS, SKC_TO_TCP_SOCK, Answer.YES),
        (ProgramType.SK_MSG, MSG_REDIRECT_HASH, Answer.YES),
        (ProgramType.SK_MSG, SK_STORAGE_GET, Answer.YES),
        (ProgramType.CGROUP_SOCK_ADDR, SK_LOOKUP_TCP, Answer.YES),
        # Existing, but not for these; what text-matching probes get wrong on new kernels.
        (ProgramType.SK_MSG, GET_SOCKET_COOKIE, Answer.NO),
        (ProgramType.SK_MSG, SK_RELEASE, Answer.NO),
        (ProgramType.SOCK_OPS, SK_LOOKUP_TCP, Answer.NO),
        (ProgramType.SOCK_OPS, MSG_REDIRECT_HASH, Answer.NO),
        (ProgramType.SK_MSG, SK_CGROUP_ID, Answer.NO),
    ],
)
def test_helpers_are_told_apart_by_program_type(
    program_type: ProgramType, helper: int, answer: Answer
) -> None:
    assert probe.helper(program_type, helper) is answer


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("feature", "since"),
    [
        (BtfFeature.FUNC, (5, 0)),
        (BtfFeature.FUNC_GLOBAL, (5, 6)),
        (BtfFeature.DATASEC, (5, 2)),
        (BtfFeature.FLOAT, (5, 13)),
        (BtfFeature.DECL_TAG, (5, 16)),
        (BtfFeature.TYPE_TAG, (5, 17)),
        (BtfFeature.ENUM64, (6, 0)),
        (BtfFeature.SECTION_NAMES, (6, 9)),
    ],
)
def test_btf_features_came_when_they_came(feature: BtfFeature, since: tuple[int, int]) -> None:
    answer = probe.btf(feature)

    assert answer is not Answer.UNKNOWN
    assert (feature in probe.btf_features()) == bool(answer)
    if answer is Answer.NO:
        raise NotSupported(f"BTF with {feature}", since)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("ask", "since"),
    [
        (probe.mmapable_arrays, (5, 5)),
        (probe.lookup_batch, (5, 6)),
        (probe.cgroup_links, (5, 7)),
        (probe.kernel_btf, (5, 2)),
    ],
)
def test_features_came_when_they_came(ask: Callable[[], Answer], since: tuple[int, int]) -> None:
    answer = ask()

    assert answer is not Answer.UNKNOWN
    if answer is Answer.NO:
        raise NotSupported(ask.__name__, since)


@pytest.mark.kernel
def test_asking_about_memlock_changes_no_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)

    assert probe.memlock_charged.__wrapped__() is not Answer.UNKNOWN  # type: ignore[attr-defined]
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == before


@pytest.mark.kernel
def test_memlock_is_raised_only_where_it_is_charged() -> None:
    """A map larger than the limit is made either way; the limit gives way before 5.11 only."""
    code = """
import resource
from accel.bpf import Map, MapSpec, MapType
from accel.bpf.door.probe import memlock_charged
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
Map.create(MapSpec("large", MapType.ARRAY, 4, 1 << 20, 1)).close()
print(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], memlock_charged().value)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout

    assert said.strip() in (f"{resource.RLIM_INFINITY} yes", "65536 no")


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["DEVMAP", "DEVMAP_HASH"])
def test_memlock_is_raised_for_maps_of_devices(kind: str) -> None:
    """They are refused with EINVAL where it is charged."""
    code = f"""
import resource
from accel.bpf import Map, MapSpec, MapType
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 65536))
Map.create(MapSpec("ports", MapType.{kind}, 4, 4, 64)).close()
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)

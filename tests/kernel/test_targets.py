"""What tracing programs and their like are for: the kernel's functions, or a program's."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from accel.bpf.door import syscall
from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.format import btf as b
from accel.bpf.kinds import ProgramType
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.object import Object, load
from accel.bpf.loading.prog_load import NO_TARGET, Target
from accel.bpf.loading.targets import find
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def spec(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("targets"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel() as opened:
        assert opened.types.byteorder == sys.byteorder  # opened before descriptors are counted
        yield opened


def load_or_skip(spec: ObjectSpec, kernel: Kernel, programs: list[str], **more: Any) -> Object:
    """load(), on machines that let programs be attached to functions."""
    try:
        return load(spec, kernel=kernel, programs=programs, **more)
    except BpfError as error:
        if error.errno != errno.EPERM or syscall.explain_eperm() is not None:
            raise
        pytest.skip("this machine lets no program attach to functions")


def targets_of(obj: Object, kernel: Kernel) -> dict[str, tuple[type, str]]:
    """The kernel's type that each program is for: its class and name."""
    targets = {
        name: kernel.types.type(program.info().attach_btf_id)
        for name, program in obj.programs.items()
    }
    return {name: (type(found), getattr(found, "name", "")) for name, found in targets.items()}


def test_tracepoints_and_iterators_are_found(spec: ObjectSpec, kernel: Kernel) -> None:
    with load(spec, kernel=kernel, programs=["tracepoint", "maps"]) as obj:
        assert targets_of(obj, kernel) == {
            "tracepoint": (b.Typedef, "btf_trace_sched_switch"),
            "maps": (b.Func, "bpf_iter_bpf_map"),
        }


def test_functions_are_found(spec: ObjectSpec, kernel: Kernel) -> None:
    with load_or_skip(spec, kernel, ["entry", "leaving"]) as obj:
        assert targets_of(obj, kernel) == {
            "entry": (b.Func, "bpf_fentry_test1"),
            "leaving": (b.Func, "bpf_fentry_test1"),
        }


def test_the_numbers_are_those_of_the_kernels_types(spec: ObjectSpec, kernel: Kernel) -> None:
    """Also where the machine lets no such program be loaded."""
    for name in ("entry", "leaving"):
        target = find(spec.programs[name], kernel, None)
        assert target == Target(kernel.types.func_id("bpf_fentry_test1") or 0, None)
    assert find(spec.programs["main_program"], kernel, None) == NO_TARGET


def test_programs_trace_and_replace_functions_of_programs(spec: ObjectSpec, kernel: Kernel) -> None:
    with load(spec, kernel=kernel, programs=["main_program"]) as obj:
        main = obj.programs["main_program"]
        targets = {"replacement": main, "watcher": main}
        wrong = "wrong_replacement"
        with pytest.raises(BpfError, match="main_program has no function no_such_function"):
            load(spec, kernel=kernel, programs=[wrong], targets={wrong: main})
        with load_or_skip(spec, kernel, list(targets), targets=targets) as others:
            assert others.programs["replacement"].type == ProgramType.EXT
            assert others.programs["watcher"].info().attach_btf_id


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("replacement", ObjectError, "replaces function replaceable of another program"),
        ("aimless", ObjectError, "does not say what it is for"),
        ("of_module", BpfError, "module no_such_module has no function bpf_fentry_test1"),
        ("no_tracepoint", BpfError, "no tracepoint type btf_trace_no_such_tracepoint"),
        ("nameless", ObjectError, "names no program type"),
    ],
)
def test_what_is_not_there_is_named(
    spec: ObjectSpec, kernel: Kernel, program: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(spec, kernel=kernel, programs=[program])


def test_a_target_may_be_said_later(spec: ObjectSpec, kernel: Kernel) -> None:
    aimed = spec.with_program("maps", target="task")
    with load(aimed, kernel=kernel, programs=["maps"]) as obj:
        assert targets_of(obj, kernel) == {"maps": (b.Func, "bpf_iter_task")}
        with pytest.raises(ObjectError, match="targets has no program nobody"):
            load(spec, kernel=kernel, targets={"nobody": obj.programs["maps"]})

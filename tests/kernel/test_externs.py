"""What an object refers to in the kernel by name is found there, or said to be missing."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from accel.bpf.door.probe import assemble
from accel.bpf.errors import NotSupported, ObjectError, VerifierRejected
from accel.bpf.format import btf as b
from accel.bpf.format.insn import CALL, LD_IMM64, PSEUDO_KFUNC_CALL, Instruction, decode
from accel.bpf.loading.kernel import Kernel, Located
from accel.bpf.loading.object import Object, load
from accel.bpf.loading.resolve import KCONFIG_MAP, Resolved, patch
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ExternKind, ExternReference, ExternSpec, ObjectSpec
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def spec(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("kernel_externs"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel() as opened:
        assert opened.types.byteorder == sys.byteorder  # opened before descriptors are counted
        yield opened


def needs_settings(kernel: Kernel) -> None:
    """The object has some, whichever of its programs are loaded."""
    if kernel.config_text is None:
        pytest.skip("this kernel does not tell its settings")


@pytest.fixture
def obj(spec: ObjectSpec, kernel: Kernel) -> Iterator[Object]:
    needs_settings(kernel)
    with load(spec, kernel=kernel, programs=["settings", "symbols"]) as loaded:
        yield loaded


def needs_functions(kernel: Kernel) -> None:
    needs_settings(kernel)
    for name in ("bpf_task_from_pid", "bpf_task_release", "bpf_cast_to_kern_ctx"):
        if kernel.types.func_id(name) is None:
            raise NotSupported(f"{name}() for programs", (6, 2))


def test_settings_are_what_the_kernel_was_built_with(obj: Object, kernel: Kernel) -> None:
    obj.programs["settings"].run()
    seen = {name: variable.get() for name, variable in obj.variables.items()}

    assert seen["version"] == kernel.version
    assert seen["version"] >> 16 == int(os.uname().release.partition(".")[0])
    assert seen["hz"] == int(kernel.config("CONFIG_HZ") or 0) > 0
    assert seen["has_syscall"] is True
    assert seen["tristate"] == 1
    assert seen["nothing"] == 0
    cookie = kernel.types.func_id("bpf_get_attach_cookie_trace")
    assert seen["has_cookie"] is (cookie is not None)
    named = kernel.config("CONFIG_DEFAULT_HOSTNAME")
    assert named is not None
    assert bytes(seen["hostname"]).rstrip(b"\0").decode() == named.strip('"')


def test_settings_cannot_be_changed(obj: Object) -> None:
    assert obj.maps[KCONFIG_MAP].info().is_frozen
    assert obj.spec.maps[KCONFIG_MAP].contents is not None


def test_symbols_are_where_the_kernel_has_them(obj: Object) -> None:
    obj.programs["symbols"].run()
    seen = {name: variable.get() for name, variable in obj.variables.items()}
    lines = Path("/proc/kallsyms").read_text().splitlines()

    assert seen["address"] in [int(line.split()[0], 16) for line in lines if " schedule" in line]
    assert seen["no_address"] == seen["no_variable"] == 0


def test_variables_are_read(spec: ObjectSpec, kernel: Kernel) -> None:
    """How many programs run on this CPU: the kernel counts this one or not, by version."""
    needs_settings(kernel)
    try:
        obj = load(spec, kernel=kernel, programs=["variables"])
    except VerifierRejected as error:
        if "failed to find the address" not in error.line:
            raise
        pytest.skip("this kernel was built without CONFIG_KALLSYMS_ALL")
    except ObjectError:
        if kernel.types.type_id("bpf_prog_active", b.Var) is not None:
            raise
        pytest.skip("this kernel's types have none of its variables")
    with obj:
        obj.programs["variables"].run()
        assert obj.variables["active"].get() in (0, 1)


def test_a_weak_variable_may_be_missing_but_no_other(spec: ObjectSpec, kernel: Kernel) -> None:
    if kernel.types.type_id("bpf_prog_active", b.Var) is None:
        pytest.skip("this kernel's types have none of its variables")
    assert spec.btf is not None
    structs = (n for n in range(1, len(spec.btf)) if isinstance(spec.btf.type(n), b.Struct))
    other = replace(spec.externs["bpf_prog_active"], type_id=next(structs), weak=True)
    externs = {**spec.externs, other.name: other}

    with pytest.raises(ObjectError, match="bpf_prog_active is int in this kernel, not ") as error:
        load(replace(spec, externs=externs), kernel=kernel, programs=["variables"])
    assert error.value.remedy == "declare it as this kernel has it"


def test_functions_are_called(spec: ObjectSpec, kernel: Kernel) -> None:
    """Under another flavour; one that is missing, and one that is another, are stepped around."""
    needs_functions(kernel)
    pid = os.getpid()

    with load(spec, kernel=kernel, programs=["functions", "context"]) as obj:
        assert obj.programs["functions"].run(context=struct.pack("=i", pid)).retval == pid
        assert obj.programs["context"].run(bytes(64)).retval == 1


def test_a_missing_function_is_named_when_it_is_called(spec: ObjectSpec, kernel: Kernel) -> None:
    needs_functions(kernel)
    with pytest.raises(VerifierRejected) as caught:
        load(spec, kernel=kernel, programs=["unguarded"])

    assert caught.value.line == "this kernel has no function no_such_function"
    assert "return no_such_function(1);" in str(caught.value.source)


def test_a_function_of_that_name_may_be_another(spec: ObjectSpec, kernel: Kernel) -> None:
    needs_functions(kernel)
    with pytest.raises(VerifierRejected) as caught:
        load(spec, kernel=kernel, programs=["incompatible"])

    assert caught.value.line == "function bpf_task_release has another prototype in this kernel"


def test_all_that_is_missing_is_named_at_once(spec: ObjectSpec, kernel: Kernel) -> None:
    with pytest.raises(ObjectError) as caught:
        load(spec, kernel=kernel, programs=["demanding"])

    for missing in (
        "symbol no_such_strong_symbol",
        "variable no_such_strong_variable",
        "function no_such_strong_function",
    ):
        assert missing in str(caught.value)
    assert caught.value.remedy is not None


def test_a_setting_nobody_made_is_named(spec: ObjectSpec, kernel: Kernel) -> None:
    strong = replace(spec.externs["CONFIG_NO_SUCH_SETTING"], weak=False)
    demanding = replace(spec, externs={**spec.externs, strong.name: strong})

    with pytest.raises(ObjectError, match="CONFIG_NO_SUCH_SETTING"):
        load(demanding, kernel=kernel, programs=["settings"])


def test_what_modules_have_is_referred_to_through_their_types() -> None:
    """By the number of a descriptor for functions, by the descriptor itself for variables."""
    with Kernel() as kernel:
        btf = open(os.devnull, "rb")  # noqa: SIM115 - any descriptor; only its number counts
        with btf:
            of_module = Located(70_000, btf)  # type: ignore[arg-type]
            resolved = Resolved(
                types={"there": of_module, "thing": of_module, "here": Located(12, None)},
                fd_array=(btf, btf),  # type: ignore[arg-type]
            )
            call, wide = Instruction(CALL, 0, 1, 0, -1), Instruction(LD_IMM64, 3, 0, 0, 0)
            code = bytearray(assemble(call, call, wide, Instruction(0, 0, 0, 0, 0)))
            references = [ExternReference(i, n) for i, n in enumerate(("there", "here", "thing"))]

            assert patch(code, references, {}, resolved) == {}
            order = kernel.types.byteorder
            assert decode(code, order, 0) == (CALL, 0, PSEUDO_KFUNC_CALL, 1, 70_000)
            assert decode(code, order, 1) == (CALL, 0, PSEUDO_KFUNC_CALL, 0, 12)
            assert decode(code, order, 2) == (LD_IMM64, 3, 3, 0, 70_000)
            assert decode(code, order, 3).imm == btf.fileno()


def test_addresses_fill_both_halves_of_a_load() -> None:
    externs = {"far": ExternSpec("far", ExternKind.SYMBOL, 0, False)}
    code = bytearray(assemble(Instruction(LD_IMM64, 1, 0, 0, 0), Instruction(0, 0, 0, 0, 0)))

    patch(
        code, [ExternReference(0, "far")], externs, Resolved(addresses={"far": 0xFFFFFFFF80001000})
    )

    assert struct.unpack("=4xI4xI", bytes(code)) == (0x80001000, 0xFFFFFFFF)


def test_a_missing_function_has_the_number_libbpf_gives_it() -> None:
    """Settings come first in its list, as they lie in their map, then the rest by name."""
    externs = {
        extern.name: extern
        for extern in (
            ExternSpec("missing", ExternKind.FUNCTION, 1, weak=True),
            ExternSpec("CONFIG_A", ExternKind.KCONFIG, 1, weak=True, offset=8, size=4),
            ExternSpec("above", ExternKind.SYMBOL, 0, weak=True),
            ExternSpec("CONFIG_B", ExternKind.KCONFIG, 1, weak=True, offset=0, size=8),
        )
    }
    code = bytearray(assemble(Instruction(CALL, 0, PSEUDO_KFUNC_CALL, 0, -1)))

    poisoned = patch(code, [ExternReference(0, "missing")], externs, Resolved())

    assert decode(code, sys.byteorder) == Instruction(CALL, 0, 0, 0, 2_002_000_003)
    assert poisoned == {0: "this kernel has no function missing"}

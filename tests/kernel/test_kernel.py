"""What the running kernel tells about itself."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf
from accel.bpf.loading import kallsyms
from accel.bpf.loading.kernel import Kernel, version_code
from accel.bpf.loading.kernel_btf import VMLINUX, KernelBtf

pytestmark = pytest.mark.kernel

SYS_BTF = Path(VMLINUX).parent


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel() as opened:
        yield opened


# --- types ---------------------------------------------------------------------------------------


def test_what_is_located_is_what_was_asked_for(kernel: Kernel) -> None:
    found = kernel.locate("tcp_sendmsg", btf.Func)
    assert found is not None
    assert found.module is None
    assert kernel.types.type(found.type_id).name == "tcp_sendmsg"
    assert kernel.locate("tcp_sendmsg", btf.Func, "vmlinux") == found
    assert kernel.locate("tcp_sendmsg", btf.Struct) is None
    assert kernel.locate("tcp_sendmsg", btf.Func, "no_such_module") is None
    assert kernel.locate("no_such_function", btf.Func) is None


def test_borrowed_types_stay_open() -> None:
    with KernelBtf.open() as types:
        with Kernel(types) as kernel:
            assert kernel.types is types
            assert kernel.locate("sock", btf.Struct) is not None
        assert types.type_id("sock", btf.Struct) is not None


def test_modules_are_those_sysfs_has(kernel: Kernel) -> None:
    """And their types are those of the files there, function by function."""
    names = {path.name for path in SYS_BTF.iterdir()} - {"vmlinux"}

    assert {module.name for module in kernel.modules()} == names
    assert kernel.modules() is kernel.modules()
    for module in kernel.modules():
        with KernelBtf((SYS_BTF / module.name).read_bytes(), base=kernel.types) as types:
            assert len(types) == len(module.types)
            own = range(len(kernel.types), len(types))
            functions = [i for i in own if isinstance(types.type(i), btf.Func)]
            for type_id in functions[:20]:
                assert types.type(type_id) == module.types.type(type_id)
                name = types.type(type_id).name
                found = kernel.locate(name, btf.Func, module.name)
                assert found is not None
                assert found.module is module.fd
                assert types.type(found.type_id).name == name


def test_relocations_look_into_modules_last(kernel: Kernel) -> None:
    target = kernel.relocation_types()
    assert target.vmlinux is kernel.types
    assert list(target.modules()) == [module.types for module in kernel.modules()]


# --- symbols -------------------------------------------------------------------------------------


def test_addresses_are_those_in_kallsyms(kernel: Kernel) -> None:
    wanted = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, _, name = line.split()[:3]
        if name in ("tcp_sendmsg", "bpf_prog_run_xdp", "schedule", "init_task"):
            wanted[name] = int(address, 16)

    assert kernel.addresses(["no_such_symbol", *wanted]) == wanted
    assert kernel.addresses([]) == {}


SYMBOLS = b"""\
ffffffff81000000 T _text
ffffffff81000010 t twice
ffffffff81000020 t same
ffffffff81000020 t same
ffffffff81000030 d renamed.llvm.123456
ffffffff81000050 t function.llvm.123456
ffffffff81000040 t twice
ffffffffc0000000 t of_module\t[veth]
ffffffffc0000010 t of_module_too\t[veth]
"""


@pytest.fixture(params=[0, 1000], ids=["few", "many"])
def others(request: pytest.FixtureRequest) -> list[str]:
    """Names the kernel does not have; many are looked for in another way than few."""
    return [f"no_such_symbol_{number}" for number in range(request.param)]


def test_symbols_of_every_form(others: list[str]) -> None:
    names = ["same", "renamed", "function", "of_module", "_text", "text", *others]

    assert kallsyms.addresses(SYMBOLS, names) == {
        "same": 0xFFFFFFFF81000020,
        "renamed": 0xFFFFFFFF81000030,
        "of_module": 0xFFFFFFFFC0000000,
        "_text": 0xFFFFFFFF81000000,
    }


def test_a_symbol_with_two_addresses(others: list[str]) -> None:
    with pytest.raises(ObjectError, match="twice is ambiguous: it is at 0xffffffff81000010, 0x"):
        kallsyms.addresses(SYMBOLS, ["twice", *others])


def test_hidden_addresses() -> None:
    hidden = re.sub(rb"(?m)^\w{16}", b"0" * 16, SYMBOLS)
    with pytest.raises(ObjectError, match="hides the addresses") as error:
        kallsyms.addresses(hidden, ["same"])
    assert "kptr_restrict" in (error.value.remedy or "")
    # Per-CPU variables of older kernels are at 0 for everyone.
    assert kallsyms.addresses(SYMBOLS + b"0000000000000000 A cpu\n", ["cpu"]) == {"cpu": 0}


# --- settings ------------------------------------------------------------------------------------


def test_settings_are_those_of_the_file(kernel: Kernel) -> None:
    if not Path("/proc/config.gz").exists():
        pytest.skip("this kernel does not tell its settings")
    text = subprocess.run(
        ["zcat", "/proc/config.gz"], check=True, capture_output=True, text=True
    ).stdout
    settings = dict(line.split("=", 1) for line in text.splitlines() if line[:7] == "CONFIG_")
    assert settings["CONFIG_BPF_SYSCALL"] == "y"

    for name, value in settings.items():
        assert kernel.config(name) == value == kernel.setting(name)
    assert kernel.config("CONFIG_NO_SUCH_THING") is None
    assert kernel.setting("no_config") is None


def test_facts_with_names_of_their_own(kernel: Kernel) -> None:
    major, minor = re.findall(r"\d+", os.uname().release)[:2]
    wrapper = f"__{'arm64' if os.uname().machine == 'aarch64' else 'x64'}_sys_bpf"

    assert kernel.version >> 8 == int(major) << 8 | int(minor)
    assert kernel.setting("LINUX_KERNEL_VERSION") == kernel.version
    assert kernel.setting("LINUX_HAS_BPF_COOKIE") == ((int(major), int(minor)) >= (5, 15))
    assert kernel.setting("LINUX_HAS_SYSCALL_WRAPPER") == (wrapper in kernel.addresses([wrapper]))
    assert kernel.setting("LINUX_HAS_WISHES") is None


@pytest.mark.parametrize(
    ("release", "version", "signature", "code"),
    [
        ("6.18.44-fc-v595", "#1 SMP PREEMPT_DYNAMIC @0", "", 0x06122C),
        ("6.12-rc3", "#1 SMP", "", 0x060C00),
        ("4.19.0-22-amd64", "#1 SMP Debian 4.19.260-1 (2022-09-29)", "", 0x0413FF),
        ("6.1.0-9-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.27-1 (2023-05-08)", "", 0x06011B),
        ("5.4.0-12-generic", "#15-Ubuntu SMP", "Ubuntu 5.4.0-12.15-generic 5.4.8", 0x050408),
        ("nonsense", "", "", 0),
    ],
)
def test_the_version_that_was_built(release: str, version: str, signature: str, code: int) -> None:
    assert version_code(release, version, signature) == code

"""What load() asks of the running kernel besides bpf(2)'s verdicts: its types, symbols, settings.

One `Kernel` serves one load().  Nothing is read before it is asked for.
Descriptors of modules' types, which name a module to bpf(2), stay open until `close()`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from errno import E2BIG, EINVAL, ENOENT, EPERM
from functools import cached_property
from typing import NamedTuple

from accel.bpf.closing import Closing
from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.format import btf as b
from accel.bpf.kinds import ProgramType
from accel.bpf.loading import kallsyms, kconfig
from accel.bpf.loading.kernel_btf import KernelBtf
from accel.bpf.loading.relocate import Target

_KALLSYMS = "/proc/kallsyms"
_CONFIG = "/proc/config.gz"
_UBUNTU_VERSION = "/proc/version_signature"

# EPERM: listing takes CAP_SYS_ADMIN.  EINVAL: there is no such command before Linux 5.4.
# E2BIG: struct bpf_btf_info has no name before 5.11, where modules first have types.
_NO_MODULES = (EPERM, EINVAL, E2BIG)

# BPF_FUNC_get_attach_cookie, include/uapi/linux/bpf.h.
_GET_ATTACH_COOKIE = 174

# Of wrapped system calls' functions: arch/*/include/asm/syscall_wrapper.h.
SYSCALL_PREFIXES = {
    "x86_64": "__x64_",
    "aarch64": "__arm64_",
    "riscv64": "__riscv_",
    "s390x": "__s390x_",
}


class Located(NamedTuple):
    """A type of the kernel.

    Attributes:
        type_id: As bpf(2) wants it.
        module: BTF of the module that has it, owned by the Kernel; None for vmlinux.
    """

    type_id: int
    module: Fd | None


class Module(NamedTuple):
    """The types of a loaded module, its own and those of vmlinux it refers to."""

    name: str
    fd: Fd
    types: KernelBtf


class Kernel(Closing):
    """The running kernel, as far as loading an object depends on it.

    Use as a context manager, or close() it.
    """

    def __init__(self, types: KernelBtf | None = None) -> None:
        """Ask nothing yet.

        Args:
            types: The types of vmlinux, if the caller has them open; they stay the caller's.
        """
        self._resources = ExitStack()
        self._types = types
        self._modules: tuple[Module, ...] | None = None

    def close(self) -> None:
        """Let go of everything; a second time does nothing."""
        self._modules = None
        self._resources.close()

    def __repr__(self) -> str:
        return f"<Kernel {os.uname().release}>"

    # --- types ---------------------------------------------------------------------------------

    @property
    def types(self) -> KernelBtf:
        """The types of vmlinux.

        Raises:
            ObjectError: The kernel was built without them.
        """
        if self._types is None:
            self._types = self._resources.enter_context(KernelBtf.open())
        return self._types

    def modules(self) -> tuple[Module, ...]:
        """The types of the loaded modules; none where this process may not list them.

        Raises:
            BpfError: The kernel refused.
            ObjectError: It has no types, or a module's are malformed.
        """
        if self._modules is None:
            self._modules = tuple(self._open_modules())
        return self._modules

    def locate(self, name: str, kind: b.Kind[b.Type], module: str | None = None) -> Located | None:
        """The first type of that name and class: in vmlinux, then in each module.

        Args:
            module: Look there only; "vmlinux" is one too.

        Raises:
            BpfError: The kernel refused to list its modules.
            ObjectError: It has no types.
        """
        if module is None or module == "vmlinux":
            found = self.types.type_id(name, kind)
            if found is not None or module is not None:
                return None if found is None else Located(found, None)
        for candidate in self.modules():
            if module is None or candidate.name == module:
                found = candidate.types.type_id(name, kind)
                if found is not None:
                    return Located(found, candidate.fd)
        return None

    def relocation_types(self) -> Target:
        """Where relocate() looks for what a program means: vmlinux, then the modules."""
        return Target(self.types, lambda: [module.types for module in self.modules()])

    def _open_modules(self) -> Iterator[Module]:
        number: int | None = 0
        try:
            while number is not None:
                opened = self._open_module(number) if number else None
                if opened is not None:
                    yield opened
                number = syscall.get_next_id(uapi.BtfGetNextId, number, "list types of modules")
        except BpfError as e:
            if e.errno not in _NO_MODULES:
                raise

    def _open_module(self, number: int) -> Module | None:
        action = f"read BTF {number}"
        try:
            fd = syscall.get_fd_by_id(uapi.BtfGetFdById, number, action)
        except BpfError as e:
            if e.errno == ENOENT:  # unloaded meanwhile
                return None
            raise
        with ExitStack() as undo:
            undo.callback(fd.close)
            name, of_kernel, size = syscall.btf_info(fd, action)
            if not of_kernel or name == "vmlinux":
                return None
            types = KernelBtf(syscall.btf_data(fd, size, action), base=self.types)
            undo.callback(types.close)
            self._resources.push(undo.pop_all())
            return Module(name, fd, types)
        raise AssertionError("ExitStack does not swallow exceptions")

    # --- symbols and settings ------------------------------------------------------------------

    def addresses(self, names: Collection[str]) -> Mapping[str, int]:
        """Addresses of those kernel symbols that exist, read in one pass.

        Raises:
            ObjectError: A name has several addresses, or addresses are hidden from this
                process.
        """
        if not names:
            return {}
        try:
            with open(_KALLSYMS, "rb", buffering=0) as file:
                data = file.read()
        except OSError as e:
            raise ObjectError(
                f"read the kernel's symbols from {_KALLSYMS}: {e.strerror}",
                remedy="run a kernel built with CONFIG_KALLSYMS_ALL=y",
            ) from e
        return kallsyms.addresses(data, names)

    def config(self, name: str) -> str | None:
        """A setting of the kernel's build: "250" for CONFIG_HZ; None when it is not set."""
        text = self.config_text
        return None if text is None else kconfig.lookup(text, name)

    def setting(self, name: str) -> kconfig.Setting:
        """What a `__kconfig` extern of that name stands for; None when the kernel does not say.

        Names that begin with LINUX_ are no settings of the kernel's, but facts about it that
        libbpf gave names to.
        """
        match name:
            case "LINUX_KERNEL_VERSION":
                return self.version or None
            case "LINUX_HAS_BPF_COOKIE":
                return int(bool(probe.helper(ProgramType.TRACEPOINT, _GET_ATTACH_COOKIE)))
            case "LINUX_HAS_SYSCALL_WRAPPER":
                return int(self._has_syscall_wrappers())
        return self.config(name) if name.startswith("CONFIG_") else None

    def _has_syscall_wrappers(self) -> bool:
        """Whether functions of system calls take a struct pt_regs, ARCH_HAS_SYSCALL_WRAPPER."""
        prefix = SYSCALL_PREFIXES.get(os.uname().machine)
        return prefix is not None and bool(self.addresses([f"{prefix}sys_bpf"]))

    @cached_property
    def config_text(self) -> str | None:
        """The settings of the kernel's build, or None where the kernel does not tell."""
        release = os.uname().release
        # Fedora and others have it with the modules.
        for path in (_CONFIG, f"/boot/config-{release}", f"/lib/modules/{release}/config"):
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except OSError:
                continue
            if data.startswith(b"\x1f\x8b"):
                import zlib

                data = zlib.decompress(data, wbits=31)
            return data.decode("utf-8", "replace")
        return None

    @cached_property
    def version(self) -> int:
        """LINUX_VERSION_CODE of the running kernel."""
        try:
            with open(_UBUNTU_VERSION, encoding="utf-8", errors="replace") as file:
                signature = file.read()
        except OSError:
            signature = ""
        uname = os.uname()
        return version_code(uname.release, uname.version, signature)


def version_code(release: str, version: str, signature: str = "") -> int:
    """LINUX_VERSION_CODE out of uname(2) and Ubuntu's /proc/version_signature.

    Distributions keep the first release's number in `release` while the code in the kernel
    moves on: Ubuntu 5.4.0-12.15-generic is 5.4.8, Debian 4.19.0-22-amd64 is 4.19.260.
    """
    ubuntu = re.match(r"\S+ \S+ (\d+)\.(\d+)\.(\d+)", signature)
    debian = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", version)
    found = ubuntu or debian or re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        return 0
    major, minor, patch = (int(number or 0) for number in found.groups())
    # KERNEL_VERSION(), include/generated/uapi/linux/version.h: patch levels end at 255.
    return major << 16 | minor << 8 | min(patch, 255)

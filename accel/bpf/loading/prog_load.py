"""BPF_PROG_LOAD: the arguments, what we give up for older kernels, and the verifier's log.

A program is tried as it is and in silence, since a log costs time and nobody reads that of a
program the kernel takes.  Only a refusal makes us ask again, first for the reasons, then for
less: nothing is probed on the way to success.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from array import array
from collections.abc import Mapping, Sequence
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, VerifierRejected
from accel.bpf.format.btf import Btf
from accel.bpf.format.insn import CALL, SIZE, decode, encode
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.maps.create import kernel_name
from accel.bpf.spec import ProgramSpec

_FIRST_LOG_BYTES = 1024 * 1024
# Kernels before 5.2 take no larger buffer, and no reader a longer log.
_LARGEST_LOG_BYTES = 16 * 1024 * 1024 - 1

# Wants of this process or machine: nothing is learnt by asking again, for more memory at that.
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# Program types that kernels had before they had an expected attach type (4.17), and with
# which attach types they can do without: libbpf's SEC_EXP_ATTACH_OPT.
_OPTIONAL_ATTACH_TYPES = frozenset(
    {
        (ProgramType.XDP, AttachType.XDP),
        (ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS),
        (ProgramType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS),
        (ProgramType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_CREATE),
        (ProgramType.CGROUP_DEVICE, AttachType.CGROUP_DEVICE),
        (ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
        (ProgramType.SK_SKB, AttachType.SK_SKB_STREAM_PARSER),
        (ProgramType.SK_SKB, AttachType.SK_SKB_STREAM_VERDICT),
        (ProgramType.SK_SKB, AttachType.SK_SKB_VERDICT),
        (ProgramType.SK_MSG, AttachType.SK_MSG_VERDICT),
        (ProgramType.LIRC_MODE2, AttachType.LIRC_MODE2),
        (ProgramType.FLOW_DISSECTOR, AttachType.FLOW_DISSECTOR),
    }
)

# bpf_probe_read_{user,kernel}{,_str} (5.5), and what stood for both before.
_PROBE_READ_KERNEL = 113
_BEFORE_PROBE_READ_KERNEL = {112: 4, 113: 4, 114: 45, 115: 45}


class Target(NamedTuple):
    """What of the kernel, or of another program, a program is verified against.

    Attributes:
        type_id: The attach_btf_id; 0 for none.
        holder: Descriptor of the program, or of the module's BTF, that has the type; None
            for vmlinux.
    """

    type_id: int
    holder: syscall.HasFileno | None = None


NO_TARGET = Target(0)


def submit(
    spec: ProgramSpec,
    instructions: bytes,
    *,
    license: str,
    btf: Btf | None = None,
    btf_fd: Fd | None = None,
    target: Target = NO_TARGET,
    fd_array: Sequence[Fd] = (),
    kernel_version: int = 0,
    poisoned: Mapping[int, str] | None = None,
) -> Fd:
    """Have the kernel verify and compile a program; see Program.load() for the arguments."""
    request = _Request(spec, instructions, license, btf_fd, target, fd_array, kernel_version)
    try:
        return probe.within_memlock(request.load)
    except BpfError as error:
        if error.errno in _OUT_OF:
            raise
        first = error
    attempt = request.load_with_log(first)
    refused = _Attempt(None, first, attempt.log)
    while attempt.fd is None:
        if attempt.log:
            refused = attempt
        if not request.concede(attempt.error, attempt.log):
            raise _rejection(
                spec, instructions, refused.error, refused.log, btf, poisoned
            ) from None
        attempt = request.load_with_log(attempt.error)
    return attempt.fd


class _Attempt(NamedTuple):
    """What came of one try: a descriptor, or an error and the verifier's log."""

    fd: Fd | None
    error: BpfError
    log: str


class _Request:
    """The arguments, and the memory they point to."""

    def __init__(
        self,
        spec: ProgramSpec,
        instructions: bytes,
        license: str,
        btf_fd: Fd | None,
        target: Target,
        fd_array: Sequence[Fd],
        kernel_version: int,
    ) -> None:
        self._action = f"load program {spec.name}"
        self._code = syscall.in_memory(instructions)
        self._license = ctypes.create_string_buffer(license.encode())
        self._fds = (ctypes.c_uint32 * len(fd_array))(*(fd.fileno() for fd in fd_array))
        self._attr = uapi.ProgLoad(
            prog_type=spec.type,
            insn_cnt=len(instructions) // SIZE,
            insns=syscall.address(self._code),
            license=syscall.address(self._license),
            kern_version=kernel_version,
            prog_flags=spec.flags,
            prog_name=kernel_name(spec.name),
            expected_attach_type=spec.attach_type or 0,
            attach_btf_id=target.type_id,
        )
        if target.holder is not None:
            self._attr.attach_prog_fd = target.holder.fileno()
        if fd_array:
            self._attr.fd_array = ctypes.addressof(self._fds)
        if btf_fd is not None:
            self._describe(spec, btf_fd)
        self._concessions = [
            self._give_up_source,
            self._give_up_name,
            self._give_up_attach_type,
            self._give_up_probe_read_kernel,
        ]

    def _describe(self, spec: ProgramSpec, btf_fd: Fd) -> None:
        """Tell the kernel which functions and source lines the instructions come from."""
        if not spec.func_info:
            return  # line info without functions is refused, check_btf_line()
        attr = self._attr
        attr.prog_btf_fd = btf_fd.fileno()
        # Thousands of records: plain words are several times faster than structs.
        self._functions = array(
            "I", chain.from_iterable((info.index, info.type_id) for info in spec.func_info)
        )
        self._lines = array(
            "I",
            chain.from_iterable(
                (info.index, info.file_off, info.line_off, info.line << 10 | info.column)
                for info in spec.line_info
            ),
        )
        attr.func_info_rec_size = ctypes.sizeof(uapi.FuncInfoRecord)
        attr.func_info = self._functions.buffer_info()[0]
        attr.func_info_cnt = len(spec.func_info)
        if spec.line_info:
            attr.line_info_rec_size = ctypes.sizeof(uapi.LineInfoRecord)
            attr.line_info = self._lines.buffer_info()[0]
            attr.line_info_cnt = len(spec.line_info)

    def load(self) -> Fd:
        return syscall.prog_load(self._attr, self._action)

    def load_with_log(self, before: BpfError) -> _Attempt:
        """Try again, listening.

        Args:
            before: The refusal of the same request in silence, which is the real one: what
                a try with a log ends in may be ENOSPC, for want of room for the log.
        """
        size = _FIRST_LOG_BYTES
        while True:
            log = (ctypes.c_char * size)()
            attr = self._attr
            attr.log_level, attr.log_size, attr.log_buf = 1, size, syscall.address(log)
            attr.log_true_size = 0
            try:
                return _Attempt(self.load(), before, "")
            except BpfError as error:
                refusal = before if error.errno == errno.ENOSPC else error
                needed = _needed(size, attr.log_true_size, error.errno, log.value)
            if needed <= size:
                return _Attempt(None, refusal, log.value.decode("utf-8", "replace"))
            size = needed

    def concede(self, refusal: BpfError, log: str) -> bool:
        """Ask for less, in a way the refusal gives reason to; False when none is left.

        Nothing given up changes what the program does.
        """
        while self._concessions:
            if self._concessions.pop(0)(refusal.errno, log):
                return True
        return False

    def _give_up_source(self, number: int, log: str) -> bool:
        """Functions and lines (5.0), and what the kernel finds wrong with them."""
        blamed = "func_info" in log or "line_info" in log or _is_of_arguments(number, log)
        attr = self._attr
        if not attr.prog_btf_fd or not blamed:
            return False
        attr.prog_btf_fd = attr.func_info = attr.func_info_cnt = attr.func_info_rec_size = 0
        attr.line_info = attr.line_info_cnt = attr.line_info_rec_size = 0
        return True

    def _give_up_name(self, number: int, log: str) -> bool:
        """A program's name (4.15)."""
        if not _is_of_arguments(number, log):
            return False
        self._attr.prog_name = b""
        return True

    def _give_up_attach_type(self, number: int, log: str) -> bool:
        """The expected attach type (4.17), where older kernels had the program type."""
        kind = self._attr.prog_type, self._attr.expected_attach_type
        if kind not in _OPTIONAL_ATTACH_TYPES or not _is_of_arguments(number, log):
            return False
        self._attr.expected_attach_type = 0
        return True

    def _give_up_probe_read_kernel(self, _: int, log: str) -> bool:
        """The helpers that tell kernel from user memory; older kernels have one for both."""
        if "probe_read" not in log and "unknown func" not in log and "invalid func" not in log:
            return False
        code = with_older_helpers(self._code.raw)
        lacking = probe.helper(self._attr.prog_type, _PROBE_READ_KERNEL) is probe.Answer.NO
        if code == self._code.raw or not lacking:
            return False
        self._code.raw = code
        return True


def with_older_helpers(instructions: bytes) -> bytes:
    """The same program, reading memory with the helpers there were before Linux 5.5."""
    code = bytearray(instructions)
    for index in range(len(code) // SIZE):
        call = decode(code, sys.byteorder, index)
        older = _BEFORE_PROBE_READ_KERNEL.get(call.imm)
        if call.code == CALL and not call.src and older is not None:
            encoded = encode(call._replace(imm=older), sys.byteorder)
            code[index * SIZE : (index + 1) * SIZE] = encoded
    return bytes(code)


def _is_of_arguments(number: int, log: str) -> bool:
    """Whether the kernel refused before it looked at the program."""
    return number in (errno.EINVAL, errno.E2BIG) and not log


def _needed(size: int, true_size: int, number: int, log: bytes) -> int:
    """How large a buffer the log wants, up to the largest we give.

    From 6.4 on the kernel says so; before, it stops writing and answers ENOSPC,
    or for some errors just stops.
    """
    full = number == errno.ENOSPC or len(log) >= size - 1
    wanted = true_size or (size * 4 if full else size)
    return min(max(wanted, size), _LARGEST_LOG_BYTES)


def _rejection(
    spec: ProgramSpec,
    instructions: bytes,
    error: BpfError,
    log: str,
    btf: Btf | None,
    poisoned: Mapping[int, str] | None,
) -> BpfError:
    try:
        from accel.bpf.loading import features, verifier
    except OSError:  # no descriptor is left to read them with
        remedy = "raise the limit of open files (RLIMIT_NOFILE) to be told why"
        return BpfError(error.action, error.errno, remedy=remedy)
    finding = verifier.find(log, poisoned)
    if not finding.line:
        return _refusal(spec, error)
    source = None
    if finding.instruction is not None and btf is not None:
        source = verifier.source_at(finding.instruction, spec.line_info, btf.string)
    return VerifierRejected(
        spec.name,
        error.errno,
        line=finding.line,
        source=source,
        log=log,
        remedy=finding.suggestion or features.remedy(finding.line, instructions),
    )


def _refusal(spec: ProgramSpec, error: BpfError) -> BpfError:
    """A refusal the verifier has no part in."""
    remedy = _remedy(spec) if error.errno == errno.EINVAL else None
    return BpfError(error.action, error.errno, remedy=remedy or error.remedy)


def _remedy(spec: ProgramSpec) -> str | None:
    """What the kernel has to have that this one has not, if it is found."""
    from accel.bpf import ages

    kind = type_name(spec.type)
    if probe.program_type(spec.type) is probe.Answer.NO:
        since = ages.in_words(ages.PROGRAM_TYPE_SINCE.get(spec.type))
        return f"run a kernel with programs of type {kind}{since}: this one has none"
    attach_type = spec.attach_type or 0
    if attach_type and probe.program_shape(spec.type, attach_type, 0) is probe.Answer.NO:
        since = ages.in_words(ages.ATTACH_TYPE_SINCE.get(attach_type))
        place = _name(AttachType, attach_type)
        return f"run a kernel with {kind} programs for {place}{since}: this one has none"
    if probe.program_shape(spec.type, attach_type, spec.flags) is probe.Answer.NO:
        since = ages.in_words(ages.PROGRAM_FLAGS_SINCE.get(spec.flags))
        return f"run a kernel that knows flags {spec.flags:#x} of {kind} programs{since}"
    return None


def type_name(number: int) -> str:
    """A program type by the kernel's name, or its number."""
    return _name(ProgramType, number)


def _name(kinds: type[IntEnum], number: int) -> str:
    try:
        return kinds(number).name
    except ValueError:
        return str(number)

"""Programs: loaded from specs or opened from pins."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from accel.bpf import pin, probe, syscall, uapi, verifier
from accel.bpf.btf import Btf
from accel.bpf.closing import Closing
from accel.bpf.errors import BpfError, VerifierRejected
from accel.bpf.fd import Fd
from accel.bpf.kinds import ProgramType
from accel.bpf.map import kernel_name
from accel.bpf.spec import ProgramSpec

_FIRST_LOG_BYTES = 64 * 1024
# Kernels before 5.2 take no larger buffer, and no reader a longer log.
_LARGEST_LOG_BYTES = 16 * 1024 * 1024 - 1


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program.

    Attributes:
        id: Unique until reboot.
        name: As the kernel keeps it: at most 15 characters.
        type: A BPF_PROG_TYPE_* number.
        tag: Hash of the instructions, 16 hexadecimal digits; equal code, equal tag.
    """

    id: int
    name: str
    type: int
    tag: str


class Program(Closing):
    """A verified program in the kernel."""

    def __init__(self, fd: Fd, name: str, type: int, attach_type: int | None) -> None:
        """Not for direct use: see load() and from_pin()."""
        self._fd = fd
        self.name = name
        self.type = type
        self.attach_type = attach_type

    @classmethod
    def load(
        cls,
        spec: ProgramSpec,
        instructions: bytes,
        *,
        license: str,
        btf: Btf | None = None,
        btf_fd: Fd | None = None,
        attach_btf_id: int = 0,
        poisoned: Mapping[int, str] | None = None,
    ) -> Program:
        """Have the kernel verify and compile a program.

        Args:
            instructions: Final: relocated, with descriptors of maps filled in.
            btf: What the spec's function and line infos refer to.
            btf_fd: The same, loaded; None leaves the kernel without them.
            attach_btf_id: Kernel type a tracing program is for; 0 for others.
            poisoned: What relocation says of instructions it could not make.

        Raises:
            VerifierRejected: With the line of its log that matters.
            BpfError: The kernel refused before, or for another reason than, verification.
        """
        request = _Request(spec, instructions, license, btf_fd, attach_btf_id)
        try:
            fd = probe.within_memlock(request.load)
        except BpfError as error:
            # The verifier is asked again for its reasons: writing a log is slow,
            # and nobody reads that of a program it accepts.
            loaded, log = request.load_with_log()
            if loaded is None:
                raise _rejection(spec, error, log, btf, poisoned) from None
            fd = loaded
        return cls(fd, spec.name, spec.type, spec.attach_type)

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Program:
        """Open a pinned program.

        Raises:
            BpfError: Nothing is pinned there, or it may not be opened.
            ShapeError: It is no program.
        """
        fd = pin.open_pin(path, "program")
        try:
            info = _info(fd, f"pinned at {os.fspath(path)}")
        except BaseException:
            fd.close()
            raise
        return cls(fd, info.name, info.type, None)

    @property
    def closed(self) -> bool:
        return self._fd.closed

    def fileno(self) -> int:
        return self._fd.fileno()

    def info(self) -> ProgramInfo:
        """What the kernel says of it."""
        return _info(self._fd, self.name)

    @property
    def id(self) -> int:
        """The kernel's number for it, unique until reboot."""
        return self.info().id

    @property
    def tag(self) -> str:
        """Hash of its instructions."""
        return self.info().tag

    def test_run(self, data: bytes = bytes(14), *, repeat: int = 1) -> int:
        """Run it on a packet of `data`, at least an Ethernet header; what it returned last.

        Raises:
            BpfError: EOPNOTSUPP when programs of this type cannot be run by hand.
        """
        return syscall.prog_test_run(self._fd, data, repeat, f"run program {self.name}")

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpf file system, under which it outlives this process."""
        pin.pin(self._fd, path, f"program {self.name}")

    def close(self) -> None:
        """Let go of it; what it is attached to keeps it."""
        self._fd.close()

    def __repr__(self) -> str:
        return f"<Program {self.name}: {type_name(self.type)}{', closed' if self.closed else ''}>"


def type_name(number: int) -> str:
    """A program type by the kernel's name, or its number."""
    try:
        return ProgramType(number).name
    except ValueError:
        return str(number)


class _Request:
    """BPF_PROG_LOAD's arguments, and the memory they point to."""

    def __init__(
        self,
        spec: ProgramSpec,
        instructions: bytes,
        license: str,
        btf_fd: Fd | None,
        attach_btf_id: int,
    ) -> None:
        self._action = f"load program {spec.name}"
        self._code = (ctypes.c_char * len(instructions)).from_buffer_copy(instructions)
        self._license = ctypes.create_string_buffer(license.encode())
        self._attr = uapi.ProgLoad(
            prog_type=spec.type,
            insn_cnt=len(instructions) // 8,
            insns=syscall.address(self._code),
            license=syscall.address(self._license),
            prog_flags=spec.flags,
            prog_name=kernel_name(spec.name),
            expected_attach_type=spec.attach_type or 0,
            attach_btf_id=attach_btf_id,
        )
        if btf_fd is not None:
            self._describe(spec, btf_fd)

    def _describe(self, spec: ProgramSpec, btf_fd: Fd) -> None:
        """Tell the kernel which functions and source lines the instructions come from."""
        if not spec.func_info:
            return  # line info without functions is refused, check_btf_line()
        self._functions = (uapi.FuncInfoRecord * len(spec.func_info))(
            *(uapi.FuncInfoRecord(info.index, info.type_id) for info in spec.func_info)
        )
        self._lines = (uapi.LineInfoRecord * len(spec.line_info))(
            *(
                uapi.LineInfoRecord(
                    info.index, info.file_off, info.line_off, info.line << 10 | info.column
                )
                for info in spec.line_info
            )
        )
        attr = self._attr
        attr.prog_btf_fd = btf_fd.fileno()
        attr.func_info_rec_size = ctypes.sizeof(uapi.FuncInfoRecord)
        attr.func_info = ctypes.addressof(self._functions)
        attr.func_info_cnt = len(spec.func_info)
        if spec.line_info:
            attr.line_info_rec_size = ctypes.sizeof(uapi.LineInfoRecord)
            attr.line_info = ctypes.addressof(self._lines)
            attr.line_info_cnt = len(spec.line_info)

    def load(self) -> Fd:
        return syscall.prog_load(self._attr, self._action)

    def load_with_log(self) -> tuple[Fd | None, str]:
        """Try again, listening: (the descriptor if it now worked, the verifier's log)."""
        size = _FIRST_LOG_BYTES
        while True:
            log = (ctypes.c_char * size)()
            attr = self._attr
            attr.log_level, attr.log_size, attr.log_buf = 1, size, syscall.address(log)
            try:
                return self.load(), ""
            except BpfError as error:
                needed = _needed(size, attr.log_true_size, error.errno, log.value)
            if needed <= size:
                return None, log.value.decode("utf-8", "replace")
            size = needed


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
    error: BpfError,
    log: str,
    btf: Btf | None,
    poisoned: Mapping[int, str] | None,
) -> BpfError:
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
        remedy=finding.suggestion,
    )


def _refusal(spec: ProgramSpec, error: BpfError) -> BpfError:
    """A refusal the verifier has no part in."""
    if error.errno == errno.EINVAL and probe.program_type(spec.type) is probe.Answer.NO:
        return BpfError(
            error.action,
            error.errno,
            remedy=f"run a kernel with programs of type {type_name(spec.type)}: this one has none",
        )
    return error


def _info(fd: Fd, name: str) -> ProgramInfo:
    raw = syscall.obj_get_info_by_fd(fd, uapi.ProgInfo, f"ask about program {name}")
    return ProgramInfo(
        id=raw.id, name=raw.name.decode("ascii", "replace"), type=raw.type, tag=bytes(raw.tag).hex()
    )


def iter_programs() -> Iterator[ProgramInfo]:
    """Every program loaded on this machine, by id; one that goes meanwhile is left out.

    Raises:
        BpfError: Listing needs CAP_SYS_ADMIN.
    """
    number = 0
    action = "list BPF programs"
    while (following := syscall.get_next_id(uapi.ProgGetNextId, number, action)) is not None:
        number = following
        try:
            with syscall.get_fd_by_id(uapi.ProgGetFdById, number, action) as fd:
                info = _info(fd, f"program {number}")
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        yield info

"""Programs: loaded from specs, opened from pins or by id, asked about, run by hand."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from accel.bpf.closing import Closing
from accel.bpf.door import pin, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.ids import iter_by_id
from accel.bpf.format.btf import Btf
from accel.bpf.kinds import ProgramType
from accel.bpf.loading import prog_load
from accel.bpf.spec import ProgramSpec

# Flags of Program.run(), include/uapi/linux/bpf.h.
BPF_F_TEST_RUN_ON_CPU = 1 << 0
BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1
BPF_F_TEST_SKB_CHECKSUM_COMPLETE = 1 << 2

_BPF_STATS_RUN_TIME = 0

# Types that are run without a packet: their bpf_prog_test_run_*() in net/bpf/test_run.c and
# kernel/bpf/syscall.c refuse one.
_WITHOUT_PACKET = frozenset(
    {
        ProgramType.RAW_TRACEPOINT,
        ProgramType.RAW_TRACEPOINT_WRITABLE,
        ProgramType.SYSCALL,
        ProgramType.TRACING,
        ProgramType.SK_LOOKUP,
    }
)
_WITHOUT_CONTEXT_OUT = _WITHOUT_PACKET - {ProgramType.SK_LOOKUP}

_ETHERNET_HEADER = bytes(14)
# How much a run may add to a packet: the kernel takes no more than one page of them.
_ROOM = 4096


class ProgramInfo(NamedTuple):
    """What the kernel says of a program; what an older kernel does not say is 0.

    Attributes:
        id: Unique until reboot.
        name: As the kernel keeps it: at most 15 characters.
        type: A BPF_PROG_TYPE_* number.
        tag: Hash of the instructions, 16 hexadecimal digits; equal code, equal tag.
        load_time_ns: When it was loaded, in nanoseconds after boot.
        uid: Who loaded it.
        gpl_compatible: Whether it may call what is for GPL-compatible programs only.
        xlated_bytes: Size of the instructions as the kernel rewrote them.
        jited_bytes: Size of the machine code; 0 without a JIT compiler.
        verified_insns: How many instructions the verifier had to look at (5.16).
        map_count: How many maps it uses; Program.map_ids() has their ids.
        btf_id: Of the types it was loaded with; 0 for none.
        attach_btf_id: The kernel type it is for.
        run_time_ns, run_count: Time it ran, and how often, while bpf_stats() was on.
        recursion_misses: How often it was left out because it was running already.
    """

    id: int
    name: str
    type: int
    tag: str
    load_time_ns: int = 0
    uid: int = 0
    gpl_compatible: bool = False
    xlated_bytes: int = 0
    jited_bytes: int = 0
    verified_insns: int = 0
    map_count: int = 0
    btf_id: int = 0
    attach_btf_id: int = 0
    run_time_ns: int = 0
    run_count: int = 0
    recursion_misses: int = 0


class Run(NamedTuple):
    """What came of a run by hand.

    Attributes:
        retval: What the program returned last, unsigned.
        data: The packet afterwards; b"" for programs that are given none.
        context: The context afterwards, as long as the one that was given.
        duration_ns: Mean time of one run.
    """

    retval: int
    data: bytes
    context: bytes
    duration_ns: int


class Program(Closing):
    """A verified program in the kernel."""

    def __init__(
        self, fd: Fd, name: str, type: int, attach_type: int | None, section: str | None = None
    ) -> None:
        """Not for direct use: see load(), from_pin() and from_id().

        Args:
            section: What SEC() said; None where nobody knows.
        """
        self._fd = fd
        self.name = name
        self.type = type
        self.attach_type = attach_type
        self.section = section

    @classmethod
    def load(
        cls,
        spec: ProgramSpec,
        instructions: bytes,
        *,
        license: str,
        btf: Btf | None = None,
        btf_fd: Fd | None = None,
        target: prog_load.Target = prog_load.NO_TARGET,
        fd_array: Sequence[Fd] = (),
        kernel_version: int = 0,
        poisoned: Mapping[int, str] | None = None,
    ) -> Program:
        """Have the kernel verify and compile a program.

        Args:
            instructions: Final: relocated, with descriptors of maps filled in.
            btf: What the spec's function and line infos refer to.
            btf_fd: The same, loaded; None leaves the kernel without them.
            target: What a tracing program and its like is for.
            fd_array: Descriptors that calls refer to by number: BTF of modules.
            kernel_version: LINUX_VERSION_CODE, which kprobe programs had to have before 5.0.
            poisoned: What relocation says of instructions it could not make.

        Raises:
            VerifierRejected: With the line of its log that matters.
            BpfError: The kernel refused before, or for another reason than, verification.
        """
        fd = prog_load.submit(
            spec,
            instructions,
            license=license,
            btf=btf,
            btf_fd=btf_fd,
            target=target,
            fd_array=fd_array,
            kernel_version=kernel_version,
            poisoned=poisoned,
        )
        return cls(fd, spec.name, spec.type, spec.attach_type, spec.section)

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Program:
        """Open a pinned program.

        Raises:
            BpfError: Nothing is pinned there, or it may not be opened.
            ShapeError: It is no program.
        """
        return cls._opened(pin.open_pin(path, "program"), f"pinned at {os.fspath(path)}")

    @classmethod
    def from_id(cls, number: int) -> Program:
        """Open a program by the kernel's number for it.

        Raises:
            BpfError: ENOENT when there is none; EPERM without CAP_SYS_ADMIN.
        """
        action = f"open program {number}"
        return cls._opened(syscall.get_fd_by_id(uapi.ProgGetFdById, number, action), str(number))

    @classmethod
    def _opened(cls, fd: Fd, what: str) -> Program:
        try:
            info = _info(fd, what)
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

    def map_ids(self) -> tuple[int, ...]:
        """Ids of the maps it uses, and of those bound to it."""
        return syscall.prog_map_ids(
            self._fd, self.info().map_count, f"ask about the maps of program {self.name}"
        )

    def test_run(self, data: bytes | None = None, *, repeat: int = 1) -> int:
        """Run it by hand, as run() does; what it returned last, unsigned."""
        return self.run(data, repeat=repeat).retval

    def run(
        self,
        data: bytes | None = None,
        *,
        context: bytes = b"",
        repeat: int = 1,
        cpu: int | None = None,
        flags: int = 0,
    ) -> Run:
        """Run it by hand (BPF_PROG_TEST_RUN), on this packet and context.

        Args:
            data: The packet, at least an Ethernet header; None is a header of zeros for
                programs that look at packets, and nothing for others.
            context: What the type's context struct holds, such as struct __sk_buff, the
                arguments of a raw tracepoint, or what a syscall program is to work on.
            repeat: How often; the time is that of one.
            cpu: Run a raw tracepoint program there.
            flags: BPF_F_TEST_*.

        Raises:
            BpfError: EOPNOTSUPP when programs of this type cannot be run by hand; EINVAL
                when they take no packet, context or repetition.
        """
        if data is None:
            data = b"" if self.type in _WITHOUT_PACKET else _ETHERNET_HEADER
        room = len(data) + _ROOM if data and not flags & BPF_F_TEST_XDP_LIVE_FRAMES else 0
        data_in, data_out = syscall.in_memory(data), (ctypes.c_char * room)()
        # A syscall program works on the context it is given; others write a copy.
        context_in, context_out = syscall.in_memory(context), (ctypes.c_char * len(context))()
        attr = uapi.ProgTestRun(
            prog_fd=self._fd.fileno(),
            data_size_in=len(data),
            data_in=_address(data_in),
            data_size_out=room,
            data_out=_address(data_out),
            repeat=0 if repeat == 1 else repeat,
            ctx_size_in=len(context),
            ctx_in=_address(context_in),
            flags=flags,
        )
        if self.type not in _WITHOUT_CONTEXT_OUT:
            attr.ctx_size_out, attr.ctx_out = len(context), _address(context_out)
        if cpu is not None:
            attr.flags |= BPF_F_TEST_RUN_ON_CPU
            attr.cpu = cpu
        syscall.prog_test_run(attr, f"run program {self.name}")
        context_after = context_out if attr.ctx_out else context_in
        return Run(
            int(attr.retval),
            data_out.raw[: attr.data_size_out] if room else b"",
            context_after.raw,
            int(attr.duration),
        )

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpf file system, under which it outlives this process."""
        pin.pin(self._fd, path, f"program {self.name}")

    def close(self) -> None:
        """Let go of it; what it is attached to keeps it."""
        self._fd.close()

    def __repr__(self) -> str:
        kind = prog_load.type_name(self.type)
        return f"<Program {self.name}: {kind}{', closed' if self.closed else ''}>"


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Where it lives; 0 for an empty one, which the kernel wants to be told of as none."""
    return syscall.address(buffer) if len(buffer) else 0


def _info(fd: Fd, name: str) -> ProgramInfo:
    raw = syscall.obj_get_info_by_fd(fd, uapi.ProgInfo, f"ask about program {name}")
    return ProgramInfo(
        id=raw.id,
        name=raw.name.decode("ascii", "replace"),
        type=raw.type,
        tag=bytes(raw.tag).hex(),
        load_time_ns=raw.load_time,
        uid=raw.created_by_uid,
        gpl_compatible=bool(raw.gpl_compatible & 1),
        xlated_bytes=raw.xlated_prog_len,
        jited_bytes=raw.jited_prog_len,
        verified_insns=raw.verified_insns,
        map_count=raw.nr_map_ids,
        btf_id=raw.btf_id,
        attach_btf_id=raw.attach_btf_id,
        run_time_ns=raw.run_time_ns,
        run_count=raw.run_cnt,
        recursion_misses=raw.recursion_misses,
    )


@contextmanager
def bpf_stats() -> Iterator[None]:
    """Have the kernel count the time and number of runs of every program, while inside.

    It costs each run some tens of nanoseconds.  Counts go on from where they were.

    Raises:
        BpfError: EINVAL before Linux 5.8; EPERM without CAP_SYS_ADMIN.
    """
    with syscall.enable_stats(_BPF_STATS_RUN_TIME, "count the runs of programs"):
        yield


def iter_programs() -> Iterator[ProgramInfo]:
    """Every program loaded on this machine, by id; one that goes meanwhile is left out.

    Raises:
        BpfError: Listing needs CAP_SYS_ADMIN.
    """
    return iter_by_id(
        uapi.ProgGetNextId,
        uapi.ProgGetFdById,
        "list BPF programs",
        lambda fd, number: _info(fd, f"program {number}"),
    )

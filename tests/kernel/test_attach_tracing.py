"""Attaching to harmless functions and tracepoints; each program counts this process alone."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.uapi import LinkType, PerfEventType
from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.kinds import AttachType
from accel.bpf.links.attach import attach
from accel.bpf.links.link import EmulatedLink, Link
from accel.bpf.links.link_info import (
    PerfEventDetails,
    RawTracepointDetails,
    TracingDetails,
    UprobeMultiDetails,
)
from accel.bpf.links.perf import (
    attach_kprobe,
    attach_kprobe_multi,
    attach_perf_event,
    attach_tracepoint,
    attach_uprobe,
    attach_uprobe_multi,
    open_perf_event,
)
from accel.bpf.links.tracing import (
    attach_freplace,
    attach_raw_tracepoint,
    attach_tracing,
)
from accel.bpf.loading.object import Object
from accel.bpf.loading.prog_load import Target
from accel.bpf.loading.program import Program
from accel.bpf.loading.targets import function_id
from tests.kernel.attach_bed import (
    Load,
    attach_object,
    compiled,
    hits,
    is_since,
    load_attach,
    skip_without_trampolines,
)

__all__ = ["attach_object", "compiled", "load_attach"]

pytestmark = pytest.mark.kernel

XDP_DROP, XDP_PASS = 1, 2

# bpf_perf_link_fill_link_info()
PERF_LINKS_TELL = is_since((6, 6))

PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def refuse(monkeypatch: pytest.MonkeyPatch, *links: AttachType) -> None:
    """BPF_LINK_CREATE as a kernel answers that attaches these in an older way."""
    real = syscall.bpf

    def bpf(attr: uapi.Attr, action: str) -> int:
        if isinstance(attr, uapi.LinkCreate) and attr.attach_type in links:
            raise BpfError(action, errno.EINVAL)
        return real(attr, action)

    monkeypatch.setattr(syscall, "bpf", bpf)


# --- by BTF id -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["on_entry", "on_exit", "instead"])
def test_a_function_runs_its_program(load_attach: Load, name: str) -> None:
    """A test run of a tracing program calls the kernel's functions made for that."""
    obj = load_attach(name)
    program = obj.programs[name]
    with attach(program) as link:
        program.test_run()
        seen = hits(obj)
        assert seen >= 1
        info = link.info()
        assert info.type == LinkType.TRACING
        assert info.attach_type == program.attach_type
        assert isinstance(info.details, TracingDetails)
        assert info.details.target_btf_id > 0 or not is_since((5, 13))
    program.test_run()
    assert hits(obj) == seen


def test_a_cookie_tells_attachments_apart(load_attach: Load) -> None:
    obj = load_attach("on_entry")
    program = obj.programs["on_entry"]
    with attach_tracing(program, cookie=0xC0FFEE):
        program.test_run()
    assert obj.variables["cookie"].get() == 0xC0FFEE


def test_tracing_on_a_kernel_without_its_links(
    load_attach: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, AttachType.TRACE_RAW_TP)
    obj = load_attach("on_call")
    program = obj.programs["on_call"]
    with attach_tracing(program) as link:
        os.getpgid(0)
        assert hits(obj) >= 1
        assert link.info().type in (LinkType.TRACING, LinkType.RAW_TRACEPOINT)


def test_a_pinned_tracing_program_attaches(load_attach: Load, bpffs: Path) -> None:
    """The kernel tells no attach type of it, and needs none."""
    obj = load_attach("on_call")
    obj.programs["on_call"].pin(bpffs / "program")
    with Program.from_pin(bpffs / "program") as program:
        with attach_tracing(program):
            os.getpgid(0)
        assert hits(obj) >= 1
        with pytest.raises(BpfError, match="EINVAL") as caught:
            attach_tracing(program, cookie=1)
        assert "loaded here" in str(caught.value.remedy)


def test_a_tracing_link_lives_as_it_was_born(load_attach: Load) -> None:
    program = load_attach("on_call").programs["on_call"]
    with attach_tracing(program) as link:
        with pytest.raises(BpfError, match="put program on_call") as caught:
            link.update(program)
        assert "keeps its program for life" in str(caught.value.remedy)
        with pytest.raises(BpfError, match="detach link") as caught:
            link.detach()
        assert "ends when nobody holds it" in str(caught.value.remedy)


def test_a_program_attaches_once_to_a_function(load_attach: Load) -> None:
    program = load_attach("on_entry").programs["on_entry"]
    with attach_tracing(program), pytest.raises(BpfError, match="EBUSY") as caught:
        attach_tracing(program)
    assert "close the link" in str(caught.value.remedy)


def test_an_lsm_hook_runs_its_program(load_attach: Load) -> None:
    """Where the machine was booted without BPF among its LSMs it attaches, and is not asked."""
    obj = load_attach("may_getpgid")
    with attach(obj.programs["may_getpgid"]) as link:
        os.getpgid(0)
        assert link.info().attach_type == AttachType.LSM_MAC
        assert hits(obj) in (0, 1)


@pytest.mark.parametrize("name", ["on_call", "on_raw_call"])
def test_a_tracepoint_runs_its_program(load_attach: Load, name: str) -> None:
    obj = load_attach(name)
    program = obj.programs[name]
    with attach(program) as link:
        os.getpgid(0)
        details = link.info().details
    seen = hits(obj)
    assert seen >= 1
    os.getpgid(0)
    assert hits(obj) == seen
    if name == "on_raw_call":
        assert details == RawTracepointDetails("sys_enter", 0)


def test_a_missing_raw_tracepoint_is_named(load_attach: Load) -> None:
    program = load_attach("on_raw_call").programs["on_raw_call"]
    with pytest.raises(
        BpfError, match=r"raw tracepoint raw_syscalls/sys_enter: .*ENOENT"
    ) as caught:
        attach_raw_tracepoint(program, "raw_syscalls/sys_enter")
    assert "without its subsystem" in str(caught.value.remedy)


# --- freplace ------------------------------------------------------------------------------


def test_an_extension_takes_the_place_of_a_function(load_attach: Load) -> None:
    obj = load_attach("on_frame")
    target = obj.programs["on_frame"]
    before = target.test_run()
    with _extension(obj) as extension:
        with attach_freplace(extension, target, "verdict") as link:
            assert target.test_run() == XDP_DROP
            details = link.info().details
            assert isinstance(details, TracingDetails)
            assert details.target_object_id == target.id or not is_since((5, 13))
            with pytest.raises(BpfError, match="attach program drop to function verdict"):
                attach_freplace(extension, target, "verdict")
        assert target.test_run() == before == XDP_PASS
        with pytest.raises(BpfError, match=r"no function nothing: .*ENOENT"):
            attach_freplace(extension, target, "nothing")
        with attach(extension, target, function="verdict"):
            assert target.test_run() == XDP_DROP


def _extension(obj: Object) -> Program:
    """The object's freplace program, loaded for the function of another of its programs."""
    target = obj.programs["on_frame"]
    spec = obj.spec.programs["drop"]
    with syscall.get_fd_by_id(uapi.BtfGetFdById, target.info().btf_id, "open its types") as types:
        try:
            return Program.load(
                spec,
                spec.instructions,
                license="GPL",
                btf=obj.spec.btf,
                btf_fd=types,
                target=Target(function_id(target, "verdict", "find verdict"), target),
            )
        except BpfError as error:
            skip_without_trampolines(error)
            raise


# --- perf events ---------------------------------------------------------------------------


@pytest.fixture
def tracefs(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tracefs"
    path.mkdir()
    if _libc.mount(b"tracefs", os.fsencode(path), b"tracefs", 0, None) != 0:
        pytest.skip("cannot mount tracefs")
    try:
        yield path
    finally:
        assert _libc.umount2(os.fsencode(path), 2) == 0


def test_a_tracepoint_of_tracefs(load_attach: Load, tracefs: Path) -> None:
    obj = load_attach("on_getpgid")
    program = obj.programs["on_getpgid"]
    with attach_tracepoint(program, "syscalls", "sys_enter_getpgid", cookie=7) as link:
        os.getpgid(0)
        details = link.info().details
    os.getpgid(0)
    assert hits(obj) == 1
    assert obj.variables["cookie"].get() == 7
    if PERF_LINKS_TELL:
        assert details == PerfEventDetails(PerfEventType.TRACEPOINT, "sys_enter_getpgid", 0, 7)
    with attach(program):
        os.getpgid(0)
    assert hits(obj) == 2
    with pytest.raises(BpfError, match="ENOENT") as caught:
        attach_tracepoint(program, "syscalls", "sys_enter_no_such_call")
    assert "name a tracepoint below" in str(caught.value.remedy)


def test_a_tracepoint_on_a_kernel_without_perf_links(
    load_attach: Load, tracefs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, AttachType.PERF_EVENT)
    monkeypatch.setattr(probe, "perf_links", lambda: probe.Answer.NO)
    obj = load_attach("on_getpgid")
    with attach_tracepoint(obj.programs["on_getpgid"], "syscalls", "sys_enter_getpgid") as link:
        assert isinstance(link, EmulatedLink)
        os.getpgid(0)
        assert hits(obj) == 1
        link.detach()
        os.getpgid(0)
    os.getpgid(0)
    assert hits(obj) == 1


def test_samples_run_a_program(load_attach: Load) -> None:
    """Every page fault of this process, which makes some."""
    obj = load_attach("on_event")
    with (
        open_perf_event(
            PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS, sample_period=1, pid=0
        ) as event,
        attach_perf_event(obj.programs["on_event"], event) as link,
    ):
        with mmap.mmap(-1, 16 * mmap.PAGESIZE) as fresh:
            for page in range(16):
                fresh[page * mmap.PAGESIZE] = 1
        assert hits(obj) >= 16
        details = link.info().details
        assert isinstance(details, PerfEventDetails)
        assert not PERF_LINKS_TELL or details.kind is PerfEventType.EVENT


LIBRARY = """
int probed(int x) { return x + 1; }
int beside(int x) { return x + 2; }
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A shared library with the functions `probed` and `beside`."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, built = tmp_path / "probed.c", tmp_path / "libprobed.so"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source)], check=True)
    return built


@pytest.mark.parametrize("at_return", [False, True], ids=["call", "return"])
def test_a_function_of_a_library_runs_a_program(
    load_attach: Load, library: Path, at_return: bool
) -> None:
    obj = load_attach("on_function")
    program = obj.programs["on_function"]
    functions = ctypes.CDLL(str(library))
    with attach_uprobe(program, library, "probed", at_return=at_return, cookie=9) as link:
        assert functions.probed(1) == 2
        assert functions.beside(1) == 3
        details = link.info().details
    assert functions.probed(1) == 2
    assert hits(obj) == 1
    assert obj.variables["cookie"].get() == 9
    assert isinstance(details, PerfEventDetails)
    assert details.kind is (PerfEventType.URETPROBE if at_return else PerfEventType.UPROBE)
    assert details.name == str(library)


def test_a_section_tells_a_probe_from_a_probe(load_attach: Load, library: Path) -> None:
    obj = load_attach("on_function")
    program = obj.programs["on_function"]
    functions = ctypes.CDLL(str(library))
    with attach(program, section=f"uretprobe/{library}:probed") as link:
        functions.probed(1)
        details = link.info().details
        assert isinstance(details, PerfEventDetails)
        assert details.kind is PerfEventType.URETPROBE
    with attach(program, f"{library}:{details.offset:#x}", section="uprobe"):
        functions.probed(1)
    assert hits(obj) == 2
    with Program.from_id(program.id) as again:
        assert again.section is None
        with pytest.raises(BpfError, match="without its section"):
            attach(again, "somewhere")
    with pytest.raises(BpfError, match="usdt is not attached here"):
        attach(program, section=f"usdt/{library}:provider:name")
    with pytest.raises(BpfError, match="needs path:function"):
        attach(program, "probed", section="uprobe")


def test_many_functions_of_a_library(load_attach: Load, library: Path) -> None:
    obj = load_attach("on_functions")
    functions = ctypes.CDLL(str(library))
    program = obj.programs["on_functions"]
    with attach_uprobe_multi(program, library, ["probed", "beside"]) as link:
        functions.probed(1)
        functions.beside(1)
        details = link.info().details
    assert hits(obj) == 2
    assert details == UprobeMultiDetails(str(library), 2, 0, 0)
    with attach(program, f"{library}:probed,beside", section="uprobe.multi"):
        functions.beside(1)
    assert hits(obj) == 3


def test_places_of_a_library_are_offsets_too(load_attach: Load, library: Path) -> None:
    probe_one, probe_many = load_attach("on_function"), load_attach("on_functions")
    functions = ctypes.CDLL(str(library))
    with attach_uprobe(probe_one.programs["on_function"], library, "probed") as link:
        details = link.info().details
        assert isinstance(details, PerfEventDetails)
    program = probe_many.programs["on_functions"]
    places = f"{library}:beside,{details.offset:#x}"
    with attach(program, places, section="uprobe.multi"):
        functions.probed(1)
        functions.beside(1)
    assert hits(probe_many) == 2
    with pytest.raises(BpfError, match=r"attach to 0zz: .*EINVAL"):
        attach(program, f"{library}:0zz", section="uprobe.multi")


@pytest.mark.parametrize(("pid", "seen"), [(None, 1), (0, 1), (1, 0)])
def test_a_probe_is_for_one_process_or_all(
    load_attach: Load, library: Path, pid: int | None, seen: int
) -> None:
    """Said in the same way for one place and for many."""
    one, many = load_attach("on_function"), load_attach("on_functions")
    functions = ctypes.CDLL(str(library))
    with (
        attach_uprobe(one.programs["on_function"], library, "probed", pid=pid),
        attach_uprobe_multi(many.programs["on_functions"], library, ["probed"], pid=pid),
    ):
        functions.probed(1)
    assert (hits(one), hits(many)) == (seen, seen)


def test_a_program_for_many_places_is_not_attached_to_one(load_attach: Load, library: Path) -> None:
    """The kernel refuses the link, but would take the program in the older way."""
    obj = load_attach("on_functions")
    with pytest.raises(BpfError, match=r"perf event: .*EINVAL") as caught:
        attach_uprobe(obj.programs["on_functions"], library, "probed")
    assert "use attach_uprobe_multi()" in str(caught.value.remedy)


def test_a_missing_function_is_named(load_attach: Load, library: Path, tmp_path: Path) -> None:
    program = load_attach("on_function").programs["on_function"]
    with pytest.raises(ObjectError, match="has no function nothing"):
        attach_uprobe(program, library, "nothing")
    with pytest.raises(ObjectError, match="read "):
        attach_uprobe(program, tmp_path / "nothing", "probed")
    (tmp_path / "text").write_text("not an ELF file")
    with pytest.raises(ObjectError, match="read "):
        attach_uprobe(program, tmp_path / "text", "probed")


def test_kprobes_where_the_kernel_has_them(load_attach: Load) -> None:
    obj = load_attach("on_function")
    program = obj.programs["on_function"]
    if not Path("/sys/bus/event_source/devices/kprobe").exists():
        with pytest.raises(BpfError, match="ENODEV") as caught:
            attach_kprobe(program, "bpf_fentry_test1")
        assert "this kernel has no kprobes" in str(caught.value.remedy)
        with pytest.raises(BpfError, match="ENODEV"):
            attach(program, section="kretprobe/bpf_fentry_test1+0x4")
        return
    with attach_kprobe(program, "bpf_fentry_test1", cookie=3) as link:
        load_attach("on_entry").programs["on_entry"].test_run()
        assert hits(obj) == 1
        details = link.info().details
        assert isinstance(details, PerfEventDetails)
        assert not PERF_LINKS_TELL or details.kind is PerfEventType.KPROBE


def test_what_kprobes_cannot_be_is_said(load_attach: Load) -> None:
    program = load_attach("on_function").programs["on_function"]
    with pytest.raises(BpfError, match="attach program on_function to 1 kernel functions"):
        attach_kprobe_multi(program, ["bpf_fentry_test1"])
    with pytest.raises(BpfError, match="patterns of functions"):
        attach(program, section="kprobe.multi/bpf_fentry_*")
    with pytest.raises(BpfError, match=r"attach to f\+x: .*EINVAL"):
        attach(program, section="kprobe/f+x")


def test_a_link_is_reopened_by_its_id(load_attach: Load) -> None:
    program = load_attach("on_call").programs["on_call"]
    with attach_tracing(program) as link, Link.from_id(link.info().id) as again:
        assert again.info() == link.info()

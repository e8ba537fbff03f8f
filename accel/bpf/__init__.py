"""A BPF loader: object files become maps, programs and links in the kernel.

The life of an object has four verbs, and no others:

open    bytes of an ELF file -> ObjectSpec.  Pure: no kernel, no privilege, the same on
        every machine.  Specs are frozen; `with_variables()`, their `with_` methods and
        `dataclasses.replace()` make changed copies.
load    ObjectSpec -> Object: maps created, variables set, externs and CO-RE relocations
        found in the running kernel, programs verified.
attach  a Program to what it is for -> Link, by `attach()` or the function for its kind.
close   every holder of a descriptor is a context manager; what is pinned or attached
        outlives it.

    from accel.bpf import attach, load, open_object, with_variables

    spec = open_object("connect.bpf.o").with_max_entries(connections=1024)
    with load(with_variables(spec, forbidden=25)) as obj:
        with attach(obj.programs["watch"], "/sys/fs/cgroup/web"):
            ...
            for port, count in obj.maps["connections"].typed().items():
                ...

docs/loader.md is the guide.  Where to look for what:

the file        ObjectSpec and what it holds (spec.py); its types: Btf (btf.py)
programs        Program, Run, iter_programs(), bpf_stats()
maps            Map, by type and in batches; Arena; iter_maps(); codec_for() for bytes
variables       Variable, Variables, with_variables()
streams         RingBuffer, PerfBuffer, and UserRingBuffer the other way
links           Link, iter_links(); attach() for which program goes where; Order for the
                place beside others; query() for what is attached
the kernel      Kernel and KernelBtf: its types, symbols and settings; probe.py: what it can
                do, found by trying, never by its version
what went wrong ObjectError, ShapeError, VerifierRejected, NotSupported, BpfError (errors.py):
                what was tried, what the kernel answered and what would help

One module knows the system call (syscall.py) and one its layouts (uapi.py).

What does not belong here: anything about pods, proxies or meshes.  This
package could be published on its own.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from accel.bpf.arena import Arena
from accel.bpf.btf import Btf, Struct
from accel.bpf.codec import Codec, codec_for
from accel.bpf.errors import (
    BpfError,
    NotSupported,
    ObjectError,
    ShapeError,
    VerifierRejected,
)
from accel.bpf.kernel import Kernel
from accel.bpf.kernel_btf import KernelBtf
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.map import BatchError, Map, MapInfo, Redirect, View, iter_maps
from accel.bpf.object import Object, load
from accel.bpf.opener import open_object
from accel.bpf.pin import on_bpffs, unpin
from accel.bpf.program import Program, ProgramInfo, Run, bpf_stats, iter_programs
from accel.bpf.spec import (
    CoreKind,
    CoreRelocation,
    ExternKind,
    ExternReference,
    ExternSpec,
    FuncInfo,
    JumpTable,
    LineInfo,
    MapReference,
    MapSpec,
    ObjectSpec,
    ProgramSpec,
    StructOps,
    VariableSpec,
)
from accel.bpf.uapi import LinkType
from accel.bpf.variable import Variable, Variables, with_variables

if TYPE_CHECKING:
    from accel.bpf.attach import attach
    from accel.bpf.attach_cgroup import attach_cgroup
    from accel.bpf.attach_iter import CgroupOrder, attach_iter, read_iter
    from accel.bpf.attach_network import (
        Hook,
        attach_clsact,
        attach_netfilter,
        attach_netkit,
        attach_tc,
        attach_tcx,
        attach_xdp,
    )
    from accel.bpf.attach_perf import (
        attach_kprobe,
        attach_kprobe_multi,
        attach_perf_event,
        attach_tracepoint,
        attach_uprobe,
        attach_uprobe_multi,
        open_perf_event,
        syscall_function,
    )
    from accel.bpf.attach_sockets import (
        attach_netns,
        attach_sk_msg,
        attach_socket,
        attach_sockmap,
        detach_sk_msg,
        detach_socket,
    )
    from accel.bpf.attach_struct_ops import attach_struct_ops, write_struct_ops
    from accel.bpf.attach_tracing import attach_freplace, attach_raw_tracepoint, attach_tracing
    from accel.bpf.link import Link
    from accel.bpf.link_info import (
        CgroupDetails,
        DeviceDetails,
        IterDetails,
        KprobeMultiDetails,
        LinkInfo,
        NetfilterDetails,
        NetnsDetails,
        PerfEventDetails,
        RawTracepointDetails,
        SockmapDetails,
        StructOpsDetails,
        TracingDetails,
        UprobeMultiDetails,
        iter_links,
    )
    from accel.bpf.order import Order
    from accel.bpf.perfbuf import PerfBuffer
    from accel.bpf.query import Attached, Attachments, query
    from accel.bpf.ringbuf import RingBuffer, RingStatistics, UserRingBuffer

__all__ = [
    "Arena",
    "AttachType",
    "Attached",
    "Attachments",
    "BatchError",
    "BpfError",
    "Btf",
    "CgroupDetails",
    "CgroupOrder",
    "Codec",
    "CoreKind",
    "CoreRelocation",
    "DeviceDetails",
    "ExternKind",
    "ExternReference",
    "ExternSpec",
    "FuncInfo",
    "Hook",
    "IterDetails",
    "JumpTable",
    "Kernel",
    "KernelBtf",
    "KprobeMultiDetails",
    "LineInfo",
    "Link",
    "LinkInfo",
    "LinkType",
    "Map",
    "MapInfo",
    "MapReference",
    "MapSpec",
    "MapType",
    "NetfilterDetails",
    "NetnsDetails",
    "NotSupported",
    "Object",
    "ObjectError",
    "ObjectSpec",
    "Order",
    "PerfBuffer",
    "PerfEventDetails",
    "Program",
    "ProgramInfo",
    "ProgramSpec",
    "ProgramType",
    "RawTracepointDetails",
    "Redirect",
    "RingBuffer",
    "RingStatistics",
    "Run",
    "ShapeError",
    "SockmapDetails",
    "Struct",
    "StructOps",
    "StructOpsDetails",
    "TracingDetails",
    "UprobeMultiDetails",
    "UserRingBuffer",
    "Variable",
    "VariableSpec",
    "Variables",
    "VerifierRejected",
    "View",
    "attach",
    "attach_cgroup",
    "attach_clsact",
    "attach_freplace",
    "attach_iter",
    "attach_kprobe",
    "attach_kprobe_multi",
    "attach_netfilter",
    "attach_netkit",
    "attach_netns",
    "attach_perf_event",
    "attach_raw_tracepoint",
    "attach_sk_msg",
    "attach_socket",
    "attach_sockmap",
    "attach_struct_ops",
    "attach_tc",
    "attach_tcx",
    "attach_tracepoint",
    "attach_tracing",
    "attach_uprobe",
    "attach_uprobe_multi",
    "attach_xdp",
    "bpf_stats",
    "codec_for",
    "detach_sk_msg",
    "detach_socket",
    "iter_links",
    "iter_maps",
    "iter_programs",
    "load",
    "on_bpffs",
    "open_object",
    "open_perf_event",
    "query",
    "read_iter",
    "syscall_function",
    "unpin",
    "with_variables",
    "write_struct_ops",
]

# Imported when first asked for: an agent uses a few kinds of links, and a tool that reads
# objects none.  The same names as above, by module.
_LATER = {
    name: module
    for module, names in {
        "attach": "attach",
        "attach_cgroup": "attach_cgroup",
        "attach_iter": "CgroupOrder attach_iter read_iter",
        "attach_network": "Hook attach_clsact attach_netfilter attach_netkit attach_tc "
        "attach_tcx attach_xdp",
        "attach_perf": "attach_kprobe attach_kprobe_multi attach_perf_event attach_tracepoint "
        "attach_uprobe attach_uprobe_multi open_perf_event syscall_function",
        "attach_sockets": "attach_netns attach_sk_msg attach_socket attach_sockmap "
        "detach_sk_msg detach_socket",
        "attach_struct_ops": "attach_struct_ops write_struct_ops",
        "attach_tracing": "attach_freplace attach_raw_tracepoint attach_tracing",
        "link": "Link",
        "link_info": "CgroupDetails DeviceDetails IterDetails KprobeMultiDetails LinkInfo "
        "NetfilterDetails NetnsDetails PerfEventDetails RawTracepointDetails SockmapDetails "
        "StructOpsDetails TracingDetails UprobeMultiDetails iter_links",
        "order": "Order",
        "perfbuf": "PerfBuffer",
        "query": "Attached Attachments query",
        "ringbuf": "RingBuffer RingStatistics UserRingBuffer",
    }.items()
    for name in names.split()
}

# mypy would take this for a promise that every name there could be is here.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, in which `attach_cgroup` is the function, not the module that has it.

    Whoever imports a module makes it an attribute of its package, in place of whatever
    has that name there.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _LATER.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

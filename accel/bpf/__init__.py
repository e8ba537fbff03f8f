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

the file        ObjectSpec and what it holds (spec.py), read by opening/; its types: Btf,
                codec_for() for values (format/)
programs        Program, Run, iter_programs(), bpf_stats() (loading/)
maps            Map, by type and in batches; Arena; iter_maps() (maps/)
variables       Variable, Variables, with_variables() (maps/variable.py)
streams         RingBuffer, PerfBuffer, and UserRingBuffer the other way (maps/)
links           Link, iter_links(); attach() for which program goes where; Order for the
                place beside others; query() for what is attached (links/)
the kernel      Kernel and KernelBtf: its types, symbols and settings (loading/); what it
                can do, found by trying, never by its version: door/probe.py
what went wrong ObjectError, ShapeError, VerifierRejected, NotSupported, BpfError (errors.py):
                what was tried, what the kernel answered and what would help

One module knows the system call (door/syscall.py) and one its layouts (door/uapi.py).

What does not belong here: anything about pods, proxies or meshes.  This
package could be published on its own.
"""

from typing import TYPE_CHECKING, Any

from accel.bpf.door.pin import on_bpffs, unpin
from accel.bpf.door.uapi import LinkType
from accel.bpf.errors import (
    BpfError,
    NotSupported,
    ObjectError,
    ShapeError,
    VerifierRejected,
)
from accel.bpf.format.btf import Btf, Struct
from accel.bpf.format.codec import Codec, codec_for
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.kernel_btf import KernelBtf
from accel.bpf.loading.object import Object, load
from accel.bpf.loading.program import Program, ProgramInfo, Run, bpf_stats, iter_programs
from accel.bpf.maps.arena import Arena
from accel.bpf.maps.map import BatchError, Map, MapInfo, Redirect, View, iter_maps
from accel.bpf.maps.variable import Variable, Variables, with_variables
from accel.bpf.opening.opener import open_object
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

if TYPE_CHECKING:
    from accel.bpf.links.attach import attach
    from accel.bpf.links.cgroup import attach_cgroup
    from accel.bpf.links.iterators import CgroupOrder, attach_iter, read_iter
    from accel.bpf.links.link import Link
    from accel.bpf.links.link_info import (
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
    from accel.bpf.links.network import (
        Hook,
        attach_clsact,
        attach_netfilter,
        attach_netkit,
        attach_tc,
        attach_tcx,
        attach_xdp,
    )
    from accel.bpf.links.order import Order
    from accel.bpf.links.perf import (
        attach_kprobe,
        attach_kprobe_multi,
        attach_perf_event,
        attach_tracepoint,
        attach_uprobe,
        attach_uprobe_multi,
        open_perf_event,
        syscall_function,
    )
    from accel.bpf.links.query import Attached, Attachments, query
    from accel.bpf.links.sockets import (
        attach_netns,
        attach_sk_msg,
        attach_sk_skb,
        attach_socket,
        attach_sockmap,
        detach_sk_msg,
        detach_socket,
    )
    from accel.bpf.links.struct_ops import attach_struct_ops, write_struct_ops
    from accel.bpf.links.tracing import attach_freplace, attach_raw_tracepoint, attach_tracing
    from accel.bpf.maps.perfbuf import PerfBuffer
    from accel.bpf.maps.ringbuf import RingBuffer, RingStatistics, UserRingBuffer

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
    "attach_sk_skb",
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
        "links.attach": "attach",
        "links.cgroup": "attach_cgroup",
        "links.iterators": "CgroupOrder attach_iter read_iter",
        "links.network": "Hook attach_clsact attach_netfilter attach_netkit attach_tc "
        "attach_tcx attach_xdp",
        "links.perf": "attach_kprobe attach_kprobe_multi attach_perf_event attach_tracepoint "
        "attach_uprobe attach_uprobe_multi open_perf_event syscall_function",
        "links.sockets": "attach_netns attach_sk_msg attach_sk_skb attach_socket attach_sockmap "
        "detach_sk_msg detach_socket",
        "links.struct_ops": "attach_struct_ops write_struct_ops",
        "links.tracing": "attach_freplace attach_raw_tracepoint attach_tracing",
        "links.link": "Link",
        "links.link_info": "CgroupDetails DeviceDetails IterDetails KprobeMultiDetails LinkInfo "
        "NetfilterDetails NetnsDetails PerfEventDetails RawTracepointDetails SockmapDetails "
        "StructOpsDetails TracingDetails UprobeMultiDetails iter_links",
        "links.order": "Order",
        "maps.perfbuf": "PerfBuffer",
        "links.query": "Attached Attachments query",
        "maps.ringbuf": "RingBuffer RingStatistics UserRingBuffer",
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

"""Attach: a program and what it is for become a link.

attach() finds out from the program's type, its attach type and its section how it is
attached; the functions it calls are for those who know.  One module for each family:

    cgroup.py      cgroups
    sockets.py     sockmap, sockhash, single sockets, network namespaces
    network.py     XDP, tcx, netkit, netfilter; netlink.py for older kernels
    tracing.py     functions and tracepoints by BTF id, raw tracepoints, freplace
    perf.py        tracepoints, kprobes, uprobes, perf events
    iterators.py   iterators, and reading them
    struct_ops.py  tables of kernel callbacks
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.format.sections import meaning_of
from accel.bpf.kinds import AttachType, ProgramType
from accel.bpf.links import network, perf
from accel.bpf.links.cgroup import attach_cgroup
from accel.bpf.links.iterators import attach_iter
from accel.bpf.links.link import Link
from accel.bpf.links.sockets import attach_netns, attach_sockmap
from accel.bpf.links.tracing import attach_freplace, attach_raw_tracepoint, attach_tracing
from accel.bpf.loading.prog_load import type_name
from accel.bpf.loading.program import Program

Attacher = Callable[..., Link]

# What is not attached by a link of any kind, and what is done with it instead.
_REFUSED: Mapping[int, str] = MappingProxyType(
    {
        ProgramType.SOCKET_FILTER: "give it to a socket with attach_socket()",
        ProgramType.SK_REUSEPORT: "give it to a socket of the group with attach_socket()",
        ProgramType.SCHED_ACT: "name its pin to tc: tc filter ... action bpf object-pinned PATH",
        ProgramType.LWT_IN: "name its pin to ip: ip route ... encap bpf in pinned PATH",
        ProgramType.LWT_OUT: "name its pin to ip: ip route ... encap bpf out pinned PATH",
        ProgramType.LWT_XMIT: "name its pin to ip: ip route ... encap bpf xmit pinned PATH",
        ProgramType.LWT_SEG6LOCAL: "name its pin to ip: ip route ... encap seg6local action "
        "End.BPF endpoint pinned PATH",
        ProgramType.LIRC_MODE2: "use ir-keytable, which attaches to /dev/lirc*",
        ProgramType.SYSCALL: "run it, with Program.run(): it is attached to nothing",
        ProgramType.STRUCT_OPS: "attach the map that holds its table, with attach_struct_ops()",
    }
)
_REFUSED_ATTACH_TYPES: Mapping[int | None, str] = MappingProxyType(
    {
        AttachType.XDP_DEVMAP: "put it into a value of a devmap",
        AttachType.XDP_CPUMAP: "put it into a value of a cpumap",
        AttachType.TRACE_FENTRY_MULTI: 'load it for one function, as SEC("fentry/NAME")',
        AttachType.TRACE_FEXIT_MULTI: 'load it for one function, as SEC("fexit/NAME")',
        AttachType.TRACE_FSESSION_MULTI: 'load it for one function, as SEC("fsession/NAME")',
    }
)


def attach(
    program: Program, target: Any = None, *, section: str | None = None, **options: Any
) -> Link:
    """Attach a program to a target, in the way its kind is attached.

    ==================  =======================================================
    program             target
    ==================  =======================================================
    cgroup kinds        directory of a cgroup v2
    sk_msg, sk_skb      a sockmap or sockhash, as Map
    sk_lookup,          /proc/PID/ns/net, /run/netns/NAME, or None
    flow_dissector
    xdp                 device, by name or ifindex
    tc, tcx, netkit     the same; for SEC("tc") also direction="ingress"
    netfilter           none; hook= and priority= as options
    iter                a Map for those over its elements, else None
    tp_btf, fentry ...  none: it is settled at load
    raw_tp              name of the tracepoint
    freplace            a Program, and function=; or none, as settled at load
    tracepoint          "category/name"
    kprobe ...          function of the kernel; "name+offset"
    uprobe ...          "path:function", "path:function+offset" or "path:0x1f0"
    uprobe.multi        "path:function,function,0x1f0"
    perf_event          an Fd from open_perf_event()
    ==================  =======================================================

    Args:
        target: None for what the section says after its slash, where it says something.
        section: What SEC() said, where the program does not know: it tells kprobe from
            uprobe, and the target.
        options: Of the function that does it: attach_cgroup(), attach_xdp(), ...

    Raises:
        BpfError: A kind we do not attach, by name and with what to do instead; a target
            that is missing; or the kernel refused.
    """
    section = section or program.section
    named = None if section is None else _target_of(program, section)
    kind = (section or "").removeprefix("?").partition("/")[0]
    attacher = _ATTACHERS.get(program.type)
    refusal = _REFUSED_ATTACH_TYPES.get(program.attach_type) or _REFUSED.get(program.type)
    if attacher is None or refusal is not None:
        raise _refuse(program, refusal)
    return attacher(program, named if target is None else target, kind, options)


def _target_of(program: Program, section: str) -> str | None:
    # What a section of this kind names is the hook, settled at load; the target is a cgroup.
    if program.attach_type == AttachType.LSM_CGROUP:
        return None
    try:
        return meaning_of(section).target
    except ObjectError:
        return None


def _refuse(program: Program, remedy: str | None) -> BpfError:
    kind = type_name(program.type)
    if program.attach_type in _REFUSED_ATTACH_TYPES:
        kind = AttachType(program.attach_type or 0).name
    return BpfError(
        f"attach program {program.name}: {kind} programs are not attached here",
        errno.EOPNOTSUPP,
        remedy=remedy or "attach it by other means; the descriptor is Program.fileno()",
    )


def _missing(program: Program, what: str) -> BpfError:
    return BpfError(
        f"attach program {program.name}: a {type_name(program.type)} program needs {what}",
        errno.EINVAL,
        remedy=f"give {what} as target",
    )


def _needs(program: Program, target: Any, what: str) -> Any:
    if target is None:
        raise _missing(program, what)
    return target


Options = dict[str, Any]


def _to_cgroup(program: Program, target: Any, kind: str, options: Options) -> Link:
    return attach_cgroup(program, _needs(program, target, "a cgroup's directory"), **options)


def _to_sockmap(program: Program, target: Any, kind: str, options: Options) -> Link:
    return attach_sockmap(program, _needs(program, target, "a map of sockets"), **options)


def _to_netns(program: Program, target: Any, kind: str, options: Options) -> Link:
    return attach_netns(program, target, **options)


def _to_xdp(program: Program, target: Any, kind: str, options: Options) -> Link:
    return network.attach_xdp(program, _needs(program, target, "a device"), **options)


def _to_tc(program: Program, target: Any, kind: str, options: Options) -> Link:
    device = _needs(program, target, "a device")
    if program.attach_type in (AttachType.NETKIT_PRIMARY, AttachType.NETKIT_PEER):
        peer = program.attach_type == AttachType.NETKIT_PEER
        return network.attach_netkit(program, device, peer=peer, **options)
    directions: dict[int | None, network.Direction] = {
        AttachType.TCX_INGRESS: "ingress",
        AttachType.TCX_EGRESS: "egress",
    }
    direction = options.pop("direction", directions.get(program.attach_type))
    if direction is None:
        raise BpfError(
            f"attach program {program.name}: it does not say for which direction",
            errno.EINVAL,
            remedy="give direction='ingress' or direction='egress'",
        )
    if options:
        return network.attach_tcx(program, device, direction, **options)
    return network.attach_tc(program, device, direction)


def _to_netfilter(program: Program, target: Any, kind: str, options: Options) -> Link:
    if "hook" not in options:
        raise BpfError(
            f"attach program {program.name}: a NETFILTER program needs a hook",
            errno.EINVAL,
            remedy="give hook=, and priority= and family= where 0 and AF_INET are not right",
        )
    return network.attach_netfilter(program, **options)


def _to_tracing(program: Program, target: Any, kind: str, options: Options) -> Link:
    if program.attach_type == AttachType.TRACE_ITER:
        # What a section names is the kind of iterator, settled at load.
        map = None if isinstance(target, str) else target
        return attach_iter(program, map, **options)
    if program.attach_type == AttachType.LSM_CGROUP:
        return attach_cgroup(program, _needs(program, target, "a cgroup's directory"), **options)
    return attach_tracing(program, **options)


def _to_raw_tracepoint(program: Program, target: Any, kind: str, options: Options) -> Link:
    name = _needs(program, target, "a tracepoint's name")
    return attach_raw_tracepoint(program, name, **options)


def _to_program(program: Program, target: Any, kind: str, options: Options) -> Link:
    if isinstance(target, Program):
        return attach_freplace(program, target, **options)
    return attach_tracing(program, **options)


def _to_tracepoint(program: Program, target: Any, kind: str, options: Options) -> Link:
    category, slash, name = str(_needs(program, target, "category/name")).partition("/")
    if not slash:
        raise _missing(program, "category/name")
    return perf.attach_tracepoint(program, category, name, **options)


def _to_probe(program: Program, target: Any, kind: str, options: Options) -> Link:
    """kprobe.multi.s is a kprobe of kind "multi"; the part before the dot says which."""
    probe, *qualities = kind.split(".")
    at_return = probe in ("kretprobe", "uretprobe", "kretsyscall")
    if at_return:
        options["at_return"] = True
    if probe not in _PROBES:
        raise BpfError(
            f"attach program {program.name}: {probe or 'a KPROBE program'} is not attached here"
            f"{'' if probe else ' without its section'}",
            errno.EOPNOTSUPP,
            remedy="use attach_uprobe() at the place, with its reference_counter"
            if probe == "usdt"
            else "give section=, as in SEC(), or use attach_kprobe() or attach_uprobe()",
        )
    where = _needs(program, target, "a place")
    many = "multi" in qualities or "session" in qualities
    return _PROBES[probe](program, where, many, options)


def _to_kernel_function(program: Program, where: Any, many: bool, options: Options) -> Link:
    if many:
        functions = [where] if isinstance(where, str) else list(where)
        if any(set(name) & set("*?") for name in functions):
            raise BpfError(
                f"attach program {program.name}: patterns of functions are not resolved here",
                errno.EOPNOTSUPP,
                remedy="give the functions as target, a list of names",
            )
        return perf.attach_kprobe_multi(program, functions, **options)
    function, offset = _split_offset(where)
    return perf.attach_kprobe(program, function, offset=offset, **options)


def _to_syscall(program: Program, where: Any, many: bool, options: Options) -> Link:
    return perf.attach_kprobe(program, perf.syscall_function(where), **options)


def _to_user_function(program: Program, where: Any, many: bool, options: Options) -> Link:
    path, colon, place = str(where).rpartition(":")
    if not colon:
        raise _missing(program, "path:function")
    if many:
        places = [_place(one) for one in place.split(",")]
        return perf.attach_uprobe_multi(program, path, places, **options)
    name, offset = _split_offset(place)
    return perf.attach_uprobe(program, path, _place(name), offset=offset, **options)


def _place(text: str) -> str | int:
    """A function's name, or an offset in its file."""
    return _number(text, text) if text[:1].isdigit() else text


def _split_offset(place: str) -> tuple[str, int]:
    """("name", 16) from "name+0x10"."""
    name, plus, offset = place.partition("+")
    return name, _number(offset, place) if plus else 0


def _number(text: str, place: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise BpfError(
            f"attach to {place}", errno.EINVAL, remedy="write the offset as a number: name+0x10"
        ) from None


def _to_perf_event(program: Program, target: Any, kind: str, options: Options) -> Link:
    event = _needs(program, target, "a perf event's descriptor")
    return perf.attach_perf_event(program, event, **options)


_PROBES: dict[str, Attacher] = {
    "kprobe": _to_kernel_function,
    "kretprobe": _to_kernel_function,
    "ksyscall": _to_syscall,
    "kretsyscall": _to_syscall,
    "uprobe": _to_user_function,
    "uretprobe": _to_user_function,
}

_ATTACHERS: dict[int, Attacher] = {
    ProgramType.KPROBE: _to_probe,
    ProgramType.SCHED_CLS: _to_tc,
    ProgramType.TRACEPOINT: _to_tracepoint,
    ProgramType.XDP: _to_xdp,
    ProgramType.PERF_EVENT: _to_perf_event,
    ProgramType.CGROUP_SKB: _to_cgroup,
    ProgramType.CGROUP_SOCK: _to_cgroup,
    ProgramType.SOCK_OPS: _to_cgroup,
    ProgramType.SK_SKB: _to_sockmap,
    ProgramType.CGROUP_DEVICE: _to_cgroup,
    ProgramType.SK_MSG: _to_sockmap,
    ProgramType.RAW_TRACEPOINT: _to_raw_tracepoint,
    ProgramType.RAW_TRACEPOINT_WRITABLE: _to_raw_tracepoint,
    ProgramType.CGROUP_SOCK_ADDR: _to_cgroup,
    ProgramType.FLOW_DISSECTOR: _to_netns,
    ProgramType.CGROUP_SYSCTL: _to_cgroup,
    ProgramType.CGROUP_SOCKOPT: _to_cgroup,
    ProgramType.TRACING: _to_tracing,
    ProgramType.EXT: _to_program,
    ProgramType.LSM: _to_tracing,
    ProgramType.SK_LOOKUP: _to_netns,
    ProgramType.NETFILTER: _to_netfilter,
}

"""What a program section's name says about the program: one table.

Pure.  The names are the ones libbpf and its users agreed on; `SEC("sockops")` in C
is "sockops" here.  The last character of a pattern is its rule::

    x      exactly "x"
    x/     "x/target"
    x+     "x" or "x/target"

A `?` before the name says that the program is not to be loaded by default.
"""

from __future__ import annotations

from typing import NamedTuple

from accel.bpf.kinds import AttachType as At
from accel.bpf.kinds import ProgramType as Pt

# include/uapi/linux/bpf.h: prog_flags of BPF_PROG_LOAD.
BPF_F_SLEEPABLE = 1 << 4
BPF_F_XDP_HAS_FRAGS = 1 << 5


class Meaning(NamedTuple):
    """What is known of a program by its section's name.

    Attributes:
        attach_type: None where the program type has no expected attach type.
        target: What stands after the slash, or None when nothing does.
        flags: BPF_F_* for BPF_PROG_LOAD.
        autoload: False for `?`.
    """

    type: Pt
    attach_type: At | None
    target: str | None
    flags: int
    autoload: bool


class _Row(NamedTuple):
    pattern: str
    type: Pt
    attach_type: At | None = None
    flags: int = 0


_TABLE = (
    _Row("socket", Pt.SOCKET_FILTER),
    _Row("sk_reuseport/migrate", Pt.SK_REUSEPORT, At.SK_REUSEPORT_SELECT_OR_MIGRATE),
    _Row("sk_reuseport", Pt.SK_REUSEPORT, At.SK_REUSEPORT_SELECT),
    _Row("kprobe+", Pt.KPROBE),
    _Row("uprobe+", Pt.KPROBE),
    _Row("uprobe.s+", Pt.KPROBE, None, BPF_F_SLEEPABLE),
    _Row("kretprobe+", Pt.KPROBE),
    _Row("uretprobe+", Pt.KPROBE),
    _Row("uretprobe.s+", Pt.KPROBE, None, BPF_F_SLEEPABLE),
    _Row("kprobe.multi+", Pt.KPROBE, At.TRACE_KPROBE_MULTI),
    _Row("kretprobe.multi+", Pt.KPROBE, At.TRACE_KPROBE_MULTI),
    _Row("kprobe.session+", Pt.KPROBE, At.TRACE_KPROBE_SESSION),
    _Row("uprobe.multi+", Pt.KPROBE, At.TRACE_UPROBE_MULTI),
    _Row("uretprobe.multi+", Pt.KPROBE, At.TRACE_UPROBE_MULTI),
    _Row("uprobe.session+", Pt.KPROBE, At.TRACE_UPROBE_SESSION),
    _Row("uprobe.multi.s+", Pt.KPROBE, At.TRACE_UPROBE_MULTI, BPF_F_SLEEPABLE),
    _Row("uretprobe.multi.s+", Pt.KPROBE, At.TRACE_UPROBE_MULTI, BPF_F_SLEEPABLE),
    _Row("uprobe.session.s+", Pt.KPROBE, At.TRACE_UPROBE_SESSION, BPF_F_SLEEPABLE),
    _Row("ksyscall+", Pt.KPROBE),
    _Row("kretsyscall+", Pt.KPROBE),
    _Row("usdt+", Pt.KPROBE),
    _Row("usdt.s+", Pt.KPROBE, None, BPF_F_SLEEPABLE),
    _Row("tc/ingress", Pt.SCHED_CLS, At.TCX_INGRESS),
    _Row("tc/egress", Pt.SCHED_CLS, At.TCX_EGRESS),
    _Row("tcx/ingress", Pt.SCHED_CLS, At.TCX_INGRESS),
    _Row("tcx/egress", Pt.SCHED_CLS, At.TCX_EGRESS),
    _Row("tc", Pt.SCHED_CLS),
    _Row("classifier", Pt.SCHED_CLS),
    _Row("action", Pt.SCHED_ACT),
    _Row("netkit/primary", Pt.SCHED_CLS, At.NETKIT_PRIMARY),
    _Row("netkit/peer", Pt.SCHED_CLS, At.NETKIT_PEER),
    _Row("tracepoint+", Pt.TRACEPOINT),
    _Row("tp+", Pt.TRACEPOINT),
    _Row("tracepoint.s+", Pt.TRACEPOINT, None, BPF_F_SLEEPABLE),
    _Row("tp.s+", Pt.TRACEPOINT, None, BPF_F_SLEEPABLE),
    _Row("raw_tracepoint+", Pt.RAW_TRACEPOINT),
    _Row("raw_tp+", Pt.RAW_TRACEPOINT),
    _Row("raw_tracepoint.s+", Pt.RAW_TRACEPOINT, None, BPF_F_SLEEPABLE),
    _Row("raw_tp.s+", Pt.RAW_TRACEPOINT, None, BPF_F_SLEEPABLE),
    _Row("raw_tracepoint.w+", Pt.RAW_TRACEPOINT_WRITABLE),
    _Row("raw_tp.w+", Pt.RAW_TRACEPOINT_WRITABLE),
    _Row("tp_btf+", Pt.TRACING, At.TRACE_RAW_TP),
    _Row("tp_btf.s+", Pt.TRACING, At.TRACE_RAW_TP, BPF_F_SLEEPABLE),
    _Row("fentry+", Pt.TRACING, At.TRACE_FENTRY),
    _Row("fmod_ret+", Pt.TRACING, At.MODIFY_RETURN),
    _Row("fexit+", Pt.TRACING, At.TRACE_FEXIT),
    _Row("fentry.s+", Pt.TRACING, At.TRACE_FENTRY, BPF_F_SLEEPABLE),
    _Row("fmod_ret.s+", Pt.TRACING, At.MODIFY_RETURN, BPF_F_SLEEPABLE),
    _Row("fexit.s+", Pt.TRACING, At.TRACE_FEXIT, BPF_F_SLEEPABLE),
    _Row("fsession+", Pt.TRACING, At.TRACE_FSESSION),
    _Row("fsession.s+", Pt.TRACING, At.TRACE_FSESSION, BPF_F_SLEEPABLE),
    _Row("fentry.multi+", Pt.TRACING, At.TRACE_FENTRY_MULTI),
    _Row("fexit.multi+", Pt.TRACING, At.TRACE_FEXIT_MULTI),
    _Row("fsession.multi+", Pt.TRACING, At.TRACE_FSESSION_MULTI),
    _Row("fentry.multi.s+", Pt.TRACING, At.TRACE_FENTRY_MULTI, BPF_F_SLEEPABLE),
    _Row("fexit.multi.s+", Pt.TRACING, At.TRACE_FEXIT_MULTI, BPF_F_SLEEPABLE),
    _Row("fsession.multi.s+", Pt.TRACING, At.TRACE_FSESSION_MULTI, BPF_F_SLEEPABLE),
    _Row("freplace+", Pt.EXT),
    _Row("lsm+", Pt.LSM, At.LSM_MAC),
    _Row("lsm.s+", Pt.LSM, At.LSM_MAC, BPF_F_SLEEPABLE),
    _Row("lsm_cgroup+", Pt.LSM, At.LSM_CGROUP),
    _Row("iter+", Pt.TRACING, At.TRACE_ITER),
    _Row("iter.s+", Pt.TRACING, At.TRACE_ITER, BPF_F_SLEEPABLE),
    _Row("syscall", Pt.SYSCALL, None, BPF_F_SLEEPABLE),
    _Row("xdp.frags/devmap", Pt.XDP, At.XDP_DEVMAP, BPF_F_XDP_HAS_FRAGS),
    _Row("xdp/devmap", Pt.XDP, At.XDP_DEVMAP),
    _Row("xdp.frags/cpumap", Pt.XDP, At.XDP_CPUMAP, BPF_F_XDP_HAS_FRAGS),
    _Row("xdp/cpumap", Pt.XDP, At.XDP_CPUMAP),
    _Row("xdp.frags", Pt.XDP, At.XDP, BPF_F_XDP_HAS_FRAGS),
    _Row("xdp", Pt.XDP, At.XDP),
    _Row("perf_event", Pt.PERF_EVENT),
    _Row("lwt_in", Pt.LWT_IN),
    _Row("lwt_out", Pt.LWT_OUT),
    _Row("lwt_xmit", Pt.LWT_XMIT),
    _Row("lwt_seg6local", Pt.LWT_SEG6LOCAL),
    _Row("sockops", Pt.SOCK_OPS, At.CGROUP_SOCK_OPS),
    _Row("sk_skb/stream_parser", Pt.SK_SKB, At.SK_SKB_STREAM_PARSER),
    _Row("sk_skb/stream_verdict", Pt.SK_SKB, At.SK_SKB_STREAM_VERDICT),
    _Row("sk_skb/verdict", Pt.SK_SKB, At.SK_SKB_VERDICT),
    _Row("sk_skb", Pt.SK_SKB),
    _Row("sk_msg", Pt.SK_MSG, At.SK_MSG_VERDICT),
    _Row("lirc_mode2", Pt.LIRC_MODE2, At.LIRC_MODE2),
    _Row("flow_dissector", Pt.FLOW_DISSECTOR, At.FLOW_DISSECTOR),
    _Row("cgroup_skb/ingress", Pt.CGROUP_SKB, At.CGROUP_INET_INGRESS),
    _Row("cgroup_skb/egress", Pt.CGROUP_SKB, At.CGROUP_INET_EGRESS),
    _Row("cgroup/skb", Pt.CGROUP_SKB),
    _Row("cgroup/sock_create", Pt.CGROUP_SOCK, At.CGROUP_INET_SOCK_CREATE),
    _Row("cgroup/sock_release", Pt.CGROUP_SOCK, At.CGROUP_INET_SOCK_RELEASE),
    _Row("cgroup/sock", Pt.CGROUP_SOCK, At.CGROUP_INET_SOCK_CREATE),
    _Row("cgroup/post_bind4", Pt.CGROUP_SOCK, At.CGROUP_INET4_POST_BIND),
    _Row("cgroup/post_bind6", Pt.CGROUP_SOCK, At.CGROUP_INET6_POST_BIND),
    _Row("cgroup/bind4", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET4_BIND),
    _Row("cgroup/bind6", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET6_BIND),
    _Row("cgroup/connect4", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET4_CONNECT),
    _Row("cgroup/connect6", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET6_CONNECT),
    _Row("cgroup/connect_unix", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UNIX_CONNECT),
    _Row("cgroup/sendmsg4", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UDP4_SENDMSG),
    _Row("cgroup/sendmsg6", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UDP6_SENDMSG),
    _Row("cgroup/sendmsg_unix", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UNIX_SENDMSG),
    _Row("cgroup/recvmsg4", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UDP4_RECVMSG),
    _Row("cgroup/recvmsg6", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UDP6_RECVMSG),
    _Row("cgroup/recvmsg_unix", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UNIX_RECVMSG),
    _Row("cgroup/getpeername4", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET4_GETPEERNAME),
    _Row("cgroup/getpeername6", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET6_GETPEERNAME),
    _Row("cgroup/getpeername_unix", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UNIX_GETPEERNAME),
    _Row("cgroup/getsockname4", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET4_GETSOCKNAME),
    _Row("cgroup/getsockname6", Pt.CGROUP_SOCK_ADDR, At.CGROUP_INET6_GETSOCKNAME),
    _Row("cgroup/getsockname_unix", Pt.CGROUP_SOCK_ADDR, At.CGROUP_UNIX_GETSOCKNAME),
    _Row("cgroup/sysctl", Pt.CGROUP_SYSCTL, At.CGROUP_SYSCTL),
    _Row("cgroup/getsockopt", Pt.CGROUP_SOCKOPT, At.CGROUP_GETSOCKOPT),
    _Row("cgroup/setsockopt", Pt.CGROUP_SOCKOPT, At.CGROUP_SETSOCKOPT),
    _Row("cgroup/dev", Pt.CGROUP_DEVICE, At.CGROUP_DEVICE),
    _Row("struct_ops+", Pt.STRUCT_OPS),
    _Row("struct_ops.s+", Pt.STRUCT_OPS, None, BPF_F_SLEEPABLE),
    _Row("sk_lookup", Pt.SK_LOOKUP, At.SK_LOOKUP),
    _Row("netfilter", Pt.NETFILTER, At.NETFILTER),
    # Names from before libbpf 1.0, still met in the wild.
    _Row("xdp_devmap/", Pt.XDP, At.XDP_DEVMAP),
    _Row("xdp_cpumap/", Pt.XDP, At.XDP_CPUMAP),
)


def meaning_of(section: str) -> Meaning:
    """What SEC(section) says about the program in it; type UNSPEC when nobody knows the name."""
    name = section.removeprefix("?")
    for row in _TABLE:
        matches, target = _match(row.pattern, name)
        if matches:
            return Meaning(row.type, row.attach_type, target, row.flags, name == section)
    return Meaning(Pt.UNSPEC, None, None, 0, name == section)


def _match(pattern: str, name: str) -> tuple[bool, str | None]:
    stem = pattern.rstrip("+/")
    if pattern.endswith("+") and name == stem:
        return True, None
    if pattern != stem and name.startswith(f"{stem}/"):
        return True, name[len(stem) + 1 :] or None
    return name == pattern, None

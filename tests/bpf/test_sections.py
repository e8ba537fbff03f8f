"""What the name of a section says about the program in it."""

from __future__ import annotations

import pytest

from accel.bpf.format.sections import BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS, Meaning, meaning_of
from accel.bpf.kinds import AttachType, ProgramType


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("sockops", Meaning(ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, None, 0, True)),
        ("?sk_msg", Meaning(ProgramType.SK_MSG, AttachType.SK_MSG_VERDICT, None, 0, False)),
        (
            "iter/sockmap",
            Meaning(ProgramType.TRACING, AttachType.TRACE_ITER, "sockmap", 0, True),
        ),
        (
            "fentry.s/vfs_read",
            Meaning(
                ProgramType.TRACING, AttachType.TRACE_FENTRY, "vfs_read", BPF_F_SLEEPABLE, True
            ),
        ),
        ("kprobe", Meaning(ProgramType.KPROBE, None, None, 0, True)),
        (
            "tracepoint/sched/sched_switch",
            Meaning(ProgramType.TRACEPOINT, None, "sched/sched_switch", 0, True),
        ),
        (
            "cgroup/connect4",
            Meaning(ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, None, 0, True),
        ),
        (
            "xdp.frags",
            Meaning(ProgramType.XDP, AttachType.XDP, None, BPF_F_XDP_HAS_FRAGS, True),
        ),
        ("xdp_devmap/any", Meaning(ProgramType.XDP, AttachType.XDP_DEVMAP, "any", 0, True)),
    ],
)
def test_known_names(name: str, meaning: Meaning) -> None:
    assert meaning_of(name) == meaning


@pytest.mark.parametrize(
    "name", ["", "sockops/x", "sock", "xdp_devmap", "kprobes", "maps", "lirc_mode2/raw"]
)
def test_other_names_say_nothing(name: str) -> None:
    """As libbpf does, so that objects with sections of other loaders open."""
    assert meaning_of(name) == Meaning(ProgramType.UNSPEC, None, None, 0, True)
    assert meaning_of(f"?{name}") == Meaning(ProgramType.UNSPEC, None, None, 0, False)


@pytest.mark.parametrize("name", ["iter/", "fentry/"])
def test_a_slash_and_no_target(name: str) -> None:
    meaning = meaning_of(name)

    assert (meaning.type, meaning.target) == (ProgramType.TRACING, None)

"""Whether this node can be accelerated, and how far: `accel check`, and the agent's first act."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from accel import bpf
from accel.bpf.door import probe
from accel.core.strategy import Era, bears_enrolled_apps
from accel.datapath import selftest
from accel.datapath.generation import object_spec
from accel.datapath.known_bugs import Effect, bugs_of, release_of
from accel.errors import AccelError, LinuxError
from accel.linux import cgroup as cgroups
from accel.linux.process import PROC

_OLDEST = (5, 10)
_SIGNATURE = Path("/proc/version_signature")
_LOCKDOWN = "/sys/kernel/security/lockdown"


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    UNFIT = "unfit"  #: this kernel cannot do it: the node stays unaccelerated
    BROKEN = "broken"  #: somebody set something up wrong and can put it right


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None


class Fitness(msgspec.Struct, frozen=True):
    """Everything looked at.

    Attributes:
        facts: Of the self-test; None where it was not run, as something before it failed.
        trust_possible: An application can read redirected bytes as it reads TCP's, and no
            known bug of this kernel forbids to trust one.
    """

    kernel: str
    findings: tuple[Finding, ...]
    facts: selftest.Facts | None
    trust_possible: bool
    enrol_apps_possible: bool

    @property
    def usable(self) -> bool:
        return not self._with(Status.UNFIT) and not self._with(Status.BROKEN)

    @property
    def era(self) -> Era:
        return self.facts.era if self.facts else Era.UNKNOWN

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What makes it unusable."""
        return (*self._with(Status.BROKEN), *self._with(Status.UNFIT))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not usable."""
        return tuple(f"{finding.name}: {finding.detail}" for finding in self.failed)

    @property
    def broken(self) -> tuple[Finding, ...]:
        return self._with(Status.BROKEN)

    def _with(self, status: Status) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.status is status)


def examine(bpffs: Path, cgroup: Path | None = None) -> Fitness:
    """Look at everything; run the self-test only where the rest allows it.

    Args:
        bpffs: Where pins are to go; it may not exist yet.
        cgroup: The cgroup to attach to, or None for the root of the hierarchy.
    """
    uname = os.uname()
    release = release_of(uname.release, uname.version, _read(_SIGNATURE))
    findings = [
        _root(),
        _version(release),
        _btf(),
        _sockmap(),
        _lockdown(),
        _cgroup(cgroup),
        _bpffs(bpffs),
        *_bugs(release),
    ]
    facts = None
    if all(finding.status in (Status.OK, Status.WARN) for finding in findings):
        findings.append(_other_users())
        facts, tested = _selftest(cgroup or cgroups.hierarchy().point)
        findings.extend(tested)
    era = facts.era if facts else Era.UNKNOWN
    return Fitness(
        kernel=f"{uname.release} ({uname.version})",
        findings=tuple(findings),
        facts=facts,
        trust_possible=facts is not None
        and facts.one_queue
        and not any(
            bug.effect is Effect.REFUSE_TRUST for bug in (bugs_of(release) if release else ())
        ),
        enrol_apps_possible=bears_enrolled_apps(era),
    )


def _read(path: Path) -> str:
    """Empty where there is none, or none for us."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("privilege", Status.OK, "running as root")
    return Finding(
        "privilege",
        Status.BROKEN,
        f"running as uid {os.geteuid()}: loading and attaching BPF programs needs root",
        "run it with sudo, or in a privileged container",
    )


def _version(release: tuple[int, int, int] | None) -> Finding:
    if release is None:
        return Finding("kernel", Status.WARN, f"cannot tell the release of {os.uname().release!r}")
    text = "Linux {}.{}.{}".format(*release)
    if release[:2] < _OLDEST:
        return Finding(
            "kernel",
            Status.UNFIT,
            f"{text} lacks what the programs need",
            "run Linux 5.10 or later; traffic on this node is left alone until then",
        )
    return Finding("kernel", Status.OK, text)


def _btf() -> Finding:
    if Path("/sys/kernel/btf/vmlinux").exists():
        return Finding("kernel types (BTF)", Status.OK, "/sys/kernel/btf/vmlinux")
    return Finding(
        "kernel types (BTF)",
        Status.UNFIT,
        "/sys/kernel/btf/vmlinux does not exist",
        "run a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the large distributions do",
    )


def _sockmap() -> Finding:
    if probe.map_type(bpf.MapType.SOCKHASH) is probe.Answer.NO:
        return Finding(
            "sockmap",
            Status.UNFIT,
            "this kernel has no BPF_MAP_TYPE_SOCKHASH",
            "run a kernel built with CONFIG_BPF_SYSCALL=y and, before Linux 5.13, "
            "CONFIG_BPF_STREAM_PARSER=y",
        )
    return Finding("sockmap", Status.OK, "BPF_MAP_TYPE_SOCKHASH")


def _lockdown() -> Finding:
    text = _read(Path(_LOCKDOWN)) or _read(Path(f"{PROC}/1/root{_LOCKDOWN}"))  # in a container
    if not text:
        return Finding("lockdown", Status.OK, "not in use")
    if "[confidentiality]" in text:
        return Finding(
            "lockdown",
            Status.UNFIT,
            "the kernel is locked down for confidentiality: programs may not read its memory",
            "boot with lockdown=integrity or none",
        )
    return Finding("lockdown", Status.OK, text.strip())


def _cgroup(cgroup: Path | None) -> Finding:
    try:
        mount = cgroups.hierarchy()
    except LinuxError as e:
        status = Status.UNFIT if isinstance(e, cgroups.NoCgroup2) else Status.BROKEN
        return Finding("cgroup v2", status, str(e), e.remedy)
    if mount.is_whole and mount.root != "/":
        return Finding(
            "cgroup v2",
            Status.BROKEN,
            f"{mount.point} shows the whole hierarchy, but our cgroup namespace begins further "
            "down: names of pods' cgroups are not told here",
            "run in the host's cgroup namespace, as privileged containers of Kubernetes do",
        )
    if cgroup is not None:
        if not (cgroup / "cgroup.controllers").exists():  # v1 has no such file
            return Finding(
                "cgroup v2",
                Status.BROKEN,
                f"{cgroup} is not a cgroup v2 directory",
                "mount cgroup v2, or leave --cgroup out"
                if mount.is_our_own
                else f"name one below {mount.point}",
            )
        return Finding("cgroup v2", Status.OK, f"{cgroup} (as told)")
    if not mount.is_whole:
        return Finding(
            "cgroup v2",
            Status.BROKEN,
            f"{mount.point} shows {mount.root}, not the root of the hierarchy: pods elsewhere "
            "would not be seen",
            "run in the host's cgroup namespace, with the host's /sys/fs/cgroup mounted",
        )
    if mount.is_our_own:
        return Finding(
            "cgroup v2",
            Status.WARN,
            "not mounted here: accel uses a mount of its own, and tells containers that share "
            "its root cgroup apart by the proxy's uid, which a process may pick for itself",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    return Finding("cgroup v2", Status.OK, f"{mount.point}")


def _bpffs(bpffs: Path) -> Finding:
    # os.path.exists() says no where we may not look; Path.exists() raises.
    existing = next(path for path in (bpffs, *bpffs.parents) if os.path.exists(path))
    if bpf.on_bpffs(existing):
        return Finding("bpffs", Status.OK, str(bpffs))
    where = "/sys/fs/bpf" if bpffs.is_relative_to("/sys/fs/bpf") else str(bpffs)
    return Finding(
        "bpffs",
        Status.BROKEN,
        f"{bpffs} is not inside a BPF file system: nothing could be pinned",
        f"mount -t bpf bpf {where}, or name another directory with --bpffs",
    )


def _bugs(release: tuple[int, int, int] | None) -> Iterator[Finding]:
    for bug in bugs_of(release) if release else ():
        series = [*sorted(bug.fixed), bug.mainline]
        fixed = [
            f"{major}.{minor}"
            + (f".{bug.fixed[major, minor]}" if (major, minor) in bug.fixed else "")
            for major, minor in series
        ]
        yield Finding(
            "known bug",
            Status.WARN,
            f"{bug.title} ({bug.source})"
            + ("; applications are not trusted" if bug.effect is Effect.REFUSE_TRUST else ""),
            f"update the kernel: fixed in {', '.join(fixed)}",
        )


def _other_users() -> Finding:
    others = sorted(
        f"{info.name} (id {info.id})"
        for info in bpf.iter_programs()
        if info.type in (bpf.ProgramType.SK_MSG, bpf.ProgramType.SK_SKB)
        and not info.name.startswith("accel_")
    )
    if not others:
        return Finding("other sockmap users", Status.OK, "none")
    return Finding(
        "other sockmap users",
        Status.WARN,
        f"{', '.join(others)}: a socket that one of them took first stays with it",
        "expect connections with the reason socket_taken, or stop the other program",
    )


def _selftest(cgroup: Path) -> tuple[selftest.Facts | None, list[Finding]]:
    try:
        _readable(object_spec())
    except AccelError as e:
        remedy = e.remedy or "install accel again: its BPF object is damaged"
        return None, [Finding("BPF object", Status.BROKEN, str(e), remedy)]
    try:
        facts = selftest.run(cgroup)
    except AccelError as e:
        return None, [Finding("self-test", Status.BROKEN, str(e), e.remedy)]
    if facts.error is not None:
        return facts, [Finding("self-test", Status.UNFIT, facts.error, facts.remedy)]
    findings = [
        Finding(
            f"self-test: {check.name}",
            Status.OK if check.passed else Status.UNFIT,
            check.detail,
            None if check.passed else "report it with the output of `accel check --json`",
        )
        for check in facts.checks
    ]
    return facts, [*findings, _era(facts)]


def _readable(spec: bpf.ObjectSpec) -> None:
    """A wrong file is the installation's fault, not this kernel's."""
    if spec.byteorder != sys.byteorder:
        raise bpf.ObjectError(f"the installed one is {spec.byteorder}-endian, this machine is not")


_ERA_MEANS = {
    Era.FIXED: "counts redirected and TCP bytes alike",
    Era.OLD: "does not count redirected bytes: applications cannot be trusted to read them",
    Era.REGRESSED: "does not count TCP bytes on an enrolled socket: applications are not enrolled "
    "unless trusted",
    Era.UNKNOWN: "is of no known kind: applications are not enrolled",
}


def _era(facts: selftest.Facts) -> Finding:
    status = Status.OK if facts.era is Era.FIXED else Status.WARN
    return Finding(
        "FIONREAD",
        status,
        f"{facts.era.value}: {_ERA_MEANS[facts.era]} (of 50 redirected, 50 by TCP, 50 of each it said "
        f"{facts.fionread[0]}, {facts.fionread[1]}, {facts.fionread[2]})",
        None if status is Status.OK else "nothing to do: accel keeps out of harm's way by itself",
    )

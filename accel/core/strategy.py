"""What a node's kernel bears, and what follows for each hop and direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from accel.core.model import Pod, Role
from accel.core.plan import PodEntry, Policy

HOPS = ("app-sidecar", "sidecar-sidecar", "sidecar-app")
WAYS = ("request", "response")


class Era(Enum):
    """What FIONREAD answers on an enrolled socket: found by test, never by version.

    Upstream 929e30f93125 ("bpf, sockmap: Fix FIONREAD for sockmap"; 6.6.128, 6.12.75,
    6.18.14, 7.0) brought the regressed era, its follow-up 04af4efde58a (6.12.114, 7.2) the
    fixed one.  From the first of them on, accel_pass makes it right for trusted apps.
    """

    OLD = "old"  #: TCP bytes only: a trusted app would not see redirected ones
    REGRESSED = "regressed"  #: redirected bytes only: an enrolled app misses TCP's
    FIXED = "fixed"  #: the sum
    UNKNOWN = "unknown"  #: the self-test could not tell


@dataclass(frozen=True, slots=True)
class Path:
    """One direction of one hop: accelerated, or why not."""

    accelerated: bool
    reason: str | None = None


def era_of(redirected: int, tcp: int, both: int, *, size: int) -> Era:
    """The era, from what FIONREAD said of `size` redirected bytes, of `size` by TCP,
    and of `size` of each."""
    answers = (redirected == size, tcp == size, both == 2 * size)
    if answers == (True, True, True):
        return Era.FIXED
    if redirected == size and tcp == 0:
        return Era.REGRESSED
    if redirected == 0 and tcp == size:
        return Era.OLD
    return Era.UNKNOWN


def bears_enrolled_apps(era: Era) -> bool:
    return era in (Era.OLD, Era.FIXED)


def strategy(policy: Policy, era: Era) -> Mapping[str, Mapping[str, Path]]:
    """Hop -> direction -> what happens to pods of which nobody says anything."""
    if not policy.accelerate:
        off = Path(False, "only pods that are switched on one by one (accelerate: false)")
        return {hop: dict.fromkeys(WAYS, off) for hop in HOPS}
    trusted = policy.trust_apps and (policy.trust_possible or policy.trust_forced)
    enrolled = trusted or policy.enrol_apps_possible
    from_app = Path(True) if enrolled else Path(False, _why_not_enrolled(era))
    into_app = Path(True) if trusted else Path(False, _why_not_trusted(policy, era))
    yes = Path(True)
    return {
        "app-sidecar": {"request": from_app, "response": into_app},
        "sidecar-sidecar": {"request": yes, "response": yes},
        "sidecar-app": {"request": into_app, "response": from_app},
    }


def pod_paths(pod: Pod, entry: PodEntry | None, policy: Policy) -> Mapping[str, Mapping[str, bool]]:
    """Hop -> direction -> whether it is accelerated, of one pod.

    Args:
        entry: Of the pods map; None when it is left alone: then there is nothing to say.
    """
    if entry is None:
        return {}
    into_sidecar = not entry.stops_short or policy.trust_possible
    from_app = entry.enrol_apps and into_sidecar
    paths = {
        "app-sidecar": {"request": from_app, "response": entry.trust_apps},
        "sidecar-sidecar": {"request": into_sidecar, "response": into_sidecar},
        "sidecar-app": {"request": entry.trust_apps, "response": from_app},
    }
    if all(container.role is Role.SIDECAR for container in pod.containers):  # a gateway
        return {"sidecar-sidecar": paths["sidecar-sidecar"]}
    return paths


def _why_not_enrolled(era: Era) -> str:
    if era is Era.REGRESSED:
        return (
            "on this kernel FIONREAD misses the TCP bytes of an enrolled socket, and an "
            "application that asks (nginx, Java, .NET) would hang, unless it is trusted"
        )
    return "what FIONREAD says of an enrolled socket could not be found out"


def _why_not_trusted(policy: Policy, era: Era) -> str:
    if not policy.trust_apps:
        return "applications are not trusted by default (--trust-apps)"
    if era is Era.OLD:
        return (
            "trust refused: on this kernel FIONREAD does not count redirected bytes, and an "
            "application that asks (nginx, Java, .NET) would hang (--force-trust overrides)"
        )
    return (
        "trust refused: redirected bytes and TCP's would wait in two queues, or a known bug of "
        "this kernel forbids it; `accel check` says which (--force-trust overrides)"
    )

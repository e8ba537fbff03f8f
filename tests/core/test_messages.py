"""Every word that a person reads of a pod, as it is read: messages.txt is what comes out.

After a wanted change: python -m tests.core.test_messages > tests/core/messages.txt
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from accel.core.advice import ACCELERATE, TRUST_APPS, Override, read_advice
from accel.core.meshes import KNOWN, Profile, recognise
from accel.core.model import Container, Pod, Role
from accel.core.plan import Policy, pod_notes
from accel.core.runtime import RunningContainer, Sandbox, Workload
from accel.core.strategy import Era, strategy
from tests.core.strategies import by_key

GOLDEN = Path(__file__).with_name("messages.txt")

STATUS = {"sidecar.istio.io/status": "{}"}
SANDBOX = Sandbox("s", "u", "cart-0", "shop", annotations=STATUS, netns=4026532511)
LINKERD = {"linkerd.io/proxy-version": "v2.159"}
PROXY = RunningContainer("p", "s", "istio-proxy", 10)
APP = RunningContainer("a", "s", "cart", 11)
PLAIN = Policy(trust_possible=True)
ANY_UID = Profile("ours", containers=frozenset({"proxy"}))


def test_the_messages_are_the_golden_ones() -> None:
    assert "\n".join(messages()) + "\n" == GOLDEN.read_text(encoding="utf-8")


def messages() -> Iterator[str]:
    for title, pod, policy in _cases():
        yield title
        for note in pod_notes(by_key(pod), policy)[pod.key] or ("(nothing to say)",):
            yield f"    {note}"
    yield "two pods claim the same"
    other = replace(_with_address(_pod()), netns=2, name="shop/other-0", uid="v")
    yield from (f"    {n}" for n in pod_notes(by_key(_with_address(_pod()), other), PLAIN)[2])
    yield "only those that are asked for: strategy"
    paths = strategy(Policy(accelerate=False), Era.FIXED)
    yield f"    {paths['app-sidecar']['request'].reason}"


def _cases() -> Iterator[tuple[str, Pod, Policy]]:
    yield from _recognised()
    yield from _asked()
    yield from _noted()


def _recognised() -> Iterator[tuple[str, Pod, Policy]]:
    yield "a meshed pod", _pod(), PLAIN
    yield "without a proxy", _pod(containers=(APP,)), PLAIN
    yield "host network", _pod(replace(SANDBOX, host_network=True)), PLAIN
    yield "kata", _pod(replace(SANDBOX, runtime_class="io.containerd.kata.v2")), PLAIN
    yield "gVisor", _pod(replace(SANDBOX, runtime_class="runsc")), PLAIN
    yield "ambient", _annotated({"ambient.istio.io/redirection": "enabled"}), PLAIN
    yield "stopped", _pod(replace(SANDBOX, netns=None)), PLAIN
    linkerd = replace(PROXY, id="l", name="linkerd-proxy", cgroup_id=12)
    yield "two meshes", _annotated(LINKERD, (PROXY, linkerd, APP)), PLAIN
    one_cgroup = replace(PROXY, cgroup_id=11)
    yield "one cgroup", _pod(containers=(one_cgroup, APP)), PLAIN
    same_uid = replace(APP, uid=1337)
    yield "one cgroup, one uid", _pod(containers=(one_cgroup, same_uid)), PLAIN
    unknown = replace(one_cgroup, name="proxy")
    workload = Workload(SANDBOX, (unknown, APP))
    yield "one cgroup, no uid known", recognise(workload, (ANY_UID,)), PLAIN


def _asked() -> Iterator[tuple[str, Pod, Policy]]:
    off = Override(accelerate=False)
    yield "off by annotation", _annotated({ACCELERATE: "false"}), PLAIN
    yield "off by its name", _pod(), replace(PLAIN, overrides={"shop/cart-0": off})
    yield "off by its namespace", _pod(), replace(PLAIN, namespaces={"shop": off})
    namespaces = read_advice({ACCELERATE: "false"})
    yield "off by its namespace's annotation", replace(_pod(), namespace_advice=namespaces), PLAIN
    yield "off by default", _pod(), replace(PLAIN, accelerate=False)
    yield "a mistake, accelerate", _annotated({ACCELERATE: "on"}), PLAIN
    yield "a mistake, trust", _annotated({TRUST_APPS: "TRUE"}), replace(PLAIN, trust_apps=True)
    mistaken = read_advice({TRUST_APPS: ""})
    yield "a mistake of the namespace", replace(_pod(), namespace_advice=mistaken), PLAIN
    yield "an unknown annotation", _annotated({"accel.dev/trust-app": "true"}), PLAIN


def _noted() -> Iterator[tuple[str, Pod, Policy]]:
    trusted = _annotated({TRUST_APPS: "true"})
    yield "trust refused", trusted, Policy()
    yield "trust forced", trusted, Policy(trust_forced=True)
    linkerd = replace(PROXY, name="linkerd-proxy")
    yield "stops short", _annotated(LINKERD, (linkerd, APP)), Policy()
    haproxy = replace(APP, splices=("haproxy",))
    yield "splices", _annotated({TRUST_APPS: "true"}, (PROXY, haproxy)), PLAIN
    yield "splices, forced", _pod(containers=(PROXY, haproxy)), Policy(True, True, True)


def _pod(
    sandbox: Sandbox = SANDBOX, containers: tuple[RunningContainer, ...] = (PROXY, APP)
) -> Pod:
    return recognise(Workload(sandbox, containers), KNOWN)


def _annotated(
    annotations: Mapping[str, str], containers: tuple[RunningContainer, ...] = (PROXY, APP)
) -> Pod:
    return _pod(replace(SANDBOX, annotations={**STATUS, **annotations}), containers)


def _with_address(pod: Pod) -> Pod:
    return replace(
        pod,
        addresses=frozenset({IPv4Address("10.0.0.7")}),
        containers=frozenset({Container(10, Role.SIDECAR)}),
    )


if __name__ == "__main__":
    print("\n".join(messages()))  # noqa: T201  # what it is for

"""Processes into pods: the decision as a value, the rest over a recorded /proc."""

from __future__ import annotations

import logging
from contextlib import aclosing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.events import Listed, PodGone, PodSeen
from accel.core.meshes import KNOWN, Profile
from accel.core.model import Container, Pod, Role
from accel.linux.process_events import Kind, ProcessEvent
from accel.sources.processes import Member, ProcessSource, pod_from
from tests.sources.recorded import HOST, RecordedNode, ScriptedHints

ANY_UID = Profile("ours", frozenset({"proxy"}))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def node(tmp_path: Path) -> RecordedNode:
    return RecordedNode(tmp_path)


def member(pid: int, exe: str, uid: int, cgroup_id: int) -> Member:
    return Member(pid, 7, cgroup_id, Path(f"/cg/c{cgroup_id}"), exe, uid)


def pod(*members: Member) -> Pod | None:
    return pod_from(7, members, (ANY_UID, *KNOWN), name="web")


def roles(pod: Pod | None) -> dict[int, Role]:
    assert pod is not None
    return {container.cgroup_id: container.role for container in pod.containers}


def test_a_proxy_makes_a_pod_and_the_others_are_the_app() -> None:
    found = pod(member(1, "envoy", 1337, 10), member(2, "nginx", 0, 11), member(3, "pause", 0, 12))

    assert found == Pod(
        netns=7,
        name="web",
        profile="istio",
        containers=frozenset(
            {
                Container(10, Role.SIDECAR, "c10"),
                Container(11, Role.APP, "c11"),
                Container(12, Role.APP, "c12"),
            }
        ),
    )


def test_without_a_proxy_there_is_no_pod() -> None:
    assert pod(member(1, "nginx", 1337, 10), member(2, "envoy", 0, 11)) is None
    assert pod() is None


def test_an_app_under_the_proxys_uid_in_its_own_cgroup_is_an_app() -> None:
    assert roles(pod(member(1, "envoy", 1337, 10), member(2, "curl", 1337, 11))) == {
        10: Role.SIDECAR,
        11: Role.APP,
    }


def test_a_helper_under_the_proxys_uid_belongs_to_it() -> None:
    found = pod(member(1, "pilot-agent", 1337, 10), member(2, "envoy", 1337, 10))

    assert roles(found) == {10: Role.SIDECAR}
    assert found is not None
    assert found.proxy_uid is None


def test_in_a_shared_cgroup_the_uid_stands_in() -> None:
    found = pod(member(1, "envoy", 1337, 10), member(2, "nginx", 33, 10))

    assert roles(found) == {10: Role.UNKNOWN}
    assert found is not None
    assert (found.proxy_uid, found.accelerate) == (1337, True)


def test_programs_known_to_splice_are_told() -> None:
    found = pod(
        member(1, "envoy", 1337, 10),
        member(2, "sh", 0, 11),
        member(3, "haproxy", 99, 11),
        member(4, "haproxy", 99, 11),
        member(5, "haproxy-exporter", 0, 12),
    )

    assert found is not None
    assert {c.cgroup_id: c.splices for c in found.containers} == {
        10: (),
        11: ("haproxy",),
        12: (),
    }


def test_one_cgroup_and_one_uid_tell_nothing() -> None:
    found = pod(member(1, "proxy", 0, 10), member(2, "nginx", 0, 10))

    assert found is not None
    assert not found.accelerate
    assert "cgroup 10" in found.reason


def test_proxies_of_two_uids_cannot_both_stand_in() -> None:
    found = pod(
        member(1, "envoy", 1337, 10),
        member(2, "nginx", 0, 10),
        member(3, "linkerd2-proxy", 2102, 11),
        member(4, "nginx", 0, 11),
    )

    assert found is not None
    assert not found.accelerate
    assert "[1337, 2102]" in found.reason


def test_two_proxies_overlap_while_one_restarts() -> None:
    assert roles(pod(member(1, "envoy", 1337, 10), member(2, "envoy", 1337, 11))) == {
        10: Role.SIDECAR,
        11: Role.SIDECAR,
    }


@given(
    st.lists(
        st.builds(
            member,
            st.integers(1, 50),
            st.sampled_from(["envoy", "proxy", "nginx", "linkerd2-proxy"]),
            st.sampled_from([0, 33, 1337, 2102]),
            st.integers(10, 13),
        ),
        unique_by=lambda m: m.pid,
    )
)
def test_the_order_of_processes_does_not_matter(members: list[Member]) -> None:
    forward, backward = pod(*members), pod(*reversed(members))

    assert forward == backward
    if forward is not None:
        assert set(roles(forward)) == {m.cgroup_id for m in members}


@pytest.mark.anyio
async def test_the_whole_node(node: RecordedNode) -> None:
    node.run(10, exe="envoy", netns=HOST, uid=1337)  # the host's own: no pod
    node.run(20, exe="envoy", netns=500, uid=1337, cgroup="a/proxy", address="10.0.0.1")
    node.run(21, exe="nginx", netns=500, uid=33, cgroup="a/app")
    node.run(30, exe="envoy", netns=600, uid=0, cgroup="b/proxy")  # not a proxy's uid

    async with aclosing(node.source().events()) as events:
        first = await anext(events)

    assert isinstance(first, Listed)
    (found,) = first.pods
    assert (found.netns, found.name, found.profile) == (500, "netns:500", "istio")
    assert found.addresses == {IPv4Address("10.0.0.1")}
    assert {container.name: container.role for container in found.containers} == {
        "proxy": Role.SIDECAR,
        "app": Role.APP,
    }


@pytest.mark.anyio
async def test_hints_are_followed_without_a_relist(node: RecordedNode) -> None:
    hints = ScriptedHints()
    async with aclosing(_hinted(node, hints).events()) as events:
        assert await anext(events) == Listed(())

        node.run(20, exe="envoy", netns=500, uid=1337, cgroup="proxy")
        hints.batches.append((ProcessEvent(Kind.STARTED, 20),))
        assert isinstance(await anext(events), PodSeen)

        node.end(20)
        hints.batches.append((ProcessEvent(Kind.ENDED, 20),))
        assert await anext(events) == PodGone(500)
    assert hints.closed


@pytest.mark.anyio
async def test_a_process_that_moves_after_exec_is_looked_at_again(node: RecordedNode) -> None:
    """No further event says so; only the later looks can notice."""
    node.run(20, exe="envoy", netns=500, uid=1337, cgroup="before")
    hints = ScriptedHints((ProcessEvent(Kind.STARTED, 20),))
    async with aclosing(_hinted(node, hints).events()) as events:
        assert isinstance(await anext(events), Listed)
        node.run(20, exe="envoy", netns=500, uid=1337, cgroup="after")

        match await anext(events):
            case PodSeen(found):
                assert {container.name for container in found.containers} == {"after"}
            case other:
                pytest.fail(f"{other}")


@pytest.mark.anyio
async def test_a_change_of_uid_makes_and_unmakes_a_pod(node: RecordedNode) -> None:
    node.run(20, exe="envoy", netns=500, uid=0, cgroup="proxy")
    hints = ScriptedHints()
    async with aclosing(_hinted(node, hints).events()) as events:
        assert await anext(events) == Listed(())
        node.run(20, exe="envoy", netns=500, uid=1337, cgroup="proxy")
        hints.batches.append((ProcessEvent(Kind.CHANGED, 20),))
        assert isinstance(await anext(events), PodSeen)
        node.run(20, exe="envoy", netns=500, uid=0, cgroup="proxy")
        hints.batches.append((ProcessEvent(Kind.CHANGED, 20),))
        assert await anext(events) == PodGone(500)


@pytest.mark.anyio
async def test_lost_events_bring_a_new_list(node: RecordedNode) -> None:
    hints = ScriptedHints()
    async with aclosing(_hinted(node, hints).events()) as events:
        assert await anext(events) == Listed(())
        node.run(20, exe="envoy", netns=500, uid=1337, cgroup="proxy")
        hints.batches.append((ProcessEvent(Kind.LOST),))

        listed = await anext(events)
        assert isinstance(listed, Listed)
        assert [found.netns for found in listed.pods] == [500]


@pytest.mark.anyio
async def test_workers_outlive_the_parent_that_started_them(node: RecordedNode) -> None:
    """A daemon forks, executes nothing, and its parent ends: the cgroup knows the rest."""
    node.run(20, exe="envoy", netns=500, uid=1337, cgroup="proxy")
    node.run(21, exe="nginx", netns=500, cgroup="app")
    hints = ScriptedHints()
    async with aclosing(_hinted(node, hints).events()) as events:
        assert isinstance(await anext(events), Listed)
        node.run(22, exe="nginx", netns=500, cgroup="app")
        (node.cgroups.point / "app/cgroup.procs").write_text("22\n")
        node.end(21)
        hints.batches.append((ProcessEvent(Kind.ENDED, 21),))
        node.run(23, exe="sh", netns=500, cgroup="other")
        hints.batches.append((ProcessEvent(Kind.STARTED, 23),))

        match await anext(events):
            case PodSeen(found):
                names = {container.name for container in found.containers}
                assert names == {"proxy", "app", "other"}
            case other:
                pytest.fail(f"{other}")


@pytest.mark.anyio
async def test_polling_says_once_why(node: RecordedNode, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with aclosing(node.source().events()) as events:
            for _ in range(3):
                assert await anext(events) == Listed(())

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no answer; looking at /proc every 0.01 s" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("missing", ["exe", "stat", "status", "cgroup", "ns/net"])
async def test_a_process_may_vanish_at_any_point(node: RecordedNode, missing: str) -> None:
    node.run(20, exe="envoy", netns=500, uid=1337, cgroup="proxy")
    (node.proc / "20" / missing).unlink()

    async with aclosing(node.source().events()) as events:
        assert await anext(events) == Listed(())


@pytest.mark.anyio
async def test_a_cgroup_may_vanish_too(node: RecordedNode) -> None:
    node.run(20, exe="envoy", netns=500, uid=1337, cgroup="proxy")
    (node.cgroups.point / "proxy").rmdir()

    async with aclosing(node.source().events()) as events:
        assert await anext(events) == Listed(())


def _hinted(node: RecordedNode, hints: ScriptedHints) -> ProcessSource:
    """A source that will not list again by itself while a test lasts."""

    async def subscribe() -> ScriptedHints:
        return hints

    return ProcessSource(
        node.cgroups, proc=str(node.proc), subscribe=subscribe, relist_seconds=3600
    )

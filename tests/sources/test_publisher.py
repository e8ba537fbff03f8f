"""What reaches the API server of events and of the node's state, on good days and bad ones."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from accel.core.publishing import BURST, CreateEvent, NodeState, Reason, Remark
from accel.publisher import Publisher, event_body, event_name, state_body
from accel.sources.apiserver import InCluster
from tests.sources.clusters import NODE, Account, Pauses
from tests.sources.conftest import Certificate

pytest.importorskip("kubernetes_asyncio")

from tests.sources.fake_apiserver import EVENTS, FakeApiServer

pytestmark = pytest.mark.anyio

NOON = 1_764_500_400.0
NODE_PATH = f"/api/v1/nodes/{NODE}"
IDLE = Remark(Reason.UNSUPPORTED, "Linux 4.19 is too old", warning=True)
ACTIVE = Remark(Reason.ACTIVE, "every hop")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server(certificate: Certificate) -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer.serve(certificate.file, certificate.key) as server:
        yield server


@pytest.fixture
def publisher(server: FakeApiServer, account: Account, pauses: Pauses, clock: Clock) -> Publisher:
    access = InCluster(account.mounted, server.environ)
    return Publisher(NODE, access, timing=pauses.timing, wall=clock)


@asynccontextmanager
async def running(publisher: Publisher) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publisher.run)
        yield
        tasks.cancel_scope.cancel()


async def test_an_event_about_the_node(server: FakeApiServer, publisher: Publisher) -> None:
    publisher.remark(IDLE)
    async with running(publisher):
        await server.until_answered(EVENTS)

    (event,) = server.events.values()
    assert event["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": NODE,
        "uid": NODE,
    }
    assert (event["reason"], event["type"]) == ("AccelerationUnsupported", "Warning")
    assert event["message"] == "Linux 4.19 is too old"
    assert event["lastTimestamp"] == "2025-11-30T11:00:00Z"
    assert event["source"] == {"component": "accel", "host": NODE}
    assert event["metadata"]["namespace"] == "default"


async def test_what_happens_again_is_counted(server: FakeApiServer, publisher: Publisher) -> None:
    async with running(publisher):
        publisher.remark(ACTIVE)
        await server.until_answered(EVENTS)
        publisher.remark(ACTIVE)
        (name,) = server.events
        await server.until_answered(f"{EVENTS}/{name}")

    assert [event["count"] for event in server.events.values()] == [2]


async def test_another_life_of_the_agent_finds_its_event(
    server: FakeApiServer, account: Account, pauses: Pauses, clock: Clock
) -> None:
    access = InCluster(account.mounted, server.environ)
    for life in (1, 2):
        publisher = Publisher(NODE, access, timing=pauses.timing, wall=clock)
        publisher.remark(ACTIVE)
        async with running(publisher):
            await server.until_answered(
                EVENTS if life == 1 else f"{EVENTS}/{next(iter(server.events))}"
            )

    assert len(server.events) == 1
    assert (EVENTS, 409) in server.answers


async def test_an_event_that_was_forgotten_is_created_again(
    server: FakeApiServer, publisher: Publisher
) -> None:
    async with running(publisher):
        publisher.remark(ACTIVE)
        await server.until_answered(EVENTS)
        server.events.clear()
        publisher.remark(ACTIVE)
        await server.until_answered(EVENTS, 2)

    assert [event["count"] for event in server.events.values()] == [2]


async def test_the_state_is_an_annotation(
    server: FakeApiServer, publisher: Publisher, clock: Clock
) -> None:
    server.node_annotations = {"other": "stays"}
    async with running(publisher):
        publisher.node_is(NodeState("idle", "Linux 4.19 is too old"))
        publisher.remark(IDLE)
        await server.until_answered(EVENTS)  # which goes after the state has arrived
        assert server.node_annotations == {
            "other": "stays",
            "accel.dev/state": "idle",
            "accel.dev/reason": "Linux 4.19 is too old",
        }
        clock.now += 60
        publisher.node_is(NodeState("active"))
        await server.until_answered(NODE_PATH, 2)

    assert server.node_annotations == {"other": "stays", "accel.dev/state": "active"}
    assert server.requests[-1].content_type == "application/merge-patch+json"


async def test_a_flood_reaches_the_server_as_a_burst(
    server: FakeApiServer, publisher: Publisher, clock: Clock
) -> None:
    async with running(publisher):
        for number in range(4 * BURST):
            publisher.remark(Remark(Reason.POD_NOT_ACCELERATED, f"pod {number}"))
        publisher.node_is(NodeState("active"))
        await server.until_answered(EVENTS, BURST)
        clock.now += 300
        publisher.remark(Remark(Reason.POD_NOT_ACCELERATED, "pod 0"))
        await server.until_answered(EVENTS, BURST + 1)

    assert len(server.events) == BURST + 1


async def test_a_missing_right_is_said_once_and_harms_nothing_else(
    server: FakeApiServer, publisher: Publisher, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.forbidden.add(f"PATCH {NODE_PATH}")
    async with running(publisher):
        publisher.node_is(NodeState("active"))
        publisher.remark(ACTIVE)
        await server.until_answered(EVENTS)
        clock.now += 300
        publisher.remark(IDLE)
        await server.until_answered(EVENTS, 2)
        clock.now += 300
        server.forbidden.clear()
        publisher.remark(ACTIVE)
        await server.until_answered(NODE_PATH)

    assert server.node_annotations["accel.dev/state"] == "active"
    assert caplog.text.count("403 Forbidden") == 1
    assert "give accel's service account this right" in caplog.text


async def test_trouble_is_waited_out(
    server: FakeApiServer,
    publisher: Publisher,
    pauses: Pauses,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.refusals[f"POST {EVENTS}"] = [500, 500, 503]
    async with running(publisher):
        publisher.remark(ACTIVE)
        await server.until_answered(EVENTS)

    assert len(server.events) == 1
    assert len(pauses.seconds) == 3
    assert caplog.text.count("500 Internal Server Error") == 1


async def test_a_server_that_is_not_there_stops_nothing(
    account: Account, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    publisher = Publisher(NODE, InCluster(account.mounted, environ), timing=pauses.timing)
    async with running(publisher):
        publisher.remark(ACTIVE)
        await pauses.taken(5)

    assert len(caplog.records) == 1


async def test_without_the_client_it_ends_and_says_so(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    publisher.remark(ACTIVE)
    await publisher.run()

    assert "accel[kubernetes]" in caplog.text


def test_a_message_is_cut_to_what_is_shown() -> None:
    remark = Remark(Reason.ACTIVE, "x" * 5000)
    body = event_body(NODE, CreateEvent("abc", remark, 1, NOON, NOON))

    assert len(str(body["message"])) == 1024
    assert body["type"] == "Normal"
    assert event_name(NODE, "abc") == "node-a.abc"


def test_without_a_reason_its_annotation_goes() -> None:
    assert state_body(NodeState("active")) == {
        "metadata": {"annotations": {"accel.dev/state": "active", "accel.dev/reason": None}}
    }

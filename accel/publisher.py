"""Tells the cluster about this node: Kubernetes Events, and annotations of the Node.

    kubectl describe node NAME

shows both.  What is told and when is decided in accel/core/publishing.py; here it is sent.
Nothing here stops the agent, or makes it wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

import anyio

from accel.core.publishing import (
    AnnotateNode,
    CreateEvent,
    NodeState,
    Outbox,
    Remark,
    RepeatEvent,
    Sending,
)
from accel.errors import AccelError
from accel.sources.apiserver import Access, ApiServer, ApiServerError, load_client
from accel.sources.pacing import Backoff, Complaint, Timing

_log = logging.getLogger(__name__)

STATE_ANNOTATION = "accel.dev/state"
REASON_ANNOTATION = "accel.dev/reason"

# Where events about what has no namespace belong (core/validation, legacyValidateEvent()).
_EVENTS = "/api/v1/namespaces/default/events"
_MESSAGE_CHARACTERS = 1024

# Refusals of one thing, which the next thing need not meet; all others are the server's trouble.
_REFUSALS = frozenset({400, 403, 404, 405, 409, 413, 422})


class Publisher:
    """Sends what it is told, when it may; see run().

    Args:
        node: As Kubernetes calls it.
        access: How to reach the API server.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        node: str,
        access: Access,
        *,
        timing: Timing | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._access = access
        self._timing = timing or Timing()
        self._wall = wall
        self._outbox = Outbox()
        self._news = anyio.Event()
        self._complaint = Complaint("events and state of the node")
        self._refused: set[tuple[str, int]] = set()

    def remark(self, remark: Remark) -> None:
        """Something happened that people should read in the node's events."""
        self._outbox.remark(remark, self._wall())
        self._news.set()

    def node_is(self, state: NodeState) -> None:
        """The node is so from now on."""
        self._outbox.node_is(state)
        self._news.set()

    async def run(self) -> None:
        """Send, until cancelled; returns at once, and says so, where the client is missing."""
        backoff = Backoff(self._timing.random)
        while True:
            await self._something_due()
            try:
                await load_client()
            except ApiServerError as error:
                self._complaint.say(error)
                return
            try:
                await self._send_all()
            except AccelError as error:
                self._complaint.say(error)
                await self._timing.sleep(backoff.seconds(self._timing.now()))

    async def _something_due(self) -> None:
        while not self._outbox.due(self._wall()):
            # The wall's clock may be set; a look each hour makes good for it.
            with anyio.move_on_after(min(self._outbox.wait_seconds(self._wall()), 3600.0)):
                await self._news.wait()
            self._news = anyio.Event()

    async def _send_all(self) -> None:
        async with ApiServer.connect(self._access) as server:
            for sending in self._outbox.due(self._wall()):
                await self._send(server, sending)
        self._complaint.over()

    async def _send(self, server: ApiServer, sending: Sending) -> None:
        try:
            await self._put(server, sending)
        except ApiServerError as error:
            match sending, error.status:
                case CreateEvent(), 409:
                    self._outbox.is_there(sending)
                case RepeatEvent(), 404:
                    self._outbox.is_away(sending)
                case _, status if status in _REFUSALS:
                    self._outbox.refused(sending, self._wall())
                    self._log_refusal(sending, error)
                case _:
                    raise
        else:
            self._outbox.told(sending, self._wall())

    def _log_refusal(self, sending: Sending, error: ApiServerError) -> None:
        """Once for each kind of it: what is refused is tried again, and the next like it."""
        kind = (type(sending).__name__, error.status)
        if kind not in self._refused:
            self._refused.add(kind)
            advice = f" (try: {error.remedy})" if error.remedy else ""
            _log.warning("the cluster is not told of this node: %s%s", error, advice)

    async def _put(self, server: ApiServer, sending: Sending) -> None:
        match sending:
            case CreateEvent():
                await server.create(_EVENTS, event_body(self._node, sending))
            case RepeatEvent(name, _, count, last):
                body = {"count": count, "lastTimestamp": _timestamp(last)}
                await server.patch(f"{_EVENTS}/{event_name(self._node, name)}", body)
            case AnnotateNode(state):
                await server.patch(f"/api/v1/nodes/{self._node}", state_body(state))


def event_name(node: str, name: str) -> str:
    return f"{node}.{name}"


def event_body(node: str, event: CreateEvent) -> dict[str, object]:
    """A v1 Event about the node.

    Its involvedObject has the node's name as uid, as the kubelet's own events have: `kubectl
    describe node` looks for those.
    """
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event_name(node, event.name), "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "reason": str(event.remark.reason),
        "message": event.remark.message[:_MESSAGE_CHARACTERS],
        "type": "Warning" if event.remark.warning else "Normal",
        "count": event.count,
        "firstTimestamp": _timestamp(event.first),
        "lastTimestamp": _timestamp(event.last),
        "source": {"component": "accel", "host": node},
        "reportingComponent": "accel",
        "reportingInstance": node,
    }


def state_body(state: NodeState) -> dict[str, object]:
    """A merge patch of the Node; without a reason, the annotation goes."""
    return {
        "metadata": {
            "annotations": {STATE_ANNOTATION: state.state, REASON_ANNOTATION: state.reason or None}
        }
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

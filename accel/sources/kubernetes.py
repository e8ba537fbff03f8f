"""What is written on pods and namespaces, from the API server.

Advice, not pods: the server says "running" half a second late and "gone" 0.8 s before
the containers end, and knows no network namespace.  What it alone knows is what was
annotated after a pod began.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

import anyio

from accel.core.advice import Advice
from accel.core.events import AdviceEvent, NamespaceName, PodUid, Subject
from accel.errors import SettingsError
from accel.sources.advice_book import AdviceBook
from accel.sources.apiserver import Access, load_client
from accel.sources.kubernetes_objects import Metadata, advice, namespace, pod
from accel.sources.pacing import Timing
from accel.sources.reflector import Collection, Reflector
from accel.sources.telling import Tell, told_by


class KubernetesAdvice:
    """Follows the pods of one node, and all namespaces; keeps the AdviceSource promise.

    Args:
        node: As Kubernetes calls it; see find_node_name().
        access: How to reach the API server.
        start_jitter_seconds: The first request comes at random within so many, because a
            rollout starts the agents of all nodes at once.
        linger_seconds: What was written on a pod is told gone one to two such times after it.
    """

    name = "kubernetes"

    def __init__(
        self,
        node: str,
        access: Access,
        *,
        start_jitter_seconds: float = 30.0,
        linger_seconds: float = 30.0,
        timing: Timing | None = None,
    ) -> None:
        self._node = node
        self._access = access
        self._start_jitter_seconds = start_jitter_seconds
        self._linger_seconds = linger_seconds
        self._timing = timing or Timing()

    def events(self) -> AsyncGenerator[AdviceEvent, None]:
        """See AdviceSource.events(), and told_by() for who may step it.

        Raises:
            ApiServerError: The client is not installed.
        """
        return told_by(self._run)

    async def _run(self, tell: Tell) -> None:
        await self._timing.sleep(self._timing.random.uniform(0.0, self._start_jitter_seconds))
        await load_client()
        board = _Board(tell)
        # The server holds an index of pods by node, and sends a change to the watchers of
        # that node alone (pkg/registry/core/pod/strategy.go, NodeNameTriggerFunc).
        pods = Collection(
            "/api/v1/pods", "annotations of pods", {"fieldSelector": f"spec.nodeName={self._node}"}
        )
        namespaces = Collection("/api/v1/namespaces", "annotations of namespaces")
        async with anyio.create_task_group() as tasks:
            for reflector in (
                Reflector(pods, self._access, board.pods, self._timing),
                Reflector(namespaces, self._access, board.namespaces, self._timing),
            ):
                tasks.start_soon(reflector.run)
            while True:
                await anyio.sleep(self._linger_seconds)
                await board.sweep()


def find_node_name(setting: str, environ: Mapping[str, str]) -> str:
    """What Kubernetes calls this node: the setting, or NODE_NAME, as manifests name it.

    The host's name is no answer: the kubelet may have been given another, and the pods of
    another node would be followed.

    Raises:
        SettingsError: Neither is given.
    """
    if name := setting or environ.get("NODE_NAME", ""):
        return name
    raise SettingsError(
        "the name of this node is not given",
        remedy="set ACCEL_NODE_NAME, in a pod from the field spec.nodeName (fieldRef)",
    )


class _Board:
    """What is written, on pods and on namespaces, and who is told of it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._book = AdviceBook()
        self._listed: set[type[Subject]] = set()
        self._order = anyio.Lock()  # one change after the other, and told as they were made
        self.pods = _Side(self, PodUid, pod)
        self.namespaces = _Side(self, NamespaceName, namespace)

    async def see_all(self, kind: type[Subject], found: Mapping[Subject, Advice]) -> None:
        async with self._order:
            self._book.see_all(kind, found)
            self._listed.add(kind)
            if self._is_complete:
                await self._tell(self._book.all())

    async def see(self, subject: Subject, said: Advice) -> None:
        """Most changes of an object change nothing that concerns us."""
        async with self._order:
            if (news := self._book.see(subject, said)) is not None and self._is_complete:
                await self._tell(news)

    async def leave(self, subject: Subject) -> None:
        async with self._order:
            self._book.leave(subject)

    async def sweep(self) -> None:
        async with self._order:
            for gone in self._book.sweep():
                if self._is_complete:
                    await self._tell(gone)

    @property
    def _is_complete(self) -> bool:
        """Before both are listed, what is not known would look like not written."""
        return len(self._listed) == 2


class _Side:
    """The pods' or the namespaces' way to a board; a Reflector's Sink."""

    def __init__(
        self, board: _Board, kind: type[Subject], subject: Callable[[Metadata], Subject]
    ) -> None:
        self._board = board
        self._kind = kind
        self._subject = subject

    async def listed(self, found: tuple[Metadata, ...]) -> None:
        said = {self._subject(each): advice(each) for each in found}
        await self._board.see_all(self._kind, said)

    async def seen(self, found: Metadata) -> None:
        await self._board.see(self._subject(found), advice(found))

    async def gone(self, was: Metadata) -> None:
        await self._board.leave(self._subject(was))

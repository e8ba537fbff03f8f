"""What is written on pods, from the node's own kubelet: where there is no right to the API server.

From Kubernetes 1.37 the kubelet streams its pods over a unix socket; before, it is asked for
all of them now and then, over HTTPS.  Of namespaces it tells nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import anyio

import accel
from accel.core.advice import Advice, read_advice
from accel.core.events import AdviceEvent, AdviceListed, PodUid, Subject
from accel.errors import AccelError
from accel.rpc.grpc import Channel
from accel.rpc.kubelet import WATCH_PODS, EventType, Pod, WatchPodsEvent, WatchPodsRequest
from accel.rpc.protobuf import decode
from accel.sources.advice_book import AdviceBook
from accel.sources.kubernetes_objects import advice, decode_list, pod
from accel.sources.pacing import Backoff, Complaint, Timing
from accel.sources.service_account import ServiceAccount
from accel.sources.telling import Tell, told_by

PODS_SOCKET = Path("/var/lib/kubelet/pods-api/pods-api.sock")

_ANSWER_SECONDS = 10.0
_SYNC_SECONDS = 30.0
_MOST_BYTES = 64 << 20  # of an answer; 500 pods have some 10 MiB

_RIGHT = "give accel's service account the right to get nodes/pods (Kubernetes 1.33)"
_REMEDIES = {"401": _RIGHT, "403": _RIGHT}


class KubeletError(AccelError):
    """The kubelet does not tell what is written on its pods."""


@dataclass(frozen=True, slots=True)
class KubeletServer:
    """The kubelet over HTTPS, as its own node reaches it.

    Attributes:
        authorities: Whose certificates are taken: the cluster's, and the one that a kubelet
            makes for itself where the cluster gives it none (serverTLSBootstrap).
    """

    account: ServiceAccount = field(default_factory=ServiceAccount)
    host: str = "127.0.0.1"
    port: int = 10250
    own_certificate: Path = Path("/var/lib/kubelet/pki/kubelet.crt")

    @property
    def authorities(self) -> tuple[Path, ...]:
        return (self.account.ca_file, self.own_certificate)


class KubeletAdvice:
    """Follows the pods of this node; keeps the AdviceSource promise.

    Args:
        node: As Kubernetes calls it: the name in the kubelet's certificate.
        socket: Where the kubelet streams its pods; where there is none, `server` is asked.
        server: The kubelet over HTTPS.
        poll_seconds: Between two questions.  For each the kubelet writes all its pods as
            JSON, 0.5 to 1 MB for 110.
        relist_seconds: After so long a stream is begun anew.  The kubelet drops what a slow
            reader has no room for, and does not say so (pkg/kubelet/apis/pods/server.go,
            Broadcast()).
    """

    name = "kubelet"

    def __init__(
        self,
        node: str,
        *,
        socket: Path = PODS_SOCKET,
        server: KubeletServer | None = None,
        poll_seconds: float = 30.0,
        relist_seconds: float = 300.0,
        timing: Timing | None = None,
    ) -> None:
        self._node = node
        self._socket = socket
        self._server = server or KubeletServer()
        self._poll_seconds = poll_seconds
        self._relist_seconds = relist_seconds
        self._timing = timing or Timing()

    def events(self) -> AsyncGenerator[AdviceEvent, None]:
        """See AdviceSource.events(), and told_by() for who may step it."""
        return told_by(self._run)

    async def _run(self, tell: Tell) -> None:
        teller = _Teller(tell)
        complaint = Complaint("annotations of pods, from the kubelet")
        backoff = Backoff(self._timing.random)
        while True:
            try:
                if self._socket.exists():
                    await self._stream(teller, complaint)
                else:
                    await self._poll(teller)
                    complaint.over()
                    await self._timing.sleep(self._poll_seconds)
            except AccelError as error:
                complaint.say(error)
                await self._timing.sleep(backoff.seconds(self._timing.now()))

    async def _stream(self, teller: _Teller, complaint: Complaint) -> None:
        async with (
            Channel.open(str(self._socket)) as channel,
            aclosing(channel.stream(WATCH_PODS, WatchPodsRequest(), WatchPodsEvent)) as events,
        ):
            await teller.listed(await _first(events))
            complaint.over()
            with anyio.move_on_after(self._relist_seconds):
                async for event in events:
                    await teller.take(event)
                raise KubeletError("the kubelet ended the stream of its pods")

    async def _poll(self, teller: _Teller) -> None:
        _, found = decode_list(await get_pods(self._server, self._node))
        await teller.listed({pod(each): advice(each) for each in found})


class _Teller:
    """What is written, and who is told of it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._book = AdviceBook()
        self._told: AdviceListed | None = None  # unless something was told since

    async def listed(self, found: Mapping[Subject, Advice]) -> None:
        """These are all; told when it is news."""
        self._book.sweep()
        self._book.see_all(PodUid, found)
        if (listed := self._book.all()) != self._told:
            await self._tell(listed)
            self._told = listed

    async def take(self, event: WatchPodsEvent) -> None:
        match _change(event):
            case (EventType.DELETED, subject, _):
                self._book.leave(subject)
            case (_, subject, said):
                if (news := self._book.see(subject, said)) is not None:
                    self._told = None
                    await self._tell(news)


async def _first(events: AsyncGenerator[WatchPodsEvent, None]) -> dict[Subject, Advice]:
    """What there is when a stream begins."""
    found: dict[Subject, Advice] = {}
    with anyio.move_on_after(_SYNC_SECONDS):
        async for event in events:
            if event.type is EventType.INITIAL_SYNC_COMPLETE:
                return found
            if (change := _change(event)) is not None:
                _, subject, said = change
                found[subject] = said
        raise KubeletError("the kubelet ended the stream before it had told all pods")
    raise KubeletError(f"the kubelet has not told all its pods within {_SYNC_SECONDS:g} s")


def _change(event: WatchPodsEvent) -> tuple[EventType, PodUid, Advice] | None:
    """What an event says of which pod; None for an event of a later version, since a change
    of a pod is always one of those there are.

    Raises:
        WireError: The pod's bytes are no pod.
        KubeletError: The event makes no sense.
    """
    if event.type is EventType.UNSPECIFIED:
        raise KubeletError(
            "an event without a type: a Pods API of before Kubernetes 1.37",
            remedy="switch the kubelet's feature gate PodsAPI off, or upgrade",
        )
    if event.type not in (EventType.ADDED, EventType.MODIFIED, EventType.DELETED):
        return None
    metadata = decode(Pod, event.pod).metadata
    if not metadata.uid:
        raise KubeletError(f"a pod without a uid: {metadata.namespace}/{metadata.name}")
    return event.type, PodUid(metadata.uid), read_advice(metadata.annotations)


async def get_pods(server: KubeletServer, node: str) -> bytes:
    """All pods of the kubelet, as a PodList in JSON.

    By HTTP/1.0, so that the answer is all there is until the connection ends.

    Raises:
        KubeletError: No answer, or a refusal.
        NoServiceAccount: There is no token.
    """
    where = f"GET https://{server.host}:{server.port}/pods"
    request = (
        f"GET /pods HTTP/1.0\r\nHost: {node}\r\nAuthorization: Bearer {server.account.token()}\r\n"
        f"Accept: application/json\r\nUser-Agent: accel/{accel.__version__}\r\n\r\n"
    )
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            answer = await _exchange(server, node, request.encode())
    except TimeoutError as error:
        raise KubeletError(f"{where}: no answer within {_ANSWER_SECONDS:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise KubeletError(
            f"{where}: {error.verify_message}",
            remedy=f"mount the kubelet's own certificate at {server.own_certificate}",
        ) from error
    except (OSError, anyio.BrokenResourceError) as error:
        raise KubeletError(f"{where}: {error.__cause__ or error}") from error
    return _body(answer, where)


async def _exchange(server: KubeletServer, node: str, request: bytes) -> bytes:
    answer = bytearray()
    async with await anyio.connect_tcp(
        server.host,
        server.port,
        tls=True,
        ssl_context=_trusting(server.authorities),
        tls_hostname=node,
    ) as connection:
        await connection.send(request)
        try:
            while len(answer) <= _MOST_BYTES:
                answer += await connection.receive()
        except anyio.EndOfStream:
            return bytes(answer)
    raise OSError(f"an answer of more than {_MOST_BYTES} bytes")


def _trusting(authorities: Iterable[Path]) -> ssl.SSLContext:
    """Those of the authorities that are there, and no others."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for file in authorities:
        if file.exists():
            context.load_verify_locations(file)
    return context


def _body(answer: bytes, where: str) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode(errors="replace")
    code = status.split()[1] if status.startswith("HTTP/1.") and " " in status else ""
    if code == "200":
        return body
    said = body[:200].decode(errors="replace").strip()
    raise KubeletError(f"{where}: {status[:80]}: {said}", remedy=_REMEDIES.get(code))

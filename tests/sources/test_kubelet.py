"""Advice from the node's own kubelet: streamed where it can, else asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import NO_ADVICE, Advice
from accel.core.events import AdviceListed, AdviceSeen, PodUid
from accel.errors import AccelError
from accel.rpc.kubelet import WATCH_PODS, EventType, WatchPodsEvent
from accel.rpc.protobuf import encode
from accel.sources import kubelet
from accel.sources.kubelet import KubeletAdvice, KubeletError, KubeletServer, get_pods
from tests.rpc.server import framed
from tests.sources.clusters import NODE, Account, Pauses, listening, pod_object
from tests.sources.conftest import Certificate
from tests.sources.fake_kubelet import PodsApi, PodsOverHttps, event

pytestmark = pytest.mark.anyio

A, B = PodUid("a"), PodUid("b")
OFF = Advice(accelerate=False)
SAYS_OFF = {"accel.dev/accelerate": "false"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "pods-api.sock"


@pytest.fixture
async def api(socket: Path) -> AsyncIterator[PodsApi]:
    async with PodsApi.serve(socket) as api:
        api.pods = {"a": {}, "b": SAYS_OFF}
        yield api


@pytest.fixture
async def https(certificate: Certificate) -> AsyncIterator[PodsOverHttps]:
    async with PodsOverHttps.serve(certificate.file, certificate.key) as https:
        yield https


@pytest.fixture
def server(https: PodsOverHttps, account: Account) -> KubeletServer:
    return KubeletServer(account.mounted, port=https.port)


@pytest.fixture
def streaming(socket: Path, pauses: Pauses) -> KubeletAdvice:
    return KubeletAdvice(NODE, socket=socket, timing=pauses.timing)


@pytest.fixture
def asking(socket: Path, server: KubeletServer, pauses: Pauses) -> KubeletAdvice:
    return KubeletAdvice(NODE, socket=socket, server=server, timing=pauses.timing)


async def test_streams_what_there_is_and_then_changes(
    api: PodsApi, streaming: KubeletAdvice
) -> None:
    async with listening(streaming) as told:
        assert await told.next() == AdviceListed({A: NO_ADVICE, B: OFF})
        api.put("a", {"status": "changed"})  # which says nothing to accel
        api.put("a", SAYS_OFF)
        assert await told.next() == AdviceSeen(A, OFF)
        api.put("c", {})
        assert await told.next() == AdviceSeen(PodUid("c"), NO_ADVICE)
        api.delete("b")
        api.put("d", {})
        assert await told.next() == AdviceSeen(PodUid("d"), NO_ADVICE)

    assert api.paths == [WATCH_PODS]


async def test_a_stream_in_small_pieces(api: PodsApi, streaming: KubeletAdvice) -> None:
    api.chunk_bytes = 1
    async with listening(streaming) as told:
        assert await told.next() == AdviceListed({A: NO_ADVICE, B: OFF})
        api.put("a", SAYS_OFF)
        assert await told.next() == AdviceSeen(A, OFF)


async def test_a_lost_stream_is_begun_again(
    api: PodsApi, streaming: KubeletAdvice, pauses: Pauses
) -> None:
    async with listening(streaming) as told:
        await told.next()
        api.pods["a"] = SAYS_OFF  # while nobody listens
        api.order(None)
        assert await told.next() == AdviceListed({A: OFF, B: OFF})

    assert len(pauses.seconds) == 1


async def test_who_has_left_is_forgotten_late(api: PodsApi, streaming: KubeletAdvice) -> None:
    """His containers may be there for a while, and need the advice."""
    async with listening(streaming) as told:
        await told.next()
        api.delete("b")
        while told.nothing():
            api.order(None)
            await api.watched(len(api.paths) + 1)
        assert await told.next() == AdviceListed({A: NO_ADVICE})

    assert len(api.paths) > 2


@pytest.mark.parametrize("status", [0, 14])
async def test_a_stream_that_the_kubelet_ends(
    api: PodsApi, streaming: KubeletAdvice, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(streaming) as told:
        await told.next()
        api.order((status, "shutting down"))
        await api.watched(2)
        api.put("a", SAYS_OFF)
        assert await told.next() == AdviceSeen(A, OFF)

    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1


async def test_a_stream_is_begun_anew_now_and_then(
    api: PodsApi, socket: Path, pauses: Pauses
) -> None:
    """What the kubelet dropped for us is in the next one."""
    source = KubeletAdvice(NODE, socket=socket, relist_seconds=0.05, timing=pauses.timing)
    async with listening(source) as told:
        await told.next()
        api.pods["a"] = SAYS_OFF
        while await told.next() != AdviceListed({A: OFF, B: OFF}):
            pass

    assert pauses.seconds == []


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\xff\xff\xff", "WatchPodsEvent"),
        (encode(WatchPodsEvent(type=EventType.ADDED, pod=b"\x0a\xff")), "Pod"),
        (encode(WatchPodsEvent(type=EventType.ADDED)), "a pod without a uid"),
        (b"", "before Kubernetes 1.37"),
    ],
)
async def test_garbage_is_said_and_the_stream_begun_again(
    api: PodsApi,
    streaming: KubeletAdvice,
    caplog: pytest.LogCaptureFixture,
    message: bytes,
    said: str,
) -> None:
    async with listening(streaming) as told:
        await told.next()
        api.say(message)
        await api.watched(2)
        api.put("a", SAYS_OFF)
        assert await told.next() == AdviceSeen(A, OFF)

    assert said in caplog.text


async def test_a_message_that_never_ends(api: PodsApi, streaming: KubeletAdvice) -> None:
    async with listening(streaming) as told:
        await told.next()
        whole = framed(event(EventType.MODIFIED, "a", SAYS_OFF))
        api.order(whole[:-1])
        api.order(None)
        await api.watched(2)
        api.put("b", {})
        assert await told.next() == AdviceSeen(B, NO_ADVICE)


async def test_events_of_a_later_version_are_passed_over(
    api: PodsApi, streaming: KubeletAdvice
) -> None:
    async with listening(streaming) as told:
        await told.next()
        api.say(encode(WatchPodsEvent(type=EventType(9))))
        api.put("a", SAYS_OFF)
        assert await told.next() == AdviceSeen(A, OFF)


async def test_a_kubelet_that_does_not_finish_its_list(
    api: PodsApi,
    streaming: KubeletAdvice,
    pauses: Pauses,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kubelet, "_SYNC_SECONDS", 0.05)
    api.opening = [event(EventType.ADDED, "a", {})]
    async with listening(streaming) as told:
        await pauses.taken(2)
        assert told.nothing()
        api.opening = None
        assert await told.next() == AdviceListed({A: NO_ADVICE, B: OFF})

    assert "has not told all its pods within 0.05 s" in caplog.text


@given(st.binary(max_size=200))
def test_whatever_the_bytes_of_an_event_nothing_else_is_raised(data: bytes) -> None:
    changed = WatchPodsEvent(type=EventType.ADDED, pod=data)
    with suppress(AccelError):
        kubelet._change(changed)


async def test_asks_where_there_is_no_stream(
    https: PodsOverHttps, asking: KubeletAdvice, pauses: Pauses
) -> None:
    async with listening(asking) as told:
        assert await told.next() == AdviceListed({})
        await pauses.taken(2)
        https.pods = [pod_object("web", SAYS_OFF)]
        assert await told.next() == AdviceListed({PodUid("uid-of-web"): OFF})
        await pauses.taken(len(pauses.seconds) + 3)
        assert told.nothing()  # again and again the same

    assert set(pauses.seconds) == {30.0}
    assert https.requests[0].startswith(b"GET /pods HTTP/1.0\r\nHost: node-a\r\n")


async def test_takes_the_stream_as_soon_as_there_is_one(
    https: PodsOverHttps, asking: KubeletAdvice, socket: Path
) -> None:
    """After the kubelet's upgrade, say."""
    async with listening(asking) as told:
        await told.next()
        async with PodsApi.serve(socket) as api:
            api.pods = {"a": SAYS_OFF}
            await api.watched()
            assert (await told.next(), api.paths[0]) in [
                (AdviceListed({}), WATCH_PODS),
                (AdviceListed({A: OFF}), WATCH_PODS),
            ]


async def test_the_token_is_read_each_time(
    https: PodsOverHttps,
    asking: KubeletAdvice,
    account: Account,
    pauses: Pauses,
    caplog: pytest.LogCaptureFixture,
) -> None:
    https.token = "second"
    async with listening(asking) as told:
        await pauses.taken(3)
        account.rotate("second")
        assert await told.next() == AdviceListed({})

    assert caplog.text.count("401 Unauthorized: Unauthorized (try: give accel's") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "/pods: :"),
        (b"\x00\x01garbage", "garbage"),
        (b"HTTP/1.0 500 Oops\r\n\r\nno", "HTTP/1.0 500 Oops: no"),
    ],
)
async def test_an_answer_that_is_none(
    https: PodsOverHttps, server: KubeletServer, answer: bytes, said: str
) -> None:
    https.answer = answer
    with pytest.raises(KubeletError) as raised:
        await get_pods(server, NODE)
    assert said in str(raised.value)


async def test_a_truncated_list_is_said(
    https: PodsOverHttps, asking: KubeletAdvice, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    https.answer = b'HTTP/1.0 200 OK\r\n\r\n{"kind":"PodList","items":[{"metadata":{"uid":"a"'
    async with listening(asking) as told:
        await pauses.taken(2)
        assert told.nothing()
        https.answer = None
        assert await told.next() == AdviceListed({})

    assert "not a list" in caplog.text


async def test_a_kubelet_of_another_name_is_not_trusted(server: KubeletServer) -> None:
    """Whoever listens there would get our token."""
    with pytest.raises(KubeletError, match=r"(?i)hostname mismatch") as raised:
        await get_pods(server, "node-b")
    assert raised.value.remedy is not None


async def test_a_kubelet_that_certified_itself(
    https: PodsOverHttps, account: Account, certificate: Certificate, tmp_path: Path
) -> None:
    account.mounted.ca_file.unlink()
    server = KubeletServer(account.mounted, port=https.port, own_certificate=tmp_path / "none")
    with pytest.raises(KubeletError, match="self-signed certificate"):
        await get_pods(server, NODE)

    server = KubeletServer(account.mounted, port=https.port, own_certificate=certificate.file)
    assert b"PodList" in await get_pods(server, NODE)


async def test_nobody_there(account: Account) -> None:
    with pytest.raises(KubeletError, match=r"127\.0\.0\.1:1/pods"):
        await get_pods(KubeletServer(account.mounted, port=1), NODE)


async def test_no_answer(
    server: KubeletServer, https: PodsOverHttps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet, "_ANSWER_SECONDS", 0.0)
    with pytest.raises(KubeletError, match="no answer within 0 s"):
        await get_pods(server, NODE)


async def test_an_answer_without_end(
    server: KubeletServer, https: PodsOverHttps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet, "_MOST_BYTES", 1000)
    https.answer = b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 5000
    with pytest.raises(KubeletError, match="an answer of more than 1000 bytes"):
        await get_pods(server, NODE)

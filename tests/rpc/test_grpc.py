"""The gRPC client, against a server that does what a server may do."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.rpc import connection, containerd, cri, grpc
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.grpc import Channel, timeout_header
from accel.rpc.protobuf import decode, encode, field, message
from accel.unix import UnixStream
from tests.patience import scaled
from tests.rpc.server import Call, framed, listening, saying, serving

pytestmark = pytest.mark.anyio

METHOD = "/runtime.v1.RuntimeService/Version"
PATIENCE_SECONDS = scaled(30.0)


@message
class Text:
    text: str = field(1)
    raw: bytes = field(2)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(channel: Channel, text: str = "", *, seconds: float = PATIENCE_SECONDS) -> Text:
    return await channel.unary(METHOD, Text(text), Text, timeout=seconds)


async def refusal(channel: Channel, text: str = "") -> RpcError:
    with pytest.raises(RpcError) as caught:
        await ask(channel, text)
    assert caught.value.method == METHOD
    return caught.value


async def gather(channel: Channel, into: list[str]) -> None:
    async with aclosing(channel.stream(METHOD, Text(), Text)) as replies:
        async for reply in replies:
            into.append(reply.text)  # noqa: PERF401  what came before an error counts


# --- answers --------------------------------------------------------------------------------


async def test_a_call_and_its_reply() -> None:
    calls: list[Call] = []

    async def script(call: Call) -> None:
        calls.append(call)
        await call.reply(Text("hello"))

    async with serving(script) as path, Channel.open(path) as channel:
        reply = await channel.unary(
            METHOD, Text("hi"), Text, timeout=2.5, metadata={"containerd-namespace": "k8s.io"}
        )

    (call,) = calls
    assert reply == Text("hello")
    assert bytes(call.body) == framed(encode(Text("hi")))
    assert dict(call.headers) == {
        ":method": "POST",
        ":scheme": "http",
        ":path": METHOD,
        ":authority": "localhost",
        "grpc-timeout": "2500000u",
        "content-type": "application/grpc",
        "te": "trailers",
        "user-agent": "accel",
        "containerd-namespace": "k8s.io",
    }


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (0, "1u"),
        (1e-9, "1u"),
        (0.0000015, "2u"),
        (2, "2000000u"),
        (99.999999, "99999999u"),
        (100, "100000m"),
        (1e5, "100000S"),
        (1e9, "277778H"),
        (1e15, "99999999H"),
    ],
)
async def test_timeouts_as_grpc_writes_them(seconds: float, header: str) -> None:
    assert timeout_header(seconds) == header


async def test_calls_at_once_are_answered_in_any_order() -> None:
    arrived: list[Call] = []
    all_there = anyio.Event()

    async def script(call: Call) -> None:
        arrived.append(call)
        if len(arrived) == 50:
            all_there.set()
            for each in reversed(arrived):
                await each.reply(Text(bytes(each.body[7:]).decode()))

    replies: dict[str, str] = {}

    async def one(channel: Channel, text: str) -> None:
        replies[text] = (await ask(channel, text)).text

    async with (
        serving(script) as path,
        Channel.open(path) as channel,
        anyio.create_task_group() as tasks,
    ):
        for number in range(50):
            tasks.start_soon(one, channel, f"call {number}")

    assert all_there.is_set()
    assert replies == {text: text for text in replies}
    assert len(replies) == 50


@pytest.mark.parametrize("piece", [1, 5, 16000])
@pytest.mark.parametrize("padding", [None, 7])
async def test_a_message_may_span_data_frames(piece: int, padding: int | None) -> None:
    text = "x" * (300_000 if piece > 5 else 300)

    async def script(call: Call) -> None:
        await call.respond()
        await call.data(framed(encode(Text(text))), piece=piece, padding=padding)
        await call.status(0)

    async with serving(script) as path, Channel.open(path) as channel:
        assert (await ask(channel)).text == text


async def test_a_data_frame_may_hold_messages() -> None:
    async def script(call: Call) -> None:
        await call.respond()
        await call.data(b"".join(framed(encode(Text(str(n)))) for n in range(5)) + b"\0\0")
        await call.data(b"\0\0\0")
        await call.status(0)

    async with serving(script) as path, Channel.open(path) as channel:
        texts: list[str] = []
        await gather(channel, texts)

    assert texts == ["0", "1", "2", "3", "4", ""]


async def test_the_largest_message_goes_through() -> None:
    """It is larger than the window: what is under way must count as read."""
    raw = b"x" * (grpc.MAX_MESSAGE_BYTES - 5)

    async def script(call: Call) -> None:
        await call.reply(Text(raw=raw))

    async with serving(script) as path, Channel.open(path) as channel:
        assert len(encode(Text(raw=raw))) == grpc.MAX_MESSAGE_BYTES
        assert (await ask(channel)).raw == raw


# --- refusals -------------------------------------------------------------------------------


async def test_a_status_may_come_without_a_reply() -> None:
    async def script(call: Call) -> None:
        await call.refuse(5, "no such pod: na%C3%AFve 100%25 %zz")

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel)
        assert (error.code, error.detail) == (Code.NOT_FOUND, "no such pod: naïve 100% %zz")
        assert str(error) == "Version: NOT_FOUND: no such pod: naïve 100% %zz"
        assert await refusal(channel) is not error


async def test_a_status_may_come_after_replies() -> None:
    async def script(call: Call) -> None:
        await call.respond()
        await call.message(Text("one"))
        await call.status(8, "slow consumer")

    seen: list[str] = []
    async with serving(script) as path, Channel.open(path) as channel:
        assert (await refusal(channel)).code is Code.RESOURCE_EXHAUSTED
        with pytest.raises(RpcError, match="slow consumer"):
            await gather(channel, seen)

    assert seen == ["one"]


@pytest.mark.parametrize("status", ["99", "-1", "x", "1" * 5000])
async def test_an_unknown_status_is_a_failure(status: str) -> None:
    async def script(call: Call) -> None:
        call.server.h2.send_headers(
            call.stream_id,
            [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", status)],
            end_stream=True,
        )
        await call.server.flush()

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel)
        assert (error.code, error.detail) == (Code.UNKNOWN, "no reason given")


async def test_unimplemented_says_what_that_may_mean() -> None:
    async def script(call: Call) -> None:
        await call.refuse(12, "unknown method")

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel)
        assert error.code is Code.UNIMPLEMENTED
        assert error.remedy is not None
        assert "older" in error.remedy


@pytest.mark.parametrize(
    ("data", "code", "detail"),
    [
        (b"", Code.INTERNAL, "ended without a reply"),
        (framed(b"") + framed(b""), Code.INTERNAL, "more than one reply"),
        (framed(b"")[:3], Code.INTERNAL, "ended in the middle of a message"),
        (framed(b"abc")[:-1], Code.INTERNAL, "ended in the middle of a message"),
        (framed(b"abc", flag=1), Code.INTERNAL, "a compressed reply, which we did not ask for"),
        (
            b"\0\x01\0\0\x01",
            Code.RESOURCE_EXHAUSTED,
            "a reply of 16777217 bytes; 16777216 are taken",
        ),
        (b"\0\xff\xff\xff\xff", Code.RESOURCE_EXHAUSTED, "a reply of 4294967295 bytes; 16777216"),
    ],
)
async def test_replies_that_are_none(data: bytes, code: Code, detail: str) -> None:
    async def script(call: Call) -> None:
        if call.body[5:]:
            return await call.reply(Text("next"))
        await call.respond()
        await call.data(data)
        await call.status(0)

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel)
        assert error.code is code
        assert error.detail.startswith(detail)
        assert (await ask(channel, "next")).text == "next"


async def test_a_reply_that_is_no_message() -> None:
    async def script(call: Call) -> None:
        await call.respond()
        await call.data(framed(b"\x0a\x05abc"))
        await call.status(0)

    async with serving(script) as path, Channel.open(path) as channel:
        with pytest.raises(WireError, match=r"Text\.text: cut short") as caught:
            await ask(channel)

    assert f"in a reply to {METHOD}" in caught.value.__notes__


@pytest.mark.parametrize(
    ("headers", "code", "detail"),
    [
        ({":status": "503"}, Code.UNAVAILABLE, "HTTP status 503, and no status of gRPC"),
        ({":status": "404"}, Code.UNIMPLEMENTED, "HTTP status 404, and no status of gRPC"),
        ({":status": "302"}, Code.UNKNOWN, "HTTP status 302, and no status of gRPC"),
        ({"content-type": "text/html"}, Code.UNKNOWN, "not a gRPC server: it sends text/html"),
        ({}, Code.INTERNAL, "the server ended the call without a status"),
    ],
)
async def test_answers_that_are_not_grpc(headers: dict[str, str], code: Code, detail: str) -> None:
    async def script(call: Call) -> None:
        await call.respond(**headers)
        call.server.h2.send_data(call.stream_id, b"", end_stream=True)
        await call.server.flush()

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel)
        assert (error.code, error.detail) == (code, detail)


# --- windows --------------------------------------------------------------------------------


async def test_a_stream_that_nobody_reads_stops_no_other() -> None:
    """The server sends on it until the window is used up; all of it is there afterwards."""
    count, size = 100, 256 * 1024
    stalled = anyio.Event()

    async def script(call: Call) -> None:
        if call.method == "/unread":
            await call.respond()

            async def tell() -> None:
                await call.server.stalled.wait()
                stalled.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tell)
                for number in range(count):
                    await call.message(Text(str(number), raw=b"x" * size))
            await call.status(0)
        else:
            await call.reply(Text(raw=b"y" * size))

    async with (
        serving(script) as path,
        Channel.open(path) as channel,
        aclosing(channel.stream("/unread", Text(), Text)) as unread,
    ):
        first = await anext(unread)
        with anyio.fail_after(PATIENCE_SECONDS):
            await stalled.wait()
        for _ in range(100):  # more than the connection's window, too
            assert len((await ask(channel)).raw) == size
        rest = [int(reply.text) async for reply in unread]

    assert (first.text, rest) == ("0", list(range(1, count)))


async def test_a_large_request_waits_for_the_servers_window() -> None:
    async def script(call: Call) -> None:
        await call.reply(Text(str(len(call.body))))

    text = "x" * 2_000_000
    async with serving(script) as path, Channel.open(path) as channel:
        assert (await ask(channel, text)).text == str(len(framed(encode(Text(text)))))


async def test_a_server_may_answer_before_it_has_the_request() -> None:
    """It will not open its window for the rest."""

    async def script(call: Call) -> None:
        if call.method != METHOD:
            return await call.reply(Text("next"))
        await call.refuse(8, "too large")
        with anyio.fail_after(PATIENCE_SECONDS):
            await call.reset.wait()

    async with serving(script, early=True) as path, Channel.open(path) as channel:
        error = await refusal(channel, "x" * 2_000_000)
        assert (error.code, error.detail) == (Code.RESOURCE_EXHAUSTED, "too large")
        assert (await channel.unary("/next", Text(), Text, timeout=9)).text == "next"


async def test_a_request_that_is_too_large_is_not_sent() -> None:
    async def script(call: Call) -> None:
        await call.reply(Text("small"))

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel, "x" * grpc.MAX_MESSAGE_BYTES)
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert (await ask(channel)).text == "small"


async def test_a_server_may_want_few_calls_at_once() -> None:
    async def script(call: Call) -> None:
        await call.respond()
        await call.message(Text("first"))
        await call.reset.wait()

    limit = {SettingCodes.MAX_CONCURRENT_STREAMS: 1}
    async with (
        serving(script, settings=limit) as path,
        Channel.open(path) as channel,
        aclosing(channel.stream(METHOD, Text(), Text)) as replies,
    ):
        await anext(replies)
        error = await refusal(channel)

    assert error.code is Code.UNAVAILABLE
    assert "Max outbound streams" in error.detail


async def test_a_server_that_floods_and_does_not_read_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "_MAX_BACKLOG_BYTES", 100_000)
    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)

    async def serve(client: UnixStream) -> None:
        await client.send(b"\0\0\0\x04\0\0\0\0\0")  # SETTINGS
        while True:
            await client.send(ping * 1000)

    async with listening(serve) as path, Channel.open(path) as channel:
        error = await refusal(channel)

    assert error.detail == "the server does not read what it asks for"


# --- ends -----------------------------------------------------------------------------------


async def test_a_deadline_ends_the_call_alone() -> None:
    reset: list[ErrorCodes | int | None] = []
    told = anyio.Event()

    async def script(call: Call) -> None:
        if call.body[5:]:
            return await call.reply(Text("next"))
        await call.reset.wait()
        reset.append(call.reset_code)
        told.set()

    async with serving(script) as path, Channel.open(path) as channel:
        with pytest.raises(RpcError) as caught:
            await ask(channel, seconds=0.05)
        with anyio.fail_after(PATIENCE_SECONDS):
            await told.wait()
        assert (await ask(channel, "next")).text == "next"

    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert caught.value.detail == "no answer within 0.05 s"
    assert caught.value.remedy is not None
    assert reset == [ErrorCodes.CANCEL]


async def test_a_reset_after_the_deadline_is_the_deadline() -> None:
    call = grpc._Call(1, METHOD, deadline=anyio.current_time() - 0.1)
    call.reset(ErrorCodes.CANCEL)

    assert call.failure is not None
    assert call.failure.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_cancelled_call_is_reset(how: str) -> None:
    reset: list[ErrorCodes | int | None] = []
    begun, told = anyio.Event(), anyio.Event()

    async def script(call: Call) -> None:
        await call.respond()
        await call.message(Text("one"))
        begun.set()
        await call.reset.wait()
        reset.append(call.reset_code)
        told.set()

    async with serving(script) as path, Channel.open(path) as channel:
        if how == "close":
            async with aclosing(channel.stream(METHOD, Text(), Text)) as replies:
                await anext(replies)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, channel)
                await begun.wait()
                tasks.cancel_scope.cancel()
        with anyio.fail_after(PATIENCE_SECONDS):
            await told.wait()

    assert reset == [ErrorCodes.CANCEL]


async def test_a_reset_call_is_unavailable() -> None:
    async def script(call: Call) -> None:
        call.server.h2.reset_stream(call.stream_id, ErrorCodes.REFUSED_STREAM)
        await call.server.flush()

    async with serving(script) as path, Channel.open(path) as channel:
        error = await refusal(channel)

    assert error.code is Code.UNAVAILABLE
    assert error.detail == "the server reset the call (REFUSED_STREAM)"


async def test_goaway_ends_all_calls_but_those_answered() -> None:
    """As grpc-go's GracefulStop(): GOAWAY, then a PING, in the same bytes as an answer."""
    waiting: list[Call] = []

    async def script(call: Call) -> None:
        waiting.append(call)
        if len(waiting) < 2:
            return
        h2 = call.server.h2
        h2.send_headers(call.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        h2.send_data(call.stream_id, framed(encode(Text("answered"))))
        h2.send_headers(call.stream_id, [("grpc-status", "0")], end_stream=True)
        h2.ping(bytes(8))
        ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
        goaway = b"\0\0\x08\x07\0\0\0\0\0" + b"\x7f\xff\xff\xff" + bytes(4)
        await call.server.socket.send(h2.data_to_send() + goaway + ping)

    async with serving(script) as path, Channel.open(path) as channel:
        errors: list[RpcError] = []

        async def unanswered() -> None:
            errors.append(await refusal(channel))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(unanswered)
            while not channel._calls:
                await anyio.lowlevel.checkpoint()
            assert (await ask(channel)).text == "answered"
        errors.append(await refusal(channel))
        assert await channel.wait_lost() == "the server is going away (NO_ERROR)"

    assert {(error.code, error.detail) for error in errors} == {
        (Code.UNAVAILABLE, "the server is going away (NO_ERROR)")
    }


async def test_a_lost_connection_ends_all_calls() -> None:
    async def script(call: Call) -> None:
        await call.respond()
        await call.message(Text("one"))
        call.server.socket.shut_down()

    seen: list[str] = []
    async with serving(script) as path, Channel.open(path) as channel:
        with pytest.raises(RpcError) as caught:
            await gather(channel, seen)
        later = await refusal(channel)

    assert seen == ["one"]
    assert caught.value.code is later.code is Code.UNAVAILABLE
    assert caught.value.detail == later.detail == "the server closed the connection"


async def test_calls_end_when_the_channel_is_closed() -> None:
    begun = anyio.Event()
    errors: list[RpcError] = []

    async def script(call: Call) -> None:
        begun.set()
        await call.reset.wait()

    async def caller(channel: Channel) -> None:
        errors.append(await refusal(channel))

    async with serving(script) as path, anyio.create_task_group() as tasks:
        async with Channel.open(path) as channel:
            tasks.start_soon(caller, channel)
            await begun.wait()
        errors.append(await refusal(channel))

    assert [error.detail for error in errors] == ["closed on our side"] * 2


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    async def script(call: Call) -> None:
        await call.refuse(5, "nothing")

    async with serving(script) as path:
        with pytest.raises(RpcError, match="nothing"):
            async with Channel.open(path) as channel:
                await ask(channel)


async def test_a_channel_may_live_in_a_generator() -> None:
    async def script(call: Call) -> None:
        await call.reply(Text("one"))

    async def replies(path: str) -> AsyncGenerator[str, None]:
        async with Channel.open(path) as channel:
            while True:
                yield (await ask(channel)).text

    async with serving(script) as path, aclosing(replies(path)) as texts:
        assert [await anext(texts), await anext(texts)] == ["one", "one"]


async def test_nobody_there(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    for name, reason in (
        ("none", "No such file or directory"),
        ("dead", "Connection refused"),
        ("plain", "Connection refused"),
    ):
        with pytest.raises(RpcError, match=f"connect to .*{name}: {reason}") as caught:
            async with Channel.open(str(tmp_path / name)):
                pass
        assert caught.value.code is Code.UNAVAILABLE
        assert caught.value.remedy is not None


async def test_a_server_that_accepts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_QUEUE_SECONDS", 0.2)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)  # one may wait
        async with Channel.open(path):
            with pytest.raises(RpcError, match="Resource temporarily unavailable") as caught:
                async with Channel.open(path):
                    pass

            async def accept() -> None:
                await anyio.sleep(0.01)
                listener.accept()[0].close()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept)
                async with Channel.open(path):
                    pass

    assert caught.value.remedy == "the server accepts no connections: see whether it hangs"


# --- bytes ----------------------------------------------------------------------------------

# What containerd 1.6.20 (grpc-go) sent to this client for Version, for PodSandboxStatus of a
# sandbox that does not exist, and for Subscribe, of which one event came.
RECORDED = bytes.fromhex(
    # SETTINGS
    "000006040000000000000500004000"
    # SETTINGS
    "000000040100000000"
    # WINDOW_UPDATE
    "00000408000000000000000005"
    # PING
    "00000806000000000002041010090e0707"
    # HEADERS, stream 1
    "00000e010400000001885f8b1d75d0620d263d4c4d6564"
    # DATA, stream 1
    "00002800000000000100000000230a05302e312e30120a636f6e7461696e6572641a0a312e362e32307e6473"
    "3122027631"
    # HEADERS, stream 1
    "00001801050000000140889acac8b21234da8f013040899acac8b5254207317f00"
    # WINDOW_UPDATE
    "0000040800000000000000000b"
    # PING
    "00000806000000000002041010090e0707"
    # HEADERS, stream 3
    "00002f01050000000388c07f0001357f00a61d4a16cb0f6287212db2c2c8a789cb5289b3d2893a929aa91440"
    "ea9233f9b8a5474a929edaa4"
    # WINDOW_UPDATE
    "00000408000000000000000005"
    # PING
    "00000806000000000002041010090e0707"
    # HEADERS, stream 5
    "00000201040000000588c2"
    # DATA, stream 5
    "000051000000000005000000004c0a0c08b2c6b7d806108ad6c18d0212066b38732e696f1a0c2f7461736b73"
    "2f737461727422260a1b636f6e7461696e6572642e6576656e74732e5461736b537461727412070a02613110"
    "a71a"
)

VERSION = cri.VersionResponse("0.1.0", "containerd", "1.6.20~ds1", "v1")
STARTED = containerd.TaskStart("a1", 3367)


async def replay(*pieces: bytes) -> list[object]:
    """How the record's three calls end when the server sends these bytes, then closes."""
    results: list[object] = [None] * 3
    begun = anyio.Event()

    async def version(channel: Channel) -> object:
        return await channel.unary(
            METHOD, cri.VersionRequest(), cri.VersionResponse, timeout=PATIENCE_SECONDS
        )

    async def status(channel: Channel) -> object:
        request = cri.PodSandboxStatusRequest("nope")
        method, reply = cri.V1 + "PodSandboxStatus", cri.PodSandboxStatusResponse
        return await channel.unary(method, request, reply, timeout=PATIENCE_SECONDS)

    async def event(channel: Channel) -> object:
        request, reply = containerd.SubscribeRequest(), containerd.Envelope
        async with aclosing(channel.stream(containerd.SUBSCRIBE, request, reply)) as events:
            return decode(containerd.TaskStart, (await anext(events)).event.value)

    async def note(index: int, call: Awaitable[object]) -> None:
        try:
            results[index] = await call
        except (RpcError, WireError) as error:
            results[index] = error

    async with (
        saying(*pieces, after=begun) as path,
        Channel.open(path) as channel,
        anyio.create_task_group() as calls,
    ):
        for index, call in enumerate((version, status, event)):
            calls.start_soon(note, index, call(channel))
        while len(channel._calls) < 3:
            await anyio.lowlevel.checkpoint()
        begun.set()
    return results


def check_record(results: list[object], *, whole: bool) -> None:
    """Each call ended as recorded, or, when bytes are missing, for want of a connection."""
    for result, recorded in zip(results, (VERSION, Code.NOT_FOUND, STARTED), strict=True):
        code = result.code if isinstance(result, RpcError) else None
        assert recorded in (result, code) or (code is Code.UNAVAILABLE and not whole)


async def test_recorded_bytes() -> None:
    check_record(await replay(RECORDED), whole=True)


async def test_recorded_bytes_one_by_one() -> None:
    check_record(await replay(*(bytes([byte]) for byte in RECORDED)), whole=True)


async def test_recorded_bytes_cut_short_anywhere() -> None:
    for size in range(len(RECORDED)):
        check_record(await replay(RECORDED[:size]), whole=False)


@settings(max_examples=100)
@given(
    at=st.integers(0, len(RECORDED) - 1),
    damage=st.binary(min_size=1, max_size=12),
    insert=st.booleans(),
)
async def test_damaged_bytes_end_in_an_error_or_a_reply(
    at: int, damage: bytes, insert: bool
) -> None:
    """replay() lets nothing but WireError and RpcError pass for one."""
    rest = RECORDED[at if insert else at + len(damage) :]
    for result in await replay(RECORDED[:at] + damage + rest):
        assert result is not None


@settings(max_examples=50)
@given(st.binary(max_size=200))
async def test_garbage_ends_in_an_error(data: bytes) -> None:
    for result in await replay(data):
        assert isinstance(result, RpcError)
        assert result.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the server does not speak HTTP/2: a frame of"),
        (b"\xff\xff\xff", "the server closed the connection"),
        (b"\xff" * 9, "the server does not speak HTTP/2: a frame of 16777215 bytes"),
        (b"\0\0\1\4\0\0\0\0\0\0", "the server breaks HTTP/2: "),
    ],
)
async def test_other_servers_are_told_apart(data: bytes, detail: str) -> None:
    for result in await replay(data):
        assert isinstance(result, RpcError)
        assert result.detail.startswith(detail)

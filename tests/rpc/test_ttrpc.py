"""NRI's mux and ttrpc: frames however they are cut, and both sides calling."""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.errors import AccelError
from accel.rpc import nri, ttrpc
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.protobuf import decode, encode
from accel.rpc.ttrpc import (
    MAX_DATA_BYTES,
    PLUGIN_CONNECTION,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    RUNTIME_CONNECTION,
    Frame,
    Peer,
    Request,
    Response,
    Status,
    Trunk,
    handler,
    pack,
)
from accel.unix import UnixStream
from tests.patience import scaled
from tests.rpc.server import listening

PATIENCE_SECONDS = scaled(30.0)

# What the runtime sends first, by hand: the answer to RegisterPlugin, then Configure.
ANSWER = bytes.fromhex("00000002 0000000e" + "00000004 00000001 02 00" + "0a00 1200")
CONFIGURE = bytes.fromhex(
    "00000001 00000044"
     "0000003a 00000001 01 00"
     "0a1b" + b"nri.pkg.api.v1alpha1.Plugin".hex()
    + "1209" + b"Configure".hex()
    + "1a0c" + "120a" + b"containerd".hex()
    + "20ffff03"
)  # fmt: skip
FRAMES = [
    Frame(RUNTIME_CONNECTION, 1, RESPONSE, 0, bytes.fromhex("0a001200")),
    Frame(PLUGIN_CONNECTION, 1, REQUEST, 0, CONFIGURE[18:]),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- bytes ----------------------------------------------------------------------------------


def test_bytes_by_hand() -> None:
    assert list(Trunk().feed(ANSWER + CONFIGURE)) == FRAMES
    request = decode(Request, FRAMES[1].data)
    assert (request.service, request.method) == (nri.PLUGIN, "Configure")
    assert decode(nri.ConfigureRequest, request.payload).runtime_name == "containerd"
    assert request.timeout_nano == 65535
    assert decode(Response, FRAMES[0].data) == Response(Status())
    assert b"".join(map(pack, FRAMES)) == ANSWER + CONFIGURE


def test_bytes_one_by_one() -> None:
    trunk = Trunk()

    assert [frame for byte in ANSWER + CONFIGURE for frame in trunk.feed(bytes([byte]))] == FRAMES


def test_bytes_cut_short_are_fewer_frames() -> None:
    for size in range(len(ANSWER + CONFIGURE)):
        found = list(Trunk().feed((ANSWER + CONFIGURE)[:size]))
        assert found == FRAMES[: len(found)]
        assert len(found) == (size >= len(ANSWER))


frames = st.builds(
    Frame,
    connection=st.sampled_from([PLUGIN_CONNECTION, RUNTIME_CONNECTION]),
    stream=st.integers(0, 2**32 - 1),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    data=st.binary(max_size=50) | st.sampled_from([4086, 4087, 5000]).map(bytes),
)


def recut(frames: list[Frame], sizes: list[int]) -> bytes:
    """The frames in a mux that cuts where it likes, and mixes the connections."""
    left = {PLUGIN_CONNECTION: b"", RUNTIME_CONNECTION: b""}
    for frame in frames:
        head = struct.pack(">IIBB", len(frame.data), frame.stream, frame.type, frame.flags)
        left[frame.connection] += head + frame.data
    cut: list[bytes] = []
    while any(left.values()):
        for connection in left:
            size = sizes[len(cut) % len(sizes)]
            now, left[connection] = left[connection][:size], left[connection][size:]
            cut.append(struct.pack(">II", connection, len(now)) + now)
    return b"".join(cut)


@settings(max_examples=50)
@given(
    st.lists(frames, max_size=4),
    st.lists(st.integers(5, 5000), min_size=1, max_size=3),
    st.lists(st.integers(5, 5000), min_size=1, max_size=3),
)
def test_cuts_do_not_matter(sent: list[Frame], cuts: list[int], reads: list[int]) -> None:
    data = recut(sent, cuts)
    trunk = Trunk()
    found: list[Frame] = []
    while data:
        size = reads[len(found) % len(reads)]
        found += list(trunk.feed(data[:size]))
        data = data[size:]

    for connection in (PLUGIN_CONNECTION, RUNTIME_CONNECTION):
        assert [f for f in found if f.connection == connection] == [
            f for f in sent if f.connection == connection
        ]


def test_other_connections_are_passed_over() -> None:
    other = struct.pack(">II", 3, 4) + b"\xff\xff\xff\xff"

    assert list(Trunk().feed(other + ANSWER + other + CONFIGURE)) == FRAMES


@pytest.mark.parametrize("size", [0, 1, 4086, 4087, 10_000, MAX_DATA_BYTES])
def test_the_first_cut_fits_the_other_sides_buffer(size: int) -> None:
    """conn.Read() of the mux in Go takes a cut that is larger than the reader's buffer for an
    error: 4096 bytes, or what is missing of the frame when that is more."""
    frame = Frame(RUNTIME_CONNECTION, 1, REQUEST, 0, bytes(size))
    data = pack(frame)
    first = struct.unpack_from(">II", data)[1]

    assert first == min(4096, 10 + size)
    assert len(data) == 10 + size + 8 * (1 + (10 + size > 4096))
    assert list(Trunk().feed(data)) == [frame]


@pytest.mark.parametrize(
    ("data", "layer", "problem", "offset"),
    [
        ("00000001 0040000b", "mux", "a cut of 4194315 bytes", 0),
        ("00000001 ffffffff", "mux", "a cut of 4294967295 bytes", 0),
        ("48545450 2f312e31", "mux", "a cut of 791752241 bytes", 0),
        ("00000001 0000000a" + "00400001 00000001 01 00", "ttrpc", "a frame of 4194305", 18),
    ],
)
def test_lengths_are_limited(data: str, layer: str, problem: str, offset: int) -> None:
    with pytest.raises(WireError, match=problem) as caught:
        list(Trunk().feed(bytes.fromhex(data)))

    assert (caught.value.message, caught.value.offset) == (layer, offset)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_garbage_is_refused_or_kept(pieces: list[bytes]) -> None:
    trunk = Trunk()
    with suppress(WireError):
        for piece in pieces:
            list(trunk.feed(piece))


# --- calls ----------------------------------------------------------------------------------


class Runtime:
    """The other end: sends frames, and takes them one by one."""

    def __init__(self, stream: UnixStream) -> None:
        self.stream = stream
        self._trunk = Trunk()
        self._frames: list[Frame] = []

    async def receive(self) -> Frame:
        while not self._frames:
            self._frames += self._trunk.feed(await self.stream.receive())
        return self._frames.pop(0)

    async def request(self, stream: int, method: str, payload: bytes = b"", **more: int) -> None:
        data = encode(Request(nri.PLUGIN, method, payload))
        await self.stream.send(pack(Frame(PLUGIN_CONNECTION, stream, REQUEST, data=data, **more)))

    async def answer(self, frame: Frame, response: Response) -> None:
        data = encode(response)
        await self.stream.send(pack(Frame(RUNTIME_CONNECTION, frame.stream, RESPONSE, data=data)))

    async def response(self) -> tuple[int, Response]:
        frame = await self.receive()
        assert (frame.connection, frame.type) == (PLUGIN_CONNECTION, RESPONSE)
        return frame.stream, decode(Response, frame.data)


@asynccontextmanager
async def connected(**handlers: ttrpc.Handler) -> AsyncIterator[tuple[Runtime, Peer]]:
    """Both ends."""
    accepted: list[Runtime] = []
    there, done = anyio.Event(), anyio.Event()

    async def serve(stream: UnixStream) -> None:
        accepted.append(Runtime(stream))
        there.set()
        await done.wait()

    with anyio.fail_after(PATIENCE_SECONDS):
        async with listening(serve) as path, Peer.open(path, nri.PLUGIN, handlers) as peer:
            await there.wait()
            yield accepted[0], peer
            done.set()


async def call(peer: Peer, method: str = "RegisterPlugin") -> bytes:
    payload = encode(nri.RegisterPluginRequest("accel", "90"))
    return await peer.call(nri.RUNTIME, method, payload, timeout=PATIENCE_SECONDS)


@pytest.mark.anyio
async def test_we_call() -> None:
    replies = []

    async def one(peer: Peer, method: str) -> None:
        replies.append((method, await call(peer, method)))

    async with connected() as (runtime, peer), anyio.create_task_group() as tasks:
        tasks.start_soon(one, peer, "first")
        tasks.start_soon(one, peer, "second")
        asked = [await runtime.receive(), await runtime.receive()]
        for frame in reversed(asked):
            method = decode(Request, frame.data).method
            await runtime.answer(frame, Response(Status(), method.encode()))

    request = decode(Request, asked[0].data)
    assert [(f.connection, f.stream, f.type, f.flags) for f in asked] == [
        (RUNTIME_CONNECTION, 1, REQUEST, 0),
        (RUNTIME_CONNECTION, 3, REQUEST, 0),
    ]
    assert (request.service, request.timeout_nano) == (nri.RUNTIME, PATIENCE_SECONDS * 10**9)
    assert decode(nri.RegisterPluginRequest, request.payload).plugin_idx == "90"
    assert replies == [("second", b"second"), ("first", b"first")]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("response", "code"),
    [
        (Response(Status(Code.NOT_FOUND, "no")), Code.NOT_FOUND),
        (Response(Status(99, "no")), Code.UNKNOWN),
        (Response(Status(-1, "no")), Code.UNKNOWN),
    ],
)
async def test_a_refused_call(response: Response, code: Code) -> None:
    async with connected() as (runtime, peer), anyio.create_task_group() as tasks:

        async def refuse() -> None:
            await runtime.answer(await runtime.receive(), response)

        tasks.start_soon(refuse)
        with pytest.raises(RpcError, match=r"RegisterPlugin: .*: no") as caught:
            await call(peer)

    assert caught.value.code is code
    assert caught.value.method == f"{nri.RUNTIME}/RegisterPlugin"


@pytest.mark.anyio
async def test_an_answer_that_is_no_message_fails_its_call_alone() -> None:
    async with connected() as (runtime, peer), anyio.create_task_group() as tasks:

        async def answer() -> None:
            frame = await runtime.receive()
            bad = Frame(RUNTIME_CONNECTION, frame.stream, RESPONSE, data=b"\xff")
            await runtime.stream.send(pack(bad))
            await runtime.answer(await runtime.receive(), Response())

        tasks.start_soon(answer)
        with pytest.raises(WireError, match="Response: cut short"):
            await call(peer)
        assert await call(peer) == b""


@pytest.mark.anyio
async def test_a_call_that_is_answered_too_late() -> None:
    async with connected() as (runtime, peer), anyio.create_task_group() as tasks:
        with pytest.raises(RpcError, match=r"no answer within 0\.01 s") as caught:
            await peer.call(nri.RUNTIME, "UpdateContainers", b"", timeout=0.01)
        late = await runtime.receive()

        async def answer() -> None:
            await runtime.answer(late, Response(Status(), b"late"))
            await runtime.answer(await runtime.receive(), Response(Status(), b"in time"))

        tasks.start_soon(answer)
        assert await call(peer) == b"in time"

    assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.anyio
async def test_too_large_a_request_is_not_sent() -> None:
    async with connected() as (_, peer):
        with pytest.raises(RpcError, match="a request of") as caught:
            await peer.call(nri.RUNTIME, "x", bytes(MAX_DATA_BYTES), timeout=1)

    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.anyio
async def test_they_call_and_are_answered_in_order(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    async def configure(request: nri.ConfigureRequest) -> nri.ConfigureResponse:
        seen.append(request.runtime_name)
        return nri.ConfigureResponse(events=7)

    async def slow(payload: bytes) -> bytes:
        await anyio.sleep(0.01)
        return payload * 2

    async def fail(payload: bytes) -> bytes:
        raise RuntimeError("oh no")

    async def refuse(payload: bytes) -> bytes:
        raise RpcError(Code.ABORTED, "not now")

    async def give_up(payload: bytes) -> bytes:
        raise AccelError("foreseen")

    async def huge(payload: bytes) -> bytes:
        return bytes(MAX_DATA_BYTES)

    async with connected(
        Configure=handler(nri.ConfigureRequest, configure),
        Slow=slow,
        Fail=fail,
        Refuse=refuse,
        GiveUp=give_up,
        Huge=huge,
    ) as (runtime, _):
        with caplog.at_level(logging.WARNING):
            await runtime.request(1, "Slow", b"ab")
            await runtime.request(3, "Configure", encode(nri.ConfigureRequest("", "containerd")))
            await runtime.request(5, "Configure", b"\x0a\x09")
            await runtime.request(7, "Nothing")
            await runtime.request(9, "Fail")
            await runtime.request(11, "Refuse")
            await runtime.request(13, "GiveUp")
            await runtime.request(15, "Huge")
            await runtime.request(17, "Slow", flags=REMOTE_OPEN)
            await runtime.request(19, "Slow", b"last")
            answers = [await runtime.response() for _ in range(10)]

    assert [stream for stream, _ in answers] == list(range(1, 21, 2))
    assert answers[0][1] == Response(Status(), b"abab")
    assert decode(nri.ConfigureResponse, answers[1][1].payload).events == 7
    assert seen == ["containerd"]
    said = [(r.status.code, r.status.message) for _, r in answers[2:9] if r.status is not None]
    assert said == [
        (Code.UNKNOWN, "ConfigureRequest.config: cut short: 9 bytes announced, 0 there at byte 2"),
        (Code.UNIMPLEMENTED, f"{nri.PLUGIN}/Nothing is not implemented"),
        (Code.UNKNOWN, "oh no"),
        (Code.ABORTED, "not now"),
        (Code.UNKNOWN, "foreseen"),
        (Code.RESOURCE_EXHAUSTED, f"an answer of {MAX_DATA_BYTES + 7} bytes"),
        (Code.UNIMPLEMENTED, f"{nri.PLUGIN}/Slow is not implemented"),
    ]
    assert answers[9][1].payload == b"lastlast"
    logged = {record.message: bool(record.exc_info) for record in caplog.records}
    assert logged["Fail: oh no"]
    assert not logged["GiveUp: foreseen"]


@pytest.mark.anyio
async def test_another_service_is_not_ours() -> None:
    async def echo(payload: bytes) -> bytes:
        return payload

    async with connected(Echo=echo) as (runtime, _):
        data = encode(Request("grpc.health.v1.Health", "Echo"))
        await runtime.stream.send(pack(Frame(PLUGIN_CONNECTION, 1, REQUEST, data=data)))
        _, response = await runtime.response()

    assert response.status == Status(
        Code.UNIMPLEMENTED, "grpc.health.v1.Health/Echo is not implemented"
    )


@pytest.mark.anyio
async def test_a_handler_may_call_back() -> None:
    peers: list[Peer] = []

    async def back(payload: bytes) -> bytes:
        return await call(peers[0], "back")

    async with connected(Back=back) as (runtime, peer):
        peers.append(peer)
        await runtime.request(1, "Back")
        await runtime.answer(await runtime.receive(), Response(Status(), b"and forth"))
        assert (await runtime.response())[1].payload == b"and forth"


@pytest.mark.anyio
async def test_what_nobody_knows_is_ignored() -> None:
    async def echo(payload: bytes) -> bytes:
        return payload

    async with connected(Echo=echo) as (runtime, _):
        for frame in (
            Frame(PLUGIN_CONNECTION, 1, 3, data=b"stream data"),
            Frame(PLUGIN_CONNECTION, 1, 99),
            Frame(PLUGIN_CONNECTION, 1, RESPONSE),
            Frame(RUNTIME_CONNECTION, 1, REQUEST),
            Frame(RUNTIME_CONNECTION, 77, RESPONSE),
        ):
            await runtime.stream.send(pack(frame))
        await runtime.request(1, "Echo", b"still there")
        assert (await runtime.response())[1].payload == b"still there"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the server closed the connection"),
        (b"\0\0\0\1\xff\xff\xff\xff", "mux.length: a cut of 4294967295 bytes at byte 0"),
        (
            pack(Frame(PLUGIN_CONNECTION, 1, REQUEST, data=b"\x0a")),
            "Request.service: cut short at byte 1",
        ),
    ],
)
async def test_a_lost_connection_ends_calls(data: bytes, why: str) -> None:
    async with connected() as (runtime, peer), anyio.create_task_group() as tasks:

        async def hang_up() -> None:
            await runtime.receive()
            if data:
                await runtime.stream.send(data)
            else:
                runtime.stream.shut_down()

        tasks.start_soon(hang_up)
        for _ in range(2):
            with pytest.raises(RpcError) as caught:
                await call(peer)
            assert (caught.value.code, caught.value.detail) == (Code.UNAVAILABLE, why)
        assert await peer.wait_lost() == why


@pytest.mark.anyio
async def test_a_runtime_that_does_not_wait_for_answers_is_hung_up_on() -> None:
    async def never(payload: bytes) -> bytes:
        await anyio.sleep_forever()
        return b""

    async with connected(Never=never) as (runtime, peer):
        with suppress(anyio.BrokenResourceError):
            for number in range(300):
                await runtime.request(2 * number + 1, "Never")
        assert await peer.wait_lost() == "the runtime does not wait for answers"


@pytest.mark.anyio
async def test_nobody_there() -> None:
    with pytest.raises(RpcError, match=r"connect to /nowhere/nri\.sock: No such file") as caught:
        async with Peer.open("/nowhere/nri.sock", nri.PLUGIN, {}):
            pass

    assert caught.value.code is Code.UNAVAILABLE

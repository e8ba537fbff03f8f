"""What real runtimes sent (tests/runtime/record_nri.py), whole, byte by byte and cut off.

The processes they tell of are long gone; so the pods are, to a source that looks.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from accel.core.events import Listed
from accel.linux.cgroup import Mount
from accel.rpc import nri
from accel.rpc.protobuf import decode
from accel.rpc.ttrpc import (
    PLUGIN_CONNECTION,
    REQUEST,
    RUNTIME_CONNECTION,
    Frame,
    Request,
    Response,
    Status,
    Trunk,
)
from accel.sources.nri import NriSource
from tests.patience import scaled, stride

RECORDINGS = {
    path.stem: path.read_bytes()
    for path in Path(__file__).with_name("recordings").glob("nri-*.bin")
}

pytestmark = pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def frames(*pieces: bytes) -> list[Frame]:
    trunk = Trunk()
    return [frame for piece in pieces for frame in trunk.feed(piece)]


def requests(recording: bytes) -> list[Request]:
    return [
        decode(Request, frame.data)
        for frame in frames(recording)
        if (frame.connection, frame.type) == (PLUGIN_CONNECTION, REQUEST)
    ]


def test_cuts_do_not_matter(recording: bytes) -> None:
    whole = frames(recording)
    assert frames(*(recording[at : at + 1] for at in range(len(recording)))) == whole
    for end in range(0, len(recording), stride()):
        cut_off = frames(recording[:end])
        assert cut_off == whole[: len(cut_off)]


def test_what_it_says(recording: bytes) -> None:
    configure, synchronize, *events = requests(recording)
    configured = decode(nri.ConfigureRequest, configure.payload)
    assert configured.runtime_name == "containerd"
    assert configured.request_timeout in (0, 2000)  # 0: NRI 0.6 does not say

    listed = decode(nri.SynchronizeRequest, synchronize.payload)
    (pod,), (app,) = listed.pods, listed.containers
    assert (pod.name, pod.namespace) == ("cart-0", "shop")
    assert "sidecar.istio.io/status" in pod.annotations
    assert "network" in {space.type for space in pod.linux.namespaces}
    assert pod.pid > 0
    assert (app.name, app.state, app.pod_sandbox_id) == ("app", nri.ContainerState.RUNNING, pod.id)
    assert app.linux.cgroups_path.endswith(app.id)

    assert {event.method for event in events} == {"StateChange"}  # up to NRI 0.8
    told = [decode(nri.StateChangeEvent, event.payload) for event in events]
    assert [change.event for change in told] == [
        nri.Event.START_CONTAINER,
        nri.Event.POST_START_CONTAINER,
        nri.Event.STOP_POD_SANDBOX,
        nri.Event.REMOVE_POD_SANDBOX,
    ]
    starting = told[0].container
    assert starting is not None
    assert (starting.name, starting.state) == ("istio-proxy", nri.ContainerState.CREATED)
    assert starting.pid > 0
    assert {change.pod.id for change in told} == {pod.id}


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
async def test_every_call_is_answered_empty(recording: bytes, size: int, tmp_path: Path) -> None:
    pieces = [recording[at : at + size] for at in range(0, len(recording), size)]
    with replaying(tmp_path / "nri.sock", [pieces]) as (path, heard), anyio.fail_after(scaled(30)):
        source = NriSource(Mount(tmp_path), socket=str(path))
        async with aclosing(source.events()) as events:
            assert await anext(events) == Listed(())
            with anyio.move_on_after(scaled(30)):
                await anyio.to_thread.run_sync(heard.wait)
    answers = [decode(Response, frame.data) for frame in heard.answers]
    assert len(answers) == len(requests(recording))
    assert all(answer.status == Status() for answer in answers)
    assert {answer.payload for answer in answers[2:]} == {b""}


@pytest.mark.anyio
async def test_what_is_cut_off_is_begun_anew(recording: bytes, tmp_path: Path) -> None:
    """In the first message, in the list, and in an event."""
    cut_off = [[recording[:end]] for end in (5, len(recording) // 6, len(recording) // 3)]
    runs = [*cut_off, [recording]]
    with replaying(tmp_path / "nri.sock", runs) as (path, _), anyio.fail_after(scaled(30)):
        source = NriSource(Mount(tmp_path), socket=str(path))
        async with aclosing(source.events()) as events:
            assert await anext(events) == Listed(())


class Heard:
    """What a plugin answered on its last connection, when it has answered everything."""

    def __init__(self) -> None:
        self.answers: list[Frame] = []
        self._done = threading.Event()

    def take(self, answer: Frame, of: int) -> None:
        self.answers.append(answer)
        if len(self.answers) == of:
            self._done.set()

    def wait(self) -> None:
        self._done.wait(scaled(30))


@contextmanager
def replaying(path: Path, runs: list[list[bytes]]) -> Iterator[tuple[Path, Heard]]:
    """A runtime that says the pieces of one run on each connection, whatever is answered; the
    last connection stays."""
    heard = Heard()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                serve_all()

        def serve_all() -> None:
            for pieces in runs:
                with listener.accept()[0] as connection:
                    trunk = Trunk()
                    while not any(
                        frame.connection == RUNTIME_CONNECTION
                        for frame in trunk.feed(connection.recv(1 << 16))
                    ):
                        pass
                    for piece in pieces:
                        connection.sendall(piece)
                    if pieces is runs[-1]:
                        calls = len(requests(b"".join(pieces)))
                        while data := connection.recv(1 << 16):
                            for frame in trunk.feed(data):
                                heard.take(frame, calls)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield path, heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()

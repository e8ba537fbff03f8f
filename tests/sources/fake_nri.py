"""The runtime's side of NRI, as containerd's is: one plugin connection at a time is taken in,
events go to the plugins one after the other, and each answer is waited for.

On threads of its own, as a runtime is somebody else: what a test does to its own loop does
not slow it down.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from accel.rpc import nri
from accel.rpc.errors import Code
from accel.rpc.protobuf import decode, encode
from accel.rpc.ttrpc import (
    PLUGIN_CONNECTION,
    REQUEST,
    RESPONSE,
    RUNTIME_CONNECTION,
    Frame,
    Request,
    Response,
    Status,
    Trunk,
    pack,
)
from tests.patience import scaled

METHODS = {
    nri.Event.RUN_POD_SANDBOX: "RunPodSandbox",
    nri.Event.STOP_POD_SANDBOX: "StopPodSandbox",
    nri.Event.REMOVE_POD_SANDBOX: "RemovePodSandbox",
    nri.Event.CREATE_CONTAINER: "CreateContainer",
    nri.Event.START_CONTAINER: "StartContainer",
    nri.Event.POST_START_CONTAINER: "PostStartContainer",
    nri.Event.STOP_CONTAINER: "StopContainer",
    nri.Event.REMOVE_CONTAINER: "RemoveContainer",
}
# What NRI up to 0.8 calls by these names; all else goes by StateChange.
OLD_METHODS = {nri.Event.CREATE_CONTAINER, nri.Event.STOP_CONTAINER}


@dataclass(frozen=True)
class Answer:
    """What a plugin answered to one call; no response when it hung up or took too long."""

    method: str
    response: Response | None


class Plugin:
    """A connected plugin, as the runtime sees it."""

    def __init__(self, connection: socket.socket, cut: int | None) -> None:
        self.name = ""
        self.events: frozenset[nri.Event] = frozenset()
        self.closed = threading.Event()
        self._connection = connection
        self._cut = cut
        self._stream = 1
        self._responses: queue.Queue[Frame | None] = queue.Queue()
        self._registered: queue.Queue[nri.RegisterPluginRequest | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def call(self, method: str, message: object, timeout: float) -> Response | None:
        """As ttrpc's client; None when the plugin is of no use any more."""
        request = encode(
            Request(nri.PLUGIN, method, encode(message), timeout_nano=int(timeout * 1e9))
        )
        stream, self._stream = self._stream, self._stream + 2
        self.send(pack(Frame(PLUGIN_CONNECTION, stream, REQUEST, data=request)))
        try:
            frame = self._responses.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return None
        if frame is None:
            return None
        assert frame.stream == stream
        return decode(Response, frame.data)

    def send(self, data: bytes) -> None:
        size = self._cut or len(data)
        with contextlib.suppress(OSError):
            for start in range(0, len(data), size):
                self._connection.sendall(data[start : start + size])

    def registration(self, refusal: str) -> nri.RegisterPluginRequest | None:
        """Wait for it, and answer."""
        request = self._registered.get(timeout=scaled(10))
        if request is not None:
            status = Status(Code.UNKNOWN, refusal) if refusal else Status()
            data = encode(Response(status, b""))
            self.send(pack(Frame(RUNTIME_CONNECTION, 1, RESPONSE, data=data)))
        return request

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._connection.close()

    def _read(self) -> None:
        trunk = Trunk()
        with contextlib.suppress(OSError):
            while data := self._connection.recv(1 << 16):
                for frame in trunk.feed(data):
                    if frame.connection == PLUGIN_CONNECTION:
                        assert frame.type == RESPONSE
                        self._responses.put(frame)
                    else:
                        request = decode(Request, frame.data)
                        assert (request.service, request.method) == (nri.RUNTIME, "RegisterPlugin")
                        self._registered.put(decode(nri.RegisterPluginRequest, request.payload))
        self.closed.set()
        self._responses.put(None)
        self._registered.put(None)


@dataclass
class FakeRuntime:
    """A runtime that has NRI.

    Attributes:
        path: Of its socket.
        new: Each event is a method of its own, as after NRI 0.8.
        part: How many pods or containers go in one message of a list.
        cut: Bytes are written in pieces of so many.
        refusal: What every plugin's registration is answered.
        request_timeout: Seconds.
        answers: Of all plugins, in order.
    """

    path: Path
    new: bool = True
    part: int = 1000
    cut: int | None = None
    refusal: str = ""
    request_timeout: float = field(default_factory=lambda: scaled(10))
    pods: dict[str, nri.PodSandbox] = field(default_factory=dict)
    containers: dict[str, nri.Container] = field(default_factory=dict)
    plugins: list[Plugin] = field(default_factory=list)  # see connected()
    answers: list[Answer] = field(default_factory=list)
    registrations: list[nri.RegisterPluginRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runtime")
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._accepted: list[Plugin] = []
        self.listen()

    # --- its life ---

    def listen(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path.unlink(missing_ok=True)
        listener.bind(str(self.path))
        listener.listen()
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,))
        self._accepting.start()

    def go_away(self) -> None:
        """As for a restart: what runs goes on, connections and socket do not."""
        assert self._listener is not None
        assert self._accepting is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self._listener = None
        self.path.unlink(missing_ok=True)
        for plugin in self._accepted:
            plugin.close()
        self.plugins.clear()
        self._accepted.clear()

    def close(self) -> None:
        self._work.shutdown()
        if self._listener is not None:
            self.go_away()

    # --- what it does ---

    def connected(self) -> tuple[Plugin, ...]:
        """The plugins it has, one that it has listed to included."""
        with self._lock:
            return tuple(self.plugins)

    def start(self, pod: nri.PodSandbox, container: nri.Container) -> Future[list[Answer]]:
        """Start a container, made before or not; the answers to its events."""

        def run() -> list[Answer]:
            with self._lock:
                self.pods[pod.id] = pod
                created = replace(container, state=nri.ContainerState.CREATED)
                self.containers[container.id] = created
                told = self._tell(nri.Event.START_CONTAINER, pod, created)
                running = replace(container, state=nri.ContainerState.RUNNING)
                self.containers[container.id] = running
                return told + self._tell(nri.Event.POST_START_CONTAINER, pod, running)

        return self._work.submit(run)

    def stop_container(self, container_id: str) -> Future[list[Answer]]:
        def run() -> list[Answer]:
            with self._lock:
                container = self.containers[container_id]
                stopped = replace(container, state=nri.ContainerState.STOPPED)
                self.containers[container_id] = stopped
                pod = self.pods[container.pod_sandbox_id]
                return self._tell(nri.Event.STOP_CONTAINER, pod, stopped)

        return self._work.submit(run)

    def stop(self, sandbox_id: str, *, remove: bool = False) -> Future[list[Answer]]:
        """Stop a sandbox, and perhaps remove it."""

        def run() -> list[Answer]:
            with self._lock:
                pod = self.pods[sandbox_id]
                told = self._tell(nri.Event.STOP_POD_SANDBOX, pod)
                if remove:
                    told += self._tell(nri.Event.REMOVE_POD_SANDBOX, pod)
                    del self.pods[sandbox_id]
                return told

        return self._work.submit(run)

    def call(self, method: str, message: object) -> Future[list[Answer]]:
        """Call every plugin by a method, asked for or not."""

        def run() -> list[Answer]:
            with self._lock:
                return self._call(method, message, lambda plugin: True)

        return self._work.submit(run)

    def is_dialled(self) -> bool:
        """Whether anybody is, or is about to be, told of events.  Waits for nobody."""
        return any(not plugin.closed.is_set() for plugin in tuple(self._accepted))

    def send(self, data: bytes) -> None:
        """Have every plugin read this."""
        for plugin in self.connected():
            plugin.send(data)

    def _tell(
        self, event: nri.Event, pod: nri.PodSandbox, container: nri.Container | None = None
    ) -> list[Answer]:
        message: object
        if self.new or event in OLD_METHODS:
            method = METHODS[event]
            message = nri.PodEvent(pod) if container is None else nri.ContainerEvent(pod, container)
        else:
            method, message = "StateChange", nri.StateChangeEvent(event, pod, container)
        return self._call(method, message, lambda plugin: event in plugin.events)

    def _call(self, method: str, message: object, to: Callable[[Plugin], bool]) -> list[Answer]:
        answers = []
        for plugin in tuple(self.plugins):
            if to(plugin):
                response = plugin.call(method, message, self.request_timeout)
                answers.append(Answer(method, response))
                if response is None:
                    self.plugins.remove(plugin)
        self.answers += answers
        return answers

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                plugin = Plugin(connection, self.cut)
                self._accepted.append(plugin)
                if self._configure(plugin):
                    with self._lock:
                        if self._synchronize(plugin):
                            self.plugins.append(plugin)

    def _configure(self, plugin: Plugin) -> bool:
        registration = plugin.registration(self.refusal)
        if registration is None or self.refusal:
            return False
        self.registrations.append(registration)
        answer = plugin.call(
            "Configure",
            nri.ConfigureRequest(
                runtime_name="fake",
                runtime_version="v1",
                registration_timeout=5000,
                request_timeout=int(self.request_timeout * 1000),
            ),
            self.request_timeout,
        )
        if answer is None:
            return False
        mask = decode(nri.ConfigureResponse, answer.payload).events
        plugin.events = frozenset(event for event in nri.Event if event and mask >> event - 1 & 1)
        return True

    def _synchronize(self, plugin: Plugin) -> bool:
        return all(
            (answer := plugin.call("Synchronize", part, self.request_timeout)) is not None
            and decode(nri.SynchronizeResponse, answer.payload).more == part.more
            for part in self._parts()
        )

    def _parts(self) -> Iterable[nri.SynchronizeRequest]:
        pods, containers = list(self.pods.values()), list(self.containers.values())
        while True:
            now, pods = pods[: self.part], pods[self.part :]
            inside, containers = containers[: self.part], containers[self.part :]
            more = bool(pods or containers)
            yield nri.SynchronizeRequest(tuple(now), tuple(inside), more)
            if not more:
                return


def sandbox(sandbox_id: str, *, pid: int, host_network: bool = False) -> nri.PodSandbox:
    """As one with Istio's sidecar looks."""
    spaces = [nri.LinuxNamespace(kind) for kind in ("pid", "ipc", "uts", "mount")]
    if not host_network:
        spaces.append(nri.LinuxNamespace("network", f"/var/run/netns/cni-{sandbox_id}"))
    return nri.PodSandbox(
        id=sandbox_id,
        name=f"web-{sandbox_id}",
        uid=f"uid-{sandbox_id}",
        namespace="shop",
        annotations={"sidecar.istio.io/status": "{}"},
        linux=nri.LinuxPodSandbox(namespaces=tuple(spaces)),
        pid=pid,
    )

"""A private instance of accel, run as people run it; pods with traffic for it to find.

instance = Instance(cgroup, bpffs, tmp_path / "run")
with instance.agent() as agent:
    instance.wait_for(pod)
    instance.facts("status")
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from accel.bpf import BpfError, Link, Map, Program
from accel.bpf.door import syscall, uapi
from accel.demo.container import Container
from accel.demo.process import Process
from accel.demo.testbed import Pod, Testbed
from accel.linux import cgroup as cgroups
from tests.patience import scaled

T = TypeVar("T")

PATIENCE_SECONDS = scaled(30.0)

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def assert_refused(self, *parts: str) -> None:
        """One line says what was tried, one what to do; nothing else, no traceback."""
        assert self.code == 1, self
        said, *rest = self.err.splitlines()
        assert said.startswith("accel: "), self.err
        assert len(rest) == 1, self.err
        assert rest[0].startswith("  try: "), self.err
        for part in parts:
            assert part in self.err, self.err


def accel(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    package: Path = PROJECT,
) -> Answer:
    """Run one command to its end.

    Args:
        arguments: Of `accel`.
        env: Beside the environment, which is kept free of accel's own variables.
        before: A command that runs the rest, as setpriv does.
        package: Directory with the package to run, if not this one.
    """
    done = subprocess.run(
        [*before, sys.executable, "-m", "accel", *arguments],
        capture_output=True,
        text=True,
        timeout=scaled(60),
        check=False,
        env=environment(env),
        cwd=package,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would change the settings or the width of tables."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("ACCEL_") and k != "COLUMNS"}
    return ours | dict(more or {})


@dataclass(frozen=True)
class Instance:
    """Where one agent works; it shares nothing with another."""

    cgroup: Path
    bpffs: Path
    run_dir: Path

    @property
    def pins(self) -> Path:
        return self.bpffs / "accel"

    @property
    def place(self) -> tuple[str, ...]:
        return ("--bpffs", str(self.pins), "--run-dir", str(self.run_dir))

    def accel(self, verb: str, *arguments: str, **how: Any) -> Answer:
        return accel(verb, *arguments, *self.place, **how)

    def facts(self, verb: str, *arguments: str) -> Any:
        """What a verb says as JSON."""
        answer = self.accel(verb, *arguments, "--json")
        assert answer.code == 0, answer
        return answer.json

    def directions(self) -> set[tuple[str, str]]:
        """(direction, state) of all connections."""
        return {
            (way, direction["state"])
            for connection in self.facts("connections")["connections"]
            for way, direction in connection["directions"].items()
        }

    def health(self) -> str:
        answer = self.accel("status", "--json")
        health: str = answer.json["health"]
        assert (answer.code == 0) == (health == "accelerating")
        return health

    @contextmanager
    def agent(
        self, *arguments: str, before: Sequence[str] = (), package: Path = PROJECT
    ) -> Iterator[Agent]:
        """Run the agent until it is stopped, at the latest at the end of the context."""
        log = self.run_dir.with_suffix(".log")
        with log.open("ab") as err:
            start = log.stat().st_size
            popen = subprocess.Popen(
                [
                    *(*before, sys.executable, "-m", "accel", "run"),
                    *("--source", "processes", "--cgroup", str(self.cgroup)),
                    *(*self.place, *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stderr=err,
                env=environment(),
                cwd=package,
            )
        agent = Agent(popen, log, start)
        try:
            yield agent
        finally:
            agent.end(signal.SIGTERM)

    def wait_for(self, *pods: Pod) -> None:
        """Until the agent accelerates these pods and no others."""
        wanted = {pod.netns.inode for pod in pods}
        wait_until(lambda: self.accelerated() == wanted, lambda: self.accel("status"))

    def accelerated(self) -> set[int]:
        answer = self.accel("status", "--json")
        if answer.code != 0:
            return set()
        return {pod["netns"] for pod in answer.json["pods"] if pod["accelerated"]}

    def kernel_objects(self) -> set[tuple[str, int]]:
        """Ids of all that is pinned."""
        found = set()
        for path in self.pins.glob("*/*"):
            if path.name in {"link", "guard"}:
                with Link.from_pin(path) as link:
                    found.add(("link", link.info().id))
            elif path.name.startswith("accel_"):
                with Program.from_pin(path) as program:
                    found.add(("program", program.info().id))
            else:
                with Map.from_pin(path) as held:
                    found.add(("map", held.info().id))
        return found

    def assert_untouched(self) -> None:
        """Nothing is pinned, and no program is attached to the cgroup."""
        assert list(self.pins.glob("*")) == []
        assert attached_to(self.cgroup) == []


def attached_to(cgroup: Path) -> list[int]:
    """Ids of the links on a cgroup."""
    inode = cgroup.stat().st_ino
    found = []
    for number in _ids(uapi.LinkGetNextId):
        with suppress(BpfError), syscall.get_fd_by_id(uapi.LinkGetFdById, number, "look") as fd:
            if Link(fd, "").info().cgroup_id == inode:
                found.append(number)
    return found


def alive(objects: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of them that the kernel still has."""
    return objects & {(kind, number) for kind, ids in _KINDS.items() for number in _ids(ids)}


_NextId = type[uapi.MapGetNextId | uapi.ProgGetNextId | uapi.LinkGetNextId]
_KINDS: dict[str, _NextId] = {
    "map": uapi.MapGetNextId,
    "program": uapi.ProgGetNextId,
    "link": uapi.LinkGetNextId,
}


def _ids(kind: _NextId) -> Iterator[int]:
    number: int | None = 0
    while (number := syscall.get_next_id(kind, number or 0, "list ids")) is not None:
        yield number


def wait_until(ready: Callable[[], bool], describe: Callable[[], object] = lambda: "") -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < give_up, describe()
        time.sleep(0.02)


class Agent:
    """A running `accel run`."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, start: int) -> None:
        self._popen = popen
        self._log = log
        self._start = start

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_bytes()[self._start :].decode()

    def end(self, number: signal.Signals) -> int:
        """Send a signal, unless it ended before; the exit code."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)
        return self._popen.wait(PATIENCE_SECONDS)

    def wait(self) -> int:
        return self._popen.wait(PATIENCE_SECONDS)


class Mesh:
    """Pods whose sidecars only look like some: /bin/sleep under the name of a proxy."""

    def __init__(self, bed: Testbed, directory: Path) -> None:
        self._bed = bed
        self._envoy = directory / "envoy"
        shutil.copy("/bin/sleep", self._envoy)

    def pod(self, name: str) -> Pod:
        """A pod without a sidecar."""
        return self._bed.pod(name)

    def meshed(self, name: str) -> Pod:
        """A pod with a sidecar."""
        pod = self.pod(name)
        self._bed.start(self.sidecar(pod))
        return pod

    @contextmanager
    def sidecar(self, pod: Pod) -> Iterator[Process]:
        with pod.sidecar.started((str(self._envoy), "1000")) as process:
            yield process


class Connections:
    """Connections of an app with its sidecar, both ends of them ours."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod
        self._stack = ExitStack()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self) -> None:
        """Add one."""
        keep = self._stack.enter_context
        with within(self._pod.sidecar, partial(socket.create_server, ("127.0.0.1", 0))) as listener:
            listener.settimeout(PATIENCE_SECONDS)
            connect = partial(socket.create_connection, listener.getsockname())
            app = keep(within(self._pod.app, connect))
            sidecar = keep(listener.accept()[0])
        for end in (app, sidecar):  # which makes them non-blocking, as a proxy's are
            end.settimeout(PATIENCE_SECONDS)
        self._pairs.append((app, sidecar))

    def exchange(self) -> None:
        """A message and its answer on each, and both right."""
        for number, (app, sidecar) in enumerate(self._pairs):
            question, answer = b"question %d" % number, b"answer %d" % number
            app.sendall(question)
            assert sidecar.recv(100) == question
            sidecar.sendall(answer)
            assert app.recv(100) == answer


def within(container: Container, make: Callable[[], T]) -> T:
    """Make a socket that belongs to a container; we ourselves only pass through."""
    path = cgroups.path_of(os.getpid())
    home = cgroups.find_mount().locate(path) if path else None
    assert home is not None
    _move_to(container.cgroup.path)
    try:
        return container.netns.call(make)
    finally:
        _move_to(home)


def _move_to(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))

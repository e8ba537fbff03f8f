"""Where a run takes place: two meshed pods with an agent, or, without privilege, right here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from accel import state
from accel.bpf import BpfError
from accel.core.plan import DropPod, PodEntry, SetPod
from accel.datapath.datapath import Datapath
from accel.datapath.errors import DatapathError
from accel.datapath.loading import open_running
from accel.demo.agent import BPFFS, bpffs_mounted
from accel.demo.container import Container
from accel.demo.enter import CAP_DAC_READ_SEARCH
from accel.demo.envoy import EnvoyOptions
from accel.demo.process import Process
from accel.demo.run import make_room
from accel.demo.testbed import Pod, Testbed
from tests.kernel.instance import Agent, Instance, alive
from tests.stress.table import CLIENT, FAR, KINDS, NEAR, SERVER
from tests.stress.worker import Addresses

PROJECT = Path(__file__).parents[2]
NEAR_PORT, FAR_PORT, SERVER_PORT = 15101, 15201, 15301

# Of an agent that meets an emulated machine at its busiest: no word on the kernel.
_TOO_SLOW = re.compile(r"self-test: not done after \d+ s")


class Broken(Exception):
    """The run cannot go on: a process ended by itself, or does not do what it should."""


def _command(job: str) -> tuple[str, ...]:
    # Without site: the virtual environment may lie where the worker's user cannot look.
    python = (sys.executable, "-S", "-B", "-m", "tests.stress.worker", job)
    return ("env", f"PYTHONPATH={PROJECT}", *python)


class Here:
    """Plain processes on the loopback of whoever runs this: tries the harness itself.

    Attributes:
        directory: For files; it goes with the place.
        kinds: Of workers.
        near, far, server: Where those of each kind listen.
    """

    kinds = (CLIENT, NEAR, FAR, SERVER)

    def __init__(self, workers: int) -> None:
        self.near, self.far, self.server = (
            Addresses("127.0.0.1", "::1", port) for port in _free_ports(3, workers)
        )
        self._files = tempfile.TemporaryDirectory(prefix="accel-stress-")
        self.directory = Path(self._files.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.cleanup()

    @contextmanager
    def started(self, kind: int, job: str) -> Iterator[Process]:
        """Run a worker for as long as the context lasts."""
        with tempfile.TemporaryFile() as log:
            popen = subprocess.Popen(
                _command(job),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
            process = Process(popen, KINDS[kind], log)
            try:
                yield process
            finally:
                process.stop()

    def sockets(self, port: int) -> str:
        """What `ss` says of the sockets with this port."""
        return subprocess.run(_ss(port), capture_output=True, text=True, check=False).stdout


def _free_ports(ranges: int, size: int) -> list[int]:
    """The first ports of ranges that nobody uses at this moment, in neither family."""
    found: list[int] = []
    for first in range(20000, 32000, size):
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + size):
                for address in ("127.0.0.1", "::1"):
                    family = socket.AF_INET6 if ":" in address else socket.AF_INET
                    stack.enter_context(socket.socket(family)).bind((address, port))
            found.append(first)
        if len(found) == ranges:
            return found
    raise RuntimeError(f"no {ranges} ranges of {size} free ports")


def _ss(port: int) -> tuple[str, ...]:
    return ("ss", "-tinpmHO", f"( sport = :{port} or dport = :{port} )")


class Mesh:
    """Two meshed pods in cgroups and network namespaces of their own, and their agent.

    It has what Here has.

    Args:
        envoy: Real Envoys are the sidecars, and packet rules lead to them; else workers are.
        trust: The agent trusts applications, whatever the kernel's era; None: no agent at all.
    """

    def __init__(self, workers: int, *, envoy: bool, trust: bool | None) -> None:
        self.has_agent = trust is not None
        self._trust = bool(trust)
        self._envoy = envoy
        self._agent: Agent | None = None
        self._agent_life = ExitStack()
        self._datapath: Datapath | None = None
        self._objects: set[tuple[str, int]] = set()
        self._strategy: dict[str, dict[str, state.PathState]] = {}
        with ExitStack() as undo:
            root, self.directory = make_room(undo, "accel-stress")
            self._root = root
            self._bed = undo.enter_context(Testbed(root, directory=self.directory))
            sidecar = EnvoyOptions(http=False) if envoy else None
            self.a, self.b = (self._bed.pod(name, sidecar=sidecar) for name in ("a", "b"))
            self._inodes = {pod.netns.inode for pod in (self.a, self.b)}
            self.kinds = (CLIENT, SERVER) if envoy else (CLIENT, NEAR, FAR, SERVER)
            self._lay_out()
            bpffs = self.directory / BPFFS
            undo.enter_context(bpffs_mounted(bpffs))
            self.instance = Instance(root, bpffs, self.directory / "run")
            undo.callback(self._let_go)
            if not envoy:
                self._mark_as_meshed()
            self._undo = undo.pop_all()

    def _lay_out(self) -> None:
        b = self.b
        if self._envoy:
            self.server = Addresses(b.ipv4, b.ipv6, SERVER_PORT)
            self.near = self.far = self.server
        else:
            self.near = Addresses("127.0.0.1", "::1", NEAR_PORT)
            self.far = Addresses(b.ipv4, b.ipv6, FAR_PORT)
            self.server = Addresses("127.0.0.1", "::1", SERVER_PORT)
        for pod in (self.a, self.b):
            # Thousands of connections a second to one port, each some time in TIME-WAIT.
            pod.netns.call(_widen_ports)

    def _mark_as_meshed(self) -> None:
        """The workers do not look like a proxy, but share the cgroup and uid of one."""
        envoy = self.directory / "envoy"
        shutil.copy("/bin/sleep", envoy)
        for pod in (self.a, self.b):
            self._bed.start(pod.sidecar.started((str(envoy), "1000000")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    # Workers

    def started(self, kind: int, job: str) -> AbstractContextManager[Process]:
        """See Here."""
        # The project may lie in a home that only root may read.
        container = replace(self._container(kind), capabilities=(CAP_DAC_READ_SEARCH,))
        return container.started(_command(job), name=KINDS[kind])

    def _container(self, kind: int) -> Container:
        return {
            CLIENT: self.a.app,
            NEAR: self.a.sidecar,
            FAR: self.b.sidecar,
            SERVER: self.b.app,
        }[kind]

    def sockets(self, port: int) -> str:
        """See Here."""
        return "".join(f"pod {pod.name}:\n{pod.netns.run(_ss(port))}" for pod in (self.a, self.b))

    # The agent

    @property
    def agent_runs(self) -> bool:
        return self._agent is not None

    @property
    def was_ready(self) -> bool:
        """Whether an agent has ever been."""
        return bool(self._strategy)

    def start_agent(self) -> None:
        trust = ("--trust-apps", "--force-trust") if self._trust else ()
        self._agent = self._agent_life.enter_context(self.instance.agent(*trust))

    def is_agent_ready(self) -> bool:
        """Whether the agent that was started last has both pods.

        Raises:
            Broken: It ended, or will never have them; with its log.
        """
        assert self._agent is not None, "no agent was started"
        if not self._agent.is_running:
            raise Broken(f"the agent ended: {self._agent.log}")
        told = state.read(self.instance.run_dir)
        if told is None or told.pid != self._agent.pid:
            return False
        if told.idle_reasons:
            if self.was_ready and all(map(_TOO_SLOW.match, told.idle_reasons)):
                self.kill_agent()  # it would look again by itself, but minutes later
                self.start_agent()
                return False
            raise Broken(f"the agent leaves this kernel alone: {'; '.join(told.idle_reasons)}")
        self._strategy = told.strategy
        ready = {pod.netns for pod in told.pods if pod.accelerated}
        if not ready >= self._inodes:
            return False
        self._objects |= self.instance.kernel_objects()
        return True

    def kill_agent(self) -> None:
        assert self._agent is not None, "no agent was started"
        self._agent.end(signal.SIGKILL)
        self._agent = None
        self._agent_life.close()
        # It may have died before it pinned what it loaded.
        with suppress(BpfError):
            self._objects |= self.instance.kernel_objects()

    @property
    def datapath(self) -> Datapath:
        """What the first agent pinned; the others adopt it."""
        if self._datapath is None:
            self._datapath = open_running(self.instance.pins)
        return self._datapath

    def is_accelerated(self, hop: str, way: str) -> bool:
        """Whether the agent means to, for pods as they are without any chaos."""
        return self._strategy[hop][way].accelerated

    def set_pod(self, pod: Pod, entry: PodEntry | None) -> None:
        """Change what holds for a pod behind the agent's back; None: it is no pod."""
        inode = pod.netns.inode
        self.datapath.apply([DropPod(inode) if entry is None else SetPod(inode, entry)])

    def connections_with(self, ports: set[int]) -> list[object]:
        """What `accel connections` tells of the connections with these ports."""
        try:
            told = self.instance.facts("connections")["connections"]
        except (AssertionError, DatapathError) as error:
            return [f"accel connections: {error}"]
        return [
            connection
            for connection in told
            for end in [connection["active"] or connection["passive"]]
            if ports & {int(end[side].rpartition(":")[2]) for side in ("local", "remote")}
        ]

    # The end

    def _let_go(self) -> None:
        if self._datapath is not None:
            self._datapath.close()
        self._agent_life.close()

    def left_behind(self) -> list[str]:
        """What of this place is still there; to be asked when it is closed."""
        left = [f"{kind} {number}" for kind, number in sorted(alive(self._objects))]
        if self._root.exists():
            left.append(f"cgroup {self._root}")
        if self.directory.exists():
            left.append(f"directory {self.directory}")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/net").st_ino in self._inodes:
                    left.append(f"process {pid} in a pod's network namespace")
        return left


def _widen_ports() -> None:
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("16384 65000")
    Path("/proc/sys/net/ipv4/tcp_tw_reuse").write_text("1")

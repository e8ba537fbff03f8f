"""The demonstration: two meshed pods, before and after, in a minute.

There are two pairs of pods.  Only one of them is in the cgroup the agent attaches to, so
plain TCP and accelerated connections live side by side and can be measured in turn; a
connection that was only paused would still be slower than one never touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accel.demo.agent import BPFFS, Agent, Connection, Verified, agent_started, unmount
from accel.demo.cgroup import Cgroup, remove
from accel.demo.envoy import EnvoyOptions
from accel.demo.errors import TestbedError
from accel.demo.interrupt import interrupted_once
from accel.demo.load import LoadClient, Sample
from accel.demo.measure import compare, interleave
from accel.demo.nginx import PORT, nginx_started
from accel.demo.options import DemoOptions
from accel.demo.report import DemoReport, summarize_hops
from accel.demo.testbed import Pod, Testbed
from accel.linux.cgroup import find_mount

Progress = Callable[[str, float], None]
"""Told what is being done, and the part of the whole that is over, 0 to 1."""

VERIFY_SECONDS = 2
WARM_UP_SECONDS = 1


@dataclass(frozen=True)
class Mesh:
    """A client pod and a server pod, and a load between them."""

    pods: tuple[Pod, Pod]
    load: LoadClient
    url: str

    def measure(self, connections: int, seconds: int) -> Sample:
        """One measurement, on new connections of the client."""
        return self.load.run(self.url, connections=connections, seconds=seconds)


def run_demo(options: DemoOptions, progress: Progress) -> DemoReport:
    """Build the pods, measure both pairs in turn, prove what happened, take all down.

    Blocks for about 2 * rounds * round_seconds and ten seconds more.  Has to run as root
    on the main thread.  Nothing is left behind, also when interrupted.

    Raises:
        AccelError: Something is missing on this machine, or failed; nothing is left.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM or SIGHUP.
    """
    if os.geteuid() != 0:
        raise TestbedError(
            "making network namespaces and loading BPF needs root",
            remedy="run it again with sudo",
        )
    with interrupted_once(), contextlib.ExitStack() as stack:
        progress("building two pairs of pods", 0.0)
        root, files = make_room(stack, "accel-demo")
        plain, accelerated = (
            _make_mesh(stack, root / side, files, options) for side in ("plain", "accelerated")
        )
        progress("starting the agent", 0.0)
        agent = stack.enter_context(
            agent_started(
                files,
                root / "accelerated",
                [pod.netns.inode for pod in accelerated.pods],
                trust_apps=options.trust_apps,
                force_trust=options.force_trust,
            )
        )
        return _compare(plain, accelerated, agent, options, progress)


def make_room(stack: contextlib.ExitStack, prefix: str) -> tuple[Path, Path]:
    """A cgroup and a directory; all else is made in them.

    Their removal is arranged before they are made, and takes everything inside along: an
    interrupt may come between the making of a thing and the arranging for its end.
    """
    name = f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}"
    files = Path(tempfile.gettempdir(), name)
    stack.callback(_remove_files, files)
    files.mkdir()
    files.chmod(0o755)  # the sidecars' user has to pass, whatever our umask
    cgroup = find_mount().point / name
    stack.callback(remove, cgroup)
    return Cgroup(cgroup).path, files


def _remove_files(directory: Path) -> None:
    unmount(directory / BPFFS)
    shutil.rmtree(directory, ignore_errors=True)


def _make_mesh(
    stack: contextlib.ExitStack, cgroup: Path, files: Path, options: DemoOptions
) -> Mesh:
    parent = stack.enter_context(Cgroup(cgroup))
    bed = stack.enter_context(Testbed(parent.path, directory=files))
    sidecar = EnvoyOptions(concurrency=options.concurrency)
    client = bed.pod("client", sidecar=sidecar)
    server = bed.pod("server", sidecar=sidecar)
    bed.start(nginx_started(server.app, server.directory("nginx")))
    load = LoadClient(client.app, client.directory("wrk"))
    return Mesh((client, server), load, f"http://{server.ipv4}:{PORT}/")


def _compare(
    plain: Mesh, accelerated: Mesh, agent: Agent, options: DemoOptions, progress: Progress
) -> DemoReport:
    clock = _Clock(options, progress)
    clock.begin("warming up")
    for mesh in (plain, accelerated):
        mesh.measure(options.connections, WARM_UP_SECONDS)
        clock.spend(WARM_UP_SECONDS)
    clock.begin("measuring in turn")
    pairs = interleave(
        options.rounds,
        partial(plain.measure, options.connections, options.round_seconds),
        partial(accelerated.measure, options.connections, options.round_seconds),
        lambda: clock.spend(options.round_seconds),
    )
    clock.begin("counting PSH segments")
    verified, connections = _observe(accelerated, agent, options.connections)
    clock.spend(VERIFY_SECONDS)
    return DemoReport(
        comparison=compare(pairs),
        hops=summarize_hops(connections, agent.strategy()),
        verified=verified,
        connections=options.connections,
        rounds=options.rounds,
    )


def _observe(mesh: Mesh, agent: Agent, connections: int) -> tuple[Verified, list[Connection]]:
    """Count segments, and see each connection's state, while a load is on."""
    with mesh.load.running(mesh.url, connections=connections):
        time.sleep(WARM_UP_SECONDS)
        return agent.verify(VERIFY_SECONDS), agent.connections()


class _Clock:
    """Turns seconds spent into the part of the whole that is over."""

    def __init__(self, options: DemoOptions, progress: Progress) -> None:
        measuring = 2 * options.rounds * options.round_seconds
        self._total = measuring + 2 * WARM_UP_SECONDS + VERIFY_SECONDS
        self._spent = 0.0
        self._doing = ""
        self._progress = progress

    def begin(self, doing: str) -> None:
        self._doing = doing
        self.spend(0)

    def spend(self, seconds: float) -> None:
        self._spent += seconds
        self._progress(self._doing, self._spent / self._total)

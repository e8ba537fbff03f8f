"""A private instance of the agent, run and asked through its own command line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from accel.demo.enter import Entry
from accel.demo.errors import TestbedError
from accel.demo.process import Process, started

T = TypeVar("T")

ACCEL = (sys.executable, "-m", "accel")
START_SECONDS = 60.0
ANSWER_SECONDS = 30.0
BPFFS = "bpf"


class Direction(msgspec.Struct):
    """One direction of one connection, as `accel connections --json` tells it."""

    state: str
    reason: str | None


class Connection(msgspec.Struct):
    """A connection between two containers, as `accel connections --json` tells it."""

    hop: str | None
    directions: dict[str, Direction]


class Strategy(msgspec.Struct):
    """What `accel status --json` says of one hop and direction."""

    accelerated: bool
    reason: str | None


class Verified(msgspec.Struct):
    """What `accel verify --json` counted."""

    psh_segments: int
    messages_redirected: int


class _Connections(msgspec.Struct):
    connections: list[Connection]


class _Pod(msgspec.Struct):
    netns: int


class _Status(msgspec.Struct):
    health: str
    idle_reasons: list[str]
    pods: list[_Pod]
    strategy: dict[str, dict[str, Strategy]]


class Idle(TestbedError):
    """The agent found this machine unfit, and leaves its traffic alone."""

    def __init__(self, reasons: Collection[str]) -> None:
        super().__init__(
            f"this machine cannot be accelerated: {'; '.join(reasons)}",
            remedy="see what `accel check` says of it",
        )


@dataclass(frozen=True)
class Agent:
    """A running agent that looks at one cgroup only."""

    bpffs: Path
    run_dir: Path

    def connections(self) -> list[Connection]:
        """The connections it knows at this moment."""
        return self._ask(_Connections, "connections").connections

    def strategy(self) -> dict[str, dict[str, Strategy]]:
        """What it means to accelerate, by hop and direction."""
        return self._ask(_Status, "status").strategy

    def verify(self, seconds: int) -> Verified:
        """Count PSH segments beside redirected messages for some seconds."""
        return self._ask(Verified, "verify", "--seconds", str(seconds))

    def accelerates(self, netns_inodes: Collection[int]) -> bool:
        """Whether it is at work and has all of these pods.

        Raises:
            Idle: It will never be, on this machine.
            TestbedError: It does not answer.
        """
        # Exit code 1 says that the health is not the best; the facts are told all the same.
        status = self._ask(_Status, "status", codes=(0, 1))
        if status.health == "idle":
            raise Idle(status.idle_reasons)
        known = {pod.netns for pod in status.pods}
        return status.health == "accelerating" and known.issuperset(netns_inodes)

    def _ask(self, kind: type[T], verb: str, *arguments: str, codes: Collection[int] = (0,)) -> T:
        argv = (*ACCEL, verb, *arguments, "--json", *self.place())
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                timeout=ANSWER_SECONDS,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise TestbedError(f"accel {verb} gave no answer: {error}") from error
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        if done.returncode not in codes:
            raise TestbedError(f"accel {verb} ended with status {done.returncode}: {words}")
        try:
            return msgspec.json.decode(done.stdout, type=kind)
        except msgspec.DecodeError as error:
            raise TestbedError(f"accel {verb} told no facts ({error}): {words}") from error

    def place(self) -> tuple[str, ...]:
        """The arguments that lead a command to this instance."""
        return ("--bpffs", str(self.bpffs), "--run-dir", str(self.run_dir))


@contextlib.contextmanager
def agent_started(
    directory: Path, cgroup: Path, pods: Collection[int], *, trust_apps: bool, force_trust: bool
) -> Iterator[Agent]:
    """Run an agent for one cgroup, until it has these pods, and for as long as the context.

    Args:
        directory: Empty; takes the agent's bpf file system and its run directory.
        cgroup: Sockets of this cgroup v2 directory and those below it are its business.
        pods: Inode numbers of the network namespaces it has to find.
        trust_apps: Redirect into applications too, where this kernel bears it.
        force_trust: And where it does not.

    Raises:
        Idle: It found the machine unfit.
        TestbedError: It ended, or did not find the pods; with its last words.
    """
    agent = Agent(directory / BPFFS, directory / "run")
    asked = {"--trust-apps": trust_apps, "--force-trust": force_trust}
    trust = [flag for flag, given in asked.items() if given]
    argv = (*ACCEL, "run", "--source", "processes", "--cgroup", str(cgroup), *trust)
    agent.run_dir.mkdir(mode=0o700)
    with (
        bpffs_mounted(agent.bpffs),
        started(_as_root_of_the_host(), (*argv, *agent.place()), name="accel run") as process,
    ):
        _wait_until_accelerating(process, agent, pods)
        yield agent


def _wait_until_accelerating(process: Process, agent: Agent, pods: Collection[int]) -> None:
    silence: TestbedError | None = None

    def ready() -> bool:
        nonlocal silence
        try:
            return agent.accelerates(pods)
        except Idle:
            raise
        except TestbedError as error:  # not yet, perhaps
            silence = error
            return False

    try:
        process.wait_until(
            ready, seconds=START_SECONDS, remedy="see its last words, and `accel check`"
        )
    except TestbedError as error:
        raise error from silence


@contextlib.contextmanager
def bpffs_mounted(path: Path) -> Iterator[None]:
    """A bpf file system of our own; what is pinned there goes with it."""
    path.mkdir()
    try:
        done = subprocess.run(
            ("mount", "-t", "bpf", "bpffs", str(path)), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise TestbedError(
                f"mount a bpf file system: {done.stderr.strip()}",
                remedy="run as root; the kernel needs CONFIG_BPF_SYSCALL",
            )
        yield
    finally:
        unmount(path)
        path.rmdir()


def unmount(path: Path) -> None:
    """Unmount what is mounted there, if anything."""
    if os.path.ismount(path):
        # Lazily: a command that was interrupted may still be in there.  A session of its
        # own: the terminal's next Ctrl-C is not for this.
        subprocess.run(("umount", "--lazy", str(path)), check=True, start_new_session=True)


def _as_root_of_the_host() -> Entry:
    return {
        "netns": None,
        "cgroup": None,
        "uid": 0,
        "gid": 0,
        "capabilities": [],
        "parent": os.getpid(),
    }

"""What the agent tells about itself: one JSON file in its run directory, replaced whole.

The counters and connections are not in it: they are in the kernel, for anyone to read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from accel.errors import LinuxError

_STATE = "agent.json"
_LOCK = "agent.lock"


class ContainerState(msgspec.Struct, frozen=True):
    cgroup_id: int
    role: str
    name: str


class PodState(msgspec.Struct, frozen=True):
    """A pod, as the agent treats it; notes say why it is treated so.

    Attributes:
        netns: 0 for one without a network namespace of its own.
        profile: Its mesh; empty without a proxy.
        uid: As Kubernetes gave it; empty without a runtime.
        since: When it began, RFC 3339; None when not known.
        hops: Hop -> direction -> whether it is accelerated; empty for a pod left alone.
    """

    name: str
    netns: int
    profile: str
    accelerated: bool
    trust_apps: bool
    containers: tuple[ContainerState, ...]
    addresses: tuple[str, ...]
    notes: tuple[str, ...]
    uid: str = ""
    since: str | None = None
    hops: dict[str, dict[str, bool]] = {}


class SourceState(msgspec.Struct, frozen=True):
    """One source of pods, or of what their annotations say.

    Attributes:
        listed: It has told the whole truth once, or nobody waits for that any more.
        drift: How many pods its later lists showed otherwise than its events had.
        error: What keeps it from telling more; None when nothing does.
    """

    listed: bool
    drift: int = 0
    error: str | None = None


class PathState(msgspec.Struct, frozen=True):
    """One direction of one hop, for pods that say nothing themselves."""

    accelerated: bool
    reason: str | None


class AgentState(msgspec.Struct, frozen=True):
    """The agent, last time it wrote.

    Attributes:
        cgroup: What is accelerated is below it; None for the root of a mount of its own.
        idle_reasons: Why nothing is accelerated on this node; empty when it is.
        strategy: Hop -> direction -> what happens.
        problems: What the kernel refused of the last changes.
        sources: By name.
    """

    pid: int
    version: str
    started_at: str
    source: str
    cgroup: str | None
    era: str
    idle_reasons: tuple[str, ...] = ()
    strategy: dict[str, dict[str, PathState]] = {}
    pods: tuple[PodState, ...] = ()
    problems: tuple[str, ...] = ()
    sources: dict[str, SourceState] = {}


def write(run_dir: Path, state: AgentState) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    temporary = run_dir / (_STATE + ".new")
    temporary.write_bytes(msgspec.json.encode(state))
    temporary.replace(run_dir / _STATE)


def read(run_dir: Path) -> AgentState | None:
    """What an agent wrote there last; None if none ever did.

    Raises:
        LinuxError: The file is not ours, or of another version.
    """
    path = run_dir / _STATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=AgentState)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise LinuxError(
            f"read {path}: {e.strerror}", remedy="run as root, or name the agent's --run-dir"
        ) from e
    except msgspec.DecodeError as e:
        raise LinuxError(
            f"read {path}: {e}", remedy="restart the agent: another version may have written it"
        ) from e


def forget(run_dir: Path) -> None:
    """Delete the file: what it tells of is gone."""
    with suppress(FileNotFoundError):
        (run_dir / _STATE).unlink()


@contextmanager
def only_agent(run_dir: Path) -> Iterator[None]:
    """Be the one agent of this run directory.  The lock ends with the process.

    Raises:
        LinuxError: Another agent runs, or the directory cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(run_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise LinuxError(
            f"use run directory {run_dir}: {e.strerror}",
            remedy="run as root, or name a writable --run-dir",
        ) from e
    try:
        if not _lock(fd):
            raise LinuxError(
                f"start the agent: another one runs in {run_dir}",
                remedy="stop it first, or give this one its own --run-dir, --bpffs and --cgroup",
            )
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        os.close(fd)


def agent_pid(run_dir: Path) -> int | None:
    """Pid of the agent that holds that directory; 0 while it has only just come; None
    when none runs.

    Raises:
        LinuxError: We may not look.
    """
    try:
        fd = os.open(run_dir / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise LinuxError(
            f"read {run_dir / _LOCK}: {e.strerror}",
            remedy="run as root, or name the agent's --run-dir",
        ) from e
    try:
        return int(os.pread(fd, 20, 0) or 0) if _is_locked(fd) else None
    finally:
        os.close(fd)


# An open file description's lock, fcntl(2), unlike one of flock(2), can be asked about
# without taking it: a question must not keep an agent from starting.
_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


def _lock(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
    except OSError as e:
        if e.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def _is_locked(fd: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_RDLCK))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)

"""What this kernel does with our programs: found by doing it, in private.

Runs as a child process, because it moves itself into a network namespace and
cgroups of its own.  Whatever happens to the child, the parent removes the
cgroups; the kernel frees the rest with the process.

    python -m accel.datapath.selftest CGROUP     prints one JSON object
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec

from accel import bpf
from accel.core.model import Role
from accel.core.plan import ContainerEntry, PodEntry, SetContainer, SetPod
from accel.core.strategy import Era, era_of
from accel.datapath.datapath import Datapath
from accel.datapath.errors import DatapathError
from accel.datapath.generation import Generation
from accel.datapath.layout import Hop, Way
from accel.datapath.loading import Constants, load
from accel.errors import AccelError

_CLONE_NEWNET = 0x40000000
_SO_MEMINFO = 55  # include/uapi/asm-generic/socket.h; answers 9 words, the first is rmem_alloc
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# Not in Python's socket module: asm-generic/socket.h, linux/tcp.h
_SO_ZEROCOPY, _TCP_ULP = 60, 31

_CGROUP = "accel-selftest-"  # and the agent's pid
_DEADLINE_SECONDS = 60.0
_WAIT_SECONDS = 5.0

# A sender to a reader that sleeps must be stopped by then; plain TCP stops near 4 MB.
_MOST_QUEUED_BYTES = 16 << 20


class Check(msgspec.Struct, frozen=True):
    """One thing tried: its name, whether it went right, and what was seen."""

    name: str
    passed: bool
    detail: str


class Facts(msgspec.Struct, frozen=True):
    """What the self-test found.

    Attributes:
        fionread: What the ioctl said of 50 bytes redirected, 50 by TCP, 50 of each.
        charges_rmem: Redirected bytes count in the receiver's sk_rmem_alloc.
        one_queue: With accel_pass an app reads redirected bytes and TCP's from one queue,
            in order, and FIONREAD counts both: it can be trusted.
        error: Why the test could not run to its end, or None.
        remedy: What to do about that, where known.
    """

    era: Era
    fionread: tuple[int, int, int]
    charges_rmem: bool
    one_queue: bool
    checks: tuple[Check, ...]
    error: str | None = None
    remedy: str | None = None

    @property
    def usable(self) -> bool:
        return self.error is None and all(check.passed for check in self.checks)


def run(cgroup: Path) -> Facts:
    """Test in a private child cgroup of `cgroup`.  Takes about a second.

    Raises:
        DatapathError: The cgroup could not be made, or the child said nothing.
    """
    _remove_left_behind(cgroup)
    private = cgroup / f"{_CGROUP}{os.getpid()}"
    with _cgroups(private):
        try:
            child = subprocess.run(
                [sys.executable, "-m", "accel.datapath.selftest", str(private)],
                capture_output=True,
                timeout=_DEADLINE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            error = f"not done after {_DEADLINE_SECONDS:g} s"
            return _unfinished(error, "look whether this node is overloaded")
    try:
        return msgspec.json.decode(child.stdout, type=Facts)
    except msgspec.DecodeError as e:
        said = child.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise DatapathError(
            f"self-test: exit status {child.returncode}: {' / '.join(said) or 'no answer'}"
        ) from e


def _remove_left_behind(cgroup: Path) -> None:
    """The cgroups of agents that were killed in their self-test."""
    for path in cgroup.glob(f"{_CGROUP}[0-9]*"):
        owner = path.name.removeprefix(_CGROUP)
        if owner == str(os.getpid()) or not Path("/proc", owner).exists():
            _remove(path)


def _tree(private: Path) -> list[Path]:
    return [private, private / "app", private / "sidecar"]


def _remove(private: Path) -> None:
    for path in reversed(_tree(private)):
        with contextlib.suppress(OSError):  # not there, or its process is about to end
            path.rmdir()


@contextlib.contextmanager
def _cgroups(private: Path) -> Iterator[None]:
    try:
        for path in _tree(private):
            path.mkdir()
    except OSError as e:
        raise DatapathError(
            f"make cgroup {private}: {e.strerror}",
            remedy="run as root, with the cgroup v2 file system writable",
        ) from e
    try:
        yield
    finally:
        _remove(private)


class _Bench:
    """A pod of our own, with us as both its app and its sidecar, and the programs loaded."""

    def __init__(self, cgroup: Path, constants: Constants) -> None:
        self._cgroup = cgroup
        self._stack = ExitStack()
        with ExitStack() as stack:
            generation = Generation.ours(Path(), 1024)
            loaded = stack.enter_context(load(generation, constants))
            for hook in ("accel_guard", "accel_sockops"):
                stack.enter_context(bpf.attach_cgroup(loaded.programs[hook], cgroup))
            self.datapath = stack.enter_context(
                Datapath(generation, loaded.maps, loaded.programs["accel_look"])
            )
            self._declare_pod()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _declare_pod(self) -> None:
        netns = os.stat("/proc/self/ns/net").st_ino
        actions = [
            SetContainer((self._cgroup / name).stat().st_ino, ContainerEntry(netns, role))
            for name, role in (("app", Role.APP), ("sidecar", Role.SIDECAR))
        ]
        pod = SetPod(netns, PodEntry(trust_apps=True, enrol_apps=True))
        if problems := self.datapath.apply([*actions, pod]):
            raise DatapathError("self-test: " + problems[0])

    def _as(self, role: str, make: Callable[[], socket.socket]) -> socket.socket:
        """A socket belongs to the cgroup its maker is in."""
        (self._cgroup / role / "cgroup.procs").write_text(str(os.getpid()))
        return make()

    @contextlib.contextmanager
    def pair(
        self, family: int = socket.AF_INET, *, mapped: bool = False
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """An app's socket connected to its sidecar's, both non-blocking."""
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        listening = socket.AF_INET6 if mapped else family
        with ExitStack() as stack:
            listener = stack.enter_context(
                self._as("sidecar", lambda: socket.socket(listening, socket.SOCK_STREAM))
            )
            if mapped:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("::" if mapped else host, 0))
            listener.listen()
            app = stack.enter_context(
                self._as("app", lambda: socket.socket(family, socket.SOCK_STREAM))
            )
            app.setblocking(False)
            app.connect_ex((host, listener.getsockname()[1]))
            listener.settimeout(_WAIT_SECONDS)
            sidecar = stack.enter_context(listener.accept()[0])
            sidecar.setblocking(False)
            yield app, sidecar

    def redirected(self, way: Way = Way.REQUEST) -> int:
        """Messages redirected so far between app and sidecar."""
        return self.datapath.statistics().traffic[Hop.APP_SIDECAR, way].messages_redirected


def _read(sock: socket.socket, size: int) -> bytes:
    """Up to `size` bytes, fewer at end of file or when nothing comes."""
    data = bytearray()
    while len(data) < size:
        if not select.select([sock], [], [], _WAIT_SECONDS)[0]:
            break
        try:
            got = sock.recv(size - len(data))
        except BlockingIOError:
            continue
        if not got:
            break
        data += got
    return bytes(data)


def _fionread(sock: socket.socket) -> int:
    answer: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    return answer


def _probe(cgroup: Path) -> tuple[bool, tuple[int, int, int]]:
    """(charges_rmem, FIONREAD of 50 redirected, of 50 by TCP, of 50 of each)."""
    fifty = bytes(50)
    with _Bench(cgroup, Constants(charges_rmem=False)) as bench:
        with bench.pair() as (app, sidecar):
            app.send(fifty)
            if bench.redirected() != 1:
                raise DatapathError("self-test: a first message was not redirected")
            rmem = struct.unpack("9I", sidecar.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0]
            redirected = _fionread(sidecar)
            bench.datapath.pause()
            app.send(fifty)
            both = _fionread(sidecar)
        with bench.pair() as (app, sidecar):
            app.send(fifty)
            tcp = _fionread(sidecar)
    return rmem >= 50, (redirected, tcp, both)


def _has_one_queue(cgroup: Path, charges_rmem: bool) -> bool:
    """Does accel_pass make one queue of both kinds of bytes, for an app that receives?"""
    try:
        with _Bench(cgroup, Constants(charges_rmem, one_queue=True)) as bench:
            return _joins_queues(bench) and _ends_in_order(bench)
    except (OSError, AccelError):
        return False


def _joins_queues(bench: _Bench) -> bool:
    with bench.pair() as (app, sidecar):
        sidecar.send(b"redirected, ")
        if bench.redirected(Way.RESPONSE) != 1:
            raise DatapathError("self-test: nothing was redirected into the application")
        bench.datapath.pause()
        sidecar.send(b"by TCP")
        bench.datapath.resume()
        counted = _fionread(app)
        return counted == 18 and app.recv(100) == b"redirected, by TCP"


def _ends_in_order(bench: _Bench) -> bool:
    """Bytes of both kinds, then end of file, at which an app may read again and again."""
    with bench.pair() as (app, sidecar):
        sidecar.send(b"one ")
        bench.datapath.pause()
        sidecar.send(b"two")
        bench.datapath.resume()
        sidecar.shutdown(socket.SHUT_WR)
        heard = _read(app, 100)
        again = _read(app, 100)
        app.send(b"bye")
        return (heard, again, _read(sidecar, 3)) == (b"one two", b"", b"bye")


def _check_redirect(bench: _Bench) -> tuple[bool, str]:
    seen = {}
    cases = {
        "IPv4": (socket.AF_INET, False),
        "IPv6": (socket.AF_INET6, False),
        "v4-mapped": (socket.AF_INET, True),
    }
    for name, (family, mapped) in cases.items():
        if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
            continue
        before = [bench.redirected(way) for way in Way]
        with bench.pair(family, mapped=mapped) as (app, sidecar):
            app.send(b"ping")
            heard = _read(sidecar, 4)
            sidecar.send(b"pong")
            answer = _read(app, 4)
        moved = [bench.redirected(way) - b for way, b in zip(Way, before, strict=True)]
        seen[name] = (heard, answer) == (b"ping", b"pong") and moved == [1, 1]
    return all(seen.values()), ", ".join(
        f"{name} {'redirected' if ok else 'not redirected'}" for name, ok in seen.items()
    )


def _check_order(bench: _Bench) -> tuple[bool, str]:
    with bench.pair() as (app, sidecar):
        app.send(b"one ")
        bench.datapath.pause()
        app.send(b"two ")
        bench.datapath.resume()
        app.send(b"three ")
        heard = _read(sidecar, 14)
        before = bench.redirected()
        app.send(b"four")
        heard += _read(sidecar, 4)
        back = bench.redirected() == before + 1
    in_order = heard == b"one two three four"
    return in_order and back, (
        f"read {heard.decode(errors='replace')!r}, "
        f"{'redirecting again once drained' if back else 'not redirecting again'}"
    )


def _check_eof(bench: _Bench) -> tuple[bool, str]:
    with bench.pair() as (app, sidecar):
        app.send(b"last words")
        app.shutdown(socket.SHUT_WR)
        heard = _read(sidecar, 100)
        sidecar.send(b"bye")
        answer = _read(app, 3)
    passed = heard == b"last words" and answer == b"bye"
    return passed, f"read {heard!r} and then end of file, answered {answer!r}"


def _check_reset(bench: _Bench) -> tuple[bool, str]:
    """Before b8b8315e39ff ("bpf, sockmap: Remove unhash handler", 5.16, 5.10.80) a reset
    threw away what waited redirected."""
    with bench.pair() as (app, sidecar):
        app.send(b"last words")
        app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        app.close()
        heard = _read(sidecar, 10)
        try:
            after = "end of file" if not sidecar.recv(1) else "more"
        except ConnectionResetError:
            after = "ECONNRESET"
    return heard == b"last words" and after == "ECONNRESET", f"read {heard!r} and then {after}"


def _fill(app: socket.socket, chunk: bytes, most: int) -> tuple[int, bool]:
    """Send chunks until the socket says EAGAIN.  (bytes sent, whether it did)."""
    sent = 0
    while sent < most:
        try:
            sent += app.send(chunk)
        except BlockingIOError:
            return sent, True
        except OSError as e:
            if e.errno == errno.ENOMEM:
                return sent, False
            raise
    return sent, False


def _check_bounded(bench: _Bench) -> tuple[bool, str]:
    with bench.pair() as (app, sidecar):
        chunk = bytes(range(256)) * 256
        sent, stopped = _fill(app, chunk, _MOST_QUEUED_BYTES)
        data = _read(sidecar, sent)
        whole = data == (chunk * (sent // len(chunk) + 1))[:sent]
    before = bench.redirected()
    with bench.pair() as (app, sidecar):
        small, _ = _fill(app, b"x", 5000)
        queued = bench.redirected() - before
        arrived = len(_read(sidecar, small))
    passed = stopped and whole and arrived == small and queued < small
    return passed, (
        f"{sent} bytes {'until EAGAIN' if stopped else 'and no EAGAIN'}, "
        f"{'all intact' if whole else f'{len(data)} arrived'}; "
        f"of {small} one-byte messages {queued} waited beside TCP, {arrived} arrived"
    )


def _is_refused(sock: socket.socket, level: int, option: int, value: bytes) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except PermissionError:
        return True
    except FileNotFoundError:  # the kernel has no kTLS
        return False
    return False


def _check_options(bench: _Bench) -> tuple[bool, str]:
    one = struct.pack("i", 1)
    asked = {
        "MSG_ZEROCOPY": (socket.SOL_SOCKET, _SO_ZEROCOPY, one),
        "kTLS": (socket.IPPROTO_TCP, _TCP_ULP, b"tls\0"),
    }
    with bench.pair() as (app, sidecar):
        # More than the page that the kernel copies for a program to see.
        app.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, one + bytes(4 * mmap.PAGESIZE))
        kept = bool(app.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        sidecar.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
        before = bench.redirected()
        app.send(b"x")
        low = bench.redirected() == before
        refused = [_is_refused(app, *option) for option in asked.values()]
    with bench.pair() as (app, _):
        allowed = [not _is_refused(app, *option) for option in asked.values()]
    said = [
        f"{name} {'refused' if no else 'not refused'} on an accelerated socket, "
        f"{'allowed' if yes else 'refused'} on the next"
        for name, no, yes in zip(asked, refused, allowed, strict=True)
    ]
    said.append(f"SO_RCVLOWAT {'kept' if low else 'ignored'}")
    said.append(f"a value of five pages {'taken' if kept else 'lost'}")
    return kept and low and all(refused) and all(allowed), "; ".join(said)


_CHECKS: dict[str, Callable[[_Bench], tuple[bool, str]]] = {
    "redirect": _check_redirect,
    "order": _check_order,
    "end of file": _check_eof,
    "reset": _check_reset,
    "bounded queue": _check_bounded,
    "socket options": _check_options,  # the last: no socket of the app's is enrolled after it
}


def _try(name: str, bench: _Bench) -> Check:
    try:
        passed, detail = _CHECKS[name](bench)
    except (OSError, AccelError) as e:
        passed, detail = False, str(e)
    finally:
        bench.datapath.resume()
    return Check(name, passed, detail)


def _test(cgroup: Path) -> Facts:
    charges_rmem, fionread = _probe(cgroup)
    one_queue = _has_one_queue(cgroup, charges_rmem)
    with _Bench(cgroup, Constants(charges_rmem, one_queue)) as bench:
        checks = tuple(_try(name, bench) for name in _CHECKS)
    return Facts(era_of(*fionread, size=50), fionread, charges_rmem, one_queue, checks)


def _enter_private_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare() is 3.12
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise DatapathError(
            f"make a private network namespace: {os.strerror(number)}",
            remedy="run as root (CAP_SYS_ADMIN)",
        )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def main(cgroup: Path) -> Facts:
    parent = cgroup / "cgroup.procs"
    parent.write_text(str(os.getpid()))
    _enter_private_network()
    try:
        return _test(cgroup)
    except AccelError as e:
        return _unfinished(str(e), e.remedy)


def _unfinished(error: str, remedy: str | None) -> Facts:
    return Facts(Era.UNKNOWN, (0, 0, 0), False, False, (), error=error, remedy=remedy)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(main(Path(sys.argv[1]))))

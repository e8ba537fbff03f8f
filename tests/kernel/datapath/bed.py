"""Two pods of our own on this kernel, and the data path attached to nobody else.

The network (two joined namespaces, a third that is no pod, a cgroup for each container)
is made once; the programs are loaded and attached for each test, so that its counters
begin at zero and its maps empty.  All below one private cgroup: the rest of the machine
never meets the programs.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from accel import bpf
from accel.bpf import Map
from accel.core.model import Role
from accel.core.plan import Action, ContainerEntry, PodEntry, SetAddress, SetContainer, SetPod
from accel.datapath import selftest
from accel.datapath.datapath import Datapath
from accel.datapath.generation import Generation
from accel.datapath.layout import Hop, Listing, Way, address_bytes
from accel.datapath.loading import Constants, load
from accel.demo.netns import Netns
from accel.linux.cgroup import find_mount
from tests.kernel.datapath import maker
from tests.patience import scaled

PROXY_UID = 1337
PATIENCE_SECONDS = scaled(10.0)
SOCKHASHES = ("sockets", "one_queue_sockets")

Socket = socket.socket  # Actor has a method of that name
Pair = tuple[Socket, Socket]


@cache
def facts() -> selftest.Facts:
    """What the self-test finds on this kernel; it is run once."""
    return selftest.run(find_mount().point)


def this_kernel() -> Constants:
    """What the programs are to be told of this kernel."""
    return Constants(facts().charges_rmem, facts().one_queue)


# --- sockets that belong somewhere -----------------------------------------------------------


class Actor:
    """Makes sockets as one container: a cgroup, a network namespace, a uid."""

    def __init__(self, netns: Netns | None, cgroup: Path, uid: int = 0) -> None:
        cgroup.mkdir(exist_ok=True)
        self.cgroup = cgroup
        self.uid = uid
        self._turn = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        inherited = [theirs.fileno()] + ([netns.fd] if netns else [])
        place = [str(theirs.fileno()), str(netns.fd if netns else -1), str(cgroup), str(uid)]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", maker.__file__, *place], pass_fds=inherited
            )

    def wait_ready(self) -> None:
        assert self._channel.recv(16) == b"ready"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cgroup_id(self) -> int:
        return self.cgroup.stat().st_ino

    def sockets(self, count: int, family: int = socket.AF_INET, protocol: int = 0) -> list[Socket]:
        """At most 253, the kernel's limit for one message (SCM_MAX_FD)."""
        room = socket.CMSG_SPACE(4 * count)
        with self._turn:  # one thread must not get what another asked for
            self._channel.send(json.dumps([family, protocol, count]).encode())
            _, ancillary, _, _ = self._channel.recvmsg(16, room, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        fds.frombytes(ancillary[0][2])
        return [socket.socket(fileno=fd) for fd in fds]

    def socket(self, family: int = socket.AF_INET, protocol: int = 0) -> Socket:
        return self.sockets(1, family, protocol)[0]

    def listen(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        mapped: bool = False,
        backlog: int = 4096,
        blocking: bool = False,
    ) -> Socket:
        """A listener.

        Args:
            mapped: Listen on [::] for both families, whatever `host`.
            blocking: It blocks itself when it begins to listen, as threaded servers' do.
        """
        family = socket.AF_INET6 if mapped or ":" in host else socket.AF_INET
        sock = self.socket(family)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if mapped:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::" if mapped else host, port))
            sock.setblocking(blocking)
            sock.listen(backlog)
            sock.settimeout(PATIENCE_SECONDS)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        self._channel.close()
        self._process.wait(PATIENCE_SECONDS)


@dataclass(frozen=True)
class PodBed:
    """A namespace with its containers.

    Attributes:
        helper: A second container that is no sidecar, though it runs with the proxy's uid.
    """

    netns: Netns
    address: str
    address6: str
    app: Actor
    sidecar: Actor
    helper: Actor

    @property
    def inode(self) -> int:
        return self.netns.inode


class Network:
    """Pods A and B joined by a veth pair, a stray namespace, and host processes."""

    def __init__(self, cgroup: Path) -> None:
        self.cgroup = cgroup
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._actors: list[Actor] = []
            stack.callback(self._remove_cgroups)
            cgroup.mkdir()
            a, b, stray = (stack.enter_context(Netns()) for _ in range(3))
            _join(a, b)
            self.a = self._pod(stack, "a", a, "10.77.0.1", "fd77::1")
            self.b = self._pod(stack, "b", b, "10.77.0.2", "fd77::2")
            self.stray = self._actor(stack, stray, "stray")
            self.stray_inode = stray.inode
            self.host = self._actor(stack, None, "host")
            for actor in self._actors:
                actor.wait_ready()
            self._stack = stack.pop_all()

    def _pod(self, stack: ExitStack, name: str, netns: Netns, four: str, six: str) -> PodBed:
        actors = (
            self._actor(stack, netns, f"{name}-app"),
            self._actor(stack, netns, f"{name}-sidecar", PROXY_UID),
            self._actor(stack, netns, f"{name}-helper", PROXY_UID),
        )
        return PodBed(netns, four, six, *actors)

    def _actor(self, stack: ExitStack, netns: Netns | None, name: str, uid: int = 0) -> Actor:
        actor = Actor(netns, self.cgroup / name, uid)
        stack.callback(actor.close)
        self._actors.append(actor)
        return actor

    def _remove_cgroups(self) -> None:
        for path in sorted(self.cgroup.glob("*/"), reverse=True):
            path.rmdir()
        self.cgroup.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _join(a: Netns, b: Netns) -> None:
    """One veth pair, eth0 in both, with an address of each family at either end."""
    peer = f"/proc/{os.getpid()}/fd/{b.fd}"
    a.run(("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer))
    for netns, last in ((a, 1), (b, 2)):
        netns.run(("ip", "addr", "add", f"10.77.0.{last}/24", "dev", "eth0"))
        netns.run(("ip", "-6", "addr", "add", f"fd77::{last}/64", "dev", "eth0", "nodad"))
        netns.run(("ip", "link", "set", "eth0", "up"))


# --- the data path on it -----------------------------------------------------------------------


@dataclass
class Bed:
    """The network with the programs attached.  Both pods are meshed and untrusted at first."""

    network: Network
    datapath: Datapath
    sockhashes: tuple[Map[bytes, bytes], ...]
    kept_out: Map[bytes, bytes]
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def a(self) -> PodBed:
        return self.network.a

    @property
    def b(self) -> PodBed:
        return self.network.b

    def mesh(self, pod: PodBed, **flags: bool | int) -> None:
        """Make it a pod, or change what holds for it; see PodEntry."""
        entry = PodEntry(**flags)  # type: ignore[arg-type]
        actions: list[Action] = [
            SetContainer(pod.app.cgroup_id, ContainerEntry(pod.inode, Role.APP)),
            SetContainer(pod.sidecar.cgroup_id, ContainerEntry(pod.inode, Role.SIDECAR)),
            *(SetAddress(address_bytes(x).bytes, pod.inode) for x in (pod.address, pod.address6)),
            SetPod(pod.inode, entry),
        ]
        assert self.datapath.apply(actions) == ()

    def trust(self) -> None:
        """Trust the apps of both pods."""
        for pod in (self.a, self.b):
            self.mesh(pod, trust_apps=True, enrol_apps=True)

    def keep(self, sock: socket.socket) -> socket.socket:
        """Close `sock` with the bed."""
        return self._open.enter_context(sock)

    def listen(
        self, actor: Actor, host: str = "127.0.0.1", port: int = 0, **how: bool | int
    ) -> socket.socket:
        return self.keep(actor.listen(host, port, **how))  # type: ignore[arg-type]

    def pair(
        self,
        active: Actor,
        passive: Actor,
        host: str = "127.0.0.1",
        *,
        mapped: bool = False,
        blocking: bool = False,
    ) -> Pair:
        """Both ends of a new connection, closed with the bed."""
        with passive.listen(host, mapped=mapped) as listener:
            return self.connect(active, listener, host, blocking=blocking)

    def connect(
        self,
        active: Actor,
        listener: socket.socket,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        blocking: bool = False,
    ) -> Pair:
        """Both ends of a new connection to a listener, which may be where NAT leads."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = self.keep(active.socket(family))
        begin(client, (host, port or listener.getsockname()[1]), blocking=blocking)
        server = self.keep(listener.accept()[0])
        server.setblocking(blocking)
        return client, server

    # What the programs did

    def redirected(self, hop: Hop = Hop.APP_SIDECAR, way: Way = Way.REQUEST) -> int:
        return self.datapath.statistics().traffic[hop, way].messages_redirected

    def by_tcp(self, hop: Hop = Hop.APP_SIDECAR, way: Way = Way.REQUEST) -> int:
        return self.datapath.statistics().traffic[hop, way].messages_tcp

    def refused(self, reason: str) -> int:
        return self.datapath.statistics().refused.get(reason, 0)

    def record(self, sock: socket.socket) -> Listing | None:
        """What is known of the connection that `sock` is an end of."""
        mine, peer = sock.getsockname()[1], sock.getpeername()[1]
        for listing in self.datapath.connections():
            for end in listing.connection.ends:
                if end.sock and (end.local_port, end.remote_port) == (mine, peer):
                    return listing
        return None

    def reason(self, sock: socket.socket) -> str | None:
        """Why its connection was refused; None if it was not."""
        listing = self.record(sock)
        assert listing is not None
        return self.datapath.reason(listing.connection.reason)

    def enrolled(self) -> int:
        """Sockets in the sockhashes."""
        return sum(1 for sockhash in self.sockhashes for _ in sockhash.keys())  # noqa: SIM118

    def tcp_reasons(self) -> dict[str, int]:
        """Messages by TCP, by reason, over all hops."""
        sums: dict[str, int] = {}
        for traffic in self.datapath.statistics().traffic.values():
            for reason, count in traffic.messages_tcp_by_reason.items():
                sums[reason] = sums.get(reason, 0) + count
        return sums

    def close_sockets(self) -> None:
        self._open.close()

    def assert_forgotten(self) -> None:
        """Every socket is closed, and nothing of any connection is left."""
        self.close_sockets()
        eventually(lambda: not self.datapath.connections())
        eventually(lambda: self.enrolled() == 0)


@dataclass(frozen=True)
class _Resized(Generation):
    """A generation with other sizes than a node's."""

    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> bpf.ObjectSpec:
        return super().spec.with_max_entries(**self.sizes)


@contextmanager
def attached(
    network: Network,
    constants: Constants | None = None,
    *,
    room: int = 16384,
    sizes: Mapping[str, int] | None = None,
) -> Iterator[Bed]:
    """The programs loaded, attached to the network's cgroup alone, and gone afterwards.

    Args:
        constants: Those of this kernel if None.
        room: How many connections may be remembered.
        sizes: Entries of other maps, by name.
    """
    ours = Generation.ours(Path(), room)
    generation = _Resized(ours.directory, ours.object_id, room, sizes or {})
    with ExitStack() as stack:
        loaded = load(generation, constants or this_kernel())
        stack.enter_context(loaded)
        links = [
            stack.enter_context(bpf.attach_cgroup(loaded.programs[hook], network.cgroup))
            for hook in ("accel_guard", "accel_sockops")
        ]
        datapath = stack.enter_context(
            Datapath(generation, loaded.maps, loaded.programs["accel_look"])
        )
        bed = over(network, datapath, loaded.maps)
        for pod in (network.a, network.b):
            bed.mesh(pod)
        for link in links:
            stack.callback(link.detach)
        stack.callback(bed.close_sockets)
        yield bed


def over(network: Network, datapath: Datapath, maps: Mapping[str, Map[bytes, bytes]]) -> Bed:
    """A bed with a data path that is attached already; its pods are as they were.

    Args:
        maps: Of the object, by name.
    """
    sockhashes = tuple(maps[name] for name in SOCKHASHES)
    return Bed(network, datapath, sockhashes, maps["kept_out"])


# --- talking over sockets --------------------------------------------------------------------


def begin(sock: socket.socket, address: tuple[str, int], *, blocking: bool = False) -> None:
    """Connect, with O_NONBLOCK set or not while the handshake runs, and wait for its end."""
    sock.setblocking(blocking)
    error = sock.connect_ex(address)
    if error and not blocking:
        wait_for(sock, select.POLLOUT)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def wait_for(sock: socket.socket, events: int) -> None:
    """Wait until poll(2) reports one of `events`."""
    poll = select.poll()
    poll.register(sock, events)
    if not poll.poll(PATIENCE_SECONDS * 1000):
        raise TimeoutError(f"nothing on {sock} for {PATIENCE_SECONDS} s")


def read(sock: socket.socket, size: int, *, at_most: int = 1 << 16) -> bytes:
    """Exactly `size` bytes; fewer only at end of file."""
    data = bytearray()
    while len(data) < size:
        wait_for(sock, select.POLLIN)
        with suppress(BlockingIOError):
            chunk = sock.recv(min(size - len(data), at_most))
            if not chunk:
                break
            data += chunk
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    """Everything up to end of file."""
    return read(sock, 1 << 40)


def write(sock: socket.socket, data: bytes) -> None:
    """All of `data`, waiting where the socket makes us."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            wait_for(sock, select.POLLOUT)


def fill(sock: socket.socket, data: bytes, piece: int) -> int:
    """Send `data` piece by piece to a reader that sleeps, until EAGAIN.

    Returns:
        Bytes sent: fewer than there are if EAGAIN came.
    """
    view = memoryview(data)
    sent = 0
    while sent < len(data):
        try:
            sent += sock.send(view[sent : sent + piece])
        except BlockingIOError:
            break
    return sent


def exchange(client: socket.socket, server: socket.socket, tag: bytes = b"x") -> None:
    """One message there and one back, checked."""
    client.send(b"request " + tag)
    assert read(server, 8 + len(tag)) == b"request " + tag
    server.send(b"response " + tag)
    assert read(client, 9 + len(tag)) == b"response " + tag


def fionread(sock: socket.socket) -> int:
    """Bytes that the kernel says wait there."""
    answer: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    return answer


def skip_unless_trust_is_borne() -> None:
    """Kernels before 929e30f93125 do not count redirected bytes in FIONREAD."""
    if not facts().one_queue:
        pytest.skip("redirected bytes and TCP's wait in two queues: this kernel bears no trust")


def some_bytes(size: int, seed: int) -> bytes:
    """The same every time, and nowhere repeating: a lost or moved byte shows."""
    return random.Random(seed).randbytes(size)


class Side:
    """A thread whose exception, or result, is had by joining it."""

    def __init__(self, work: Callable[[], bytes | None]) -> None:
        self._work = work
        self._result: bytes | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised by join()
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float = scaled(60.0)) -> bytes | None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "still not done"
        if self._error is not None:
            raise self._error
        return self._result


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what the kernel does a moment later."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it did not become true"
        time.sleep(0.005)

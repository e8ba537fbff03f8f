"""Where stories are told: two processes, the sockets between them, and plain TCP beside.

Plain TCP is spoken in the same namespaces, over the same path, by sockets of cgroups that
the programs are not attached to.  What is compared is what holds when everything on its way
has arrived, so after each step the stage waits for just that, by what the kernel counts.
"""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import Enum
from fcntl import ioctl
from pathlib import Path
from select import POLLIN, POLLOUT, poll

import msgspec

from accel.core.strategy import bears_enrolled_apps
from accel.datapath.layout import TcpState
from accel.datapath.selftest import Facts
from accel.demo.netns import Netns
from tests.differential.calls import (
    ACTIVE,
    PASSIVE,
    AnyCall,
    Ask,
    Close,
    Fill,
    Fork,
    Option,
    Pause,
    Poll,
    Receive,
    Reconnect,
    Reset,
    Resume,
    Seen,
    Send,
    SendFile,
    SendUrgent,
    SendZerocopy,
    Set,
    SetBlocking,
    Shutdown,
    Signal,
    SpliceIn,
    SpliceOut,
    Step,
    Story,
    Stream,
)
from tests.differential.end import (
    OPTIONS,
    Begin,
    Completions,
    Connect,
    Cram,
    Disconnect,
    Do,
    Order,
    Pull,
    Push,
)
from tests.kernel.datapath.bed import Actor, Bed, Network, attached, begin, facts, this_kernel
from tests.patience import scaled

PROJECT = Path(__file__).parents[2]
PATIENCE_SECONDS = 10.0
# A reader with one queue is woken by a kworker, later than the kernel's counts say: where plain
# TCP's reader woke, ours is not called asleep before this is over.
LATE_SECONDS = scaled(1.0)

# After one of these a proxy closes, and makes no other call.
_FATAL = {"ECONNRESET", "EPIPE", "ECONNABORTED", "ETIMEDOUT"}

# Unread bytes of one direction that both ways of carrying them have room for, on any path.
MOST_UNREAD_BYTES = 40_000
# Receivers fall behind after so few messages that stories meet it.
QUEUE_MESSAGES = 8
EVERYTHING = 1 << 40
CONNECTIONS_A_LISTENER = 1000  # or their ports would run out in TIME_WAIT

_SIOCOUTQNSD = 0x894B
_MAY_SLEEP = (Send, SendFile, SpliceIn, SendZerocopy, SendUrgent, Receive, SpliceOut)
_TRANSIT = {TcpState.FIN_WAIT1, TcpState.CLOSING, TcpState.LAST_ACK}


class Mode(Enum):
    """Who talks to whom, and what the programs are told of the app.

    `untrusted` is as the agent has it on this kernel; `forced` enrols the untrusted app
    also where the agent does not, because FIONREAD would lie.  `out`: the app connects.
    In `short` proxies are declared to stop at a short read, so they have one queue or none.
    """

    UNTRUSTED_OUT = "untrusted-out"
    UNTRUSTED_IN = "untrusted-in"
    FORCED_OUT = "forced-out"
    FORCED_IN = "forced-in"
    TRUSTED_OUT = "trusted-out"
    TRUSTED_IN = "trusted-in"
    SIDECARS = "sidecars"
    SHORT_SIDECARS = "short-sidecars"

    @property
    def app(self) -> int | None:
        """Which end is the app, or None."""
        if self in (Mode.SIDECARS, Mode.SHORT_SIDECARS):
            return None
        return ACTIVE if self.value.endswith("out") else PASSIVE

    @property
    def trusted(self) -> bool:
        return self in (Mode.TRUSTED_OUT, Mode.TRUSTED_IN)

    @property
    def forced(self) -> bool:
        return self in (Mode.FORCED_OUT, Mode.FORCED_IN)

    @property
    def stops_short(self) -> bool:
        return self is Mode.SHORT_SIDECARS

    @property
    def proxies(self) -> tuple[int, ...]:
        return tuple(end for end in (ACTIVE, PASSIVE) if end != self.app)

    def enrols_app(self, facts: Facts) -> bool:
        return self.trusted or self.forced or bears_enrolled_apps(facts.era)

    def redirects(self, facts: Facts) -> bool:
        """Whether anything is."""
        if self.app is None:
            return facts.one_queue or not self.stops_short
        return self.enrols_app(facts)

    def reads_one_queue(self, end: int, facts: Facts) -> bool:
        """Whether redirected bytes wait among TCP's there."""
        return facts.one_queue and (self.trusted if end == self.app else self.stops_short)

    def reads_two_queues(self, end: int, facts: Facts) -> bool:
        """Whether redirected bytes wait beside TCP's there."""
        if end == self.app:
            return self.trusted and not facts.one_queue
        return self.redirects(facts) and not self.stops_short


class Scene(msgspec.Struct, frozen=True):
    """What was seen of a step: of its call, and of calls that had slept and returned now."""

    seen: Seen
    woken: tuple[tuple[int, Seen], ...] = ()


SKIPPED = Scene(Seen(None, "skipped"))
BLOCKED = Seen(None, "blocked")


class Stuck(Exception):
    """The stage itself got nowhere; the message says where."""


# --- an end ----------------------------------------------------------------------------------


class EndProcess:
    """A process that plays an end, and the way to talk to it."""

    def __init__(self, actor: Actor, netns_fd: int, number: int) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        cpus = sorted(os.sched_getaffinity(0))
        place = [theirs.fileno(), netns_fd, actor.cgroup, actor.uid, cpus[number % len(cpus)]]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.differential.end", *map(str, place)],
                pass_fds=(theirs.fileno(), netns_fd),
                cwd=PROJECT,
            )
        self._poll = poll()
        self._poll.register(self._channel, POLLIN)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Seen).decode
        self._proc = Path(f"/proc/{self._process.pid}")
        self._waiting_here = ""
        self.hear()
        self._note_where_it_waits()

    def _note_where_it_waits(self) -> None:
        """The system call it sleeps in while it has nothing to do."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while (where := self._syscall()) == "running":
            if time.monotonic() > give_up:
                raise Stuck("the end never came to rest")
        self._waiting_here = where

    def _syscall(self) -> str:
        """Number and first argument of the call it sleeps in, or "running"."""
        words = (self._proc / "syscall").read_text().split()
        return " ".join(words[:2]) if len(words) > 1 else words[0]

    @property
    def is_asleep(self) -> bool:
        """In a call of the application's, that is."""
        return self._syscall() not in ("running", self._waiting_here)

    def tell(self, order: Order, fd: int | None = None) -> None:
        data = self._encode(order)
        if fd is None:
            self._channel.send(data)
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
            self._channel.sendmsg([data], [rights])

    def has_answered(self, milliseconds: int = 0) -> bool:
        return bool(self._poll.poll(milliseconds))

    def hear(self) -> Seen:
        if not self._poll.poll(PATIENCE_SECONDS * 1000):
            raise Stuck(f"no answer from an end, which is in call {self._syscall()}")
        answer = self._channel.recv(4096)
        if not answer:
            raise Stuck("an end died")
        return self._decode(answer)

    def ask(self, order: Order, fd: int | None = None) -> Seen:
        self.tell(order, fd)
        return self.hear()

    def signal(self, *, restart: bool) -> None:
        """Returns once it was taken, however far its handler is."""
        number = signal.SIGUSR1 if restart else signal.SIGUSR2
        os.kill(self._process.pid, number)
        give_up = time.monotonic() + PATIENCE_SECONDS
        while self._has_pending(number):
            if time.monotonic() > give_up:
                raise Stuck("a signal was not taken")

    def _has_pending(self, number: int) -> bool:
        for line in (self._proc / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(value, 16) >> (number - 1) & 1:
                return True
        return False

    def close(self) -> None:
        self._channel.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# --- a connection, told ----------------------------------------------------------------------


# A sleeper at either end is freed by what comes before its own close.
CURTAIN = (
    Step(PASSIVE, Signal(restart=False)),
    Step(ACTIVE, Poll()),
    Step(PASSIVE, Poll()),
    Step(ACTIVE, Receive(1 << 20, dontwait=True)),
    Step(PASSIVE, Receive(1 << 20, dontwait=True)),
    Step(PASSIVE, Close()),
    Step(ACTIVE, Poll()),
    Step(ACTIVE, Receive(1 << 20, dontwait=True)),
    Step(ACTIVE, Close()),
)


class _Info(msgspec.Struct):
    """What the kernel counts of a socket."""

    state: int
    sent: int
    received: int
    unsent: int


def _look_at(sock: socket.socket) -> _Info:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    (received,) = struct.unpack_from("Q", info, 128)
    sent, again = struct.unpack_from("QQ", info, 200)
    unsent = struct.unpack("i", ioctl(sock, _SIOCOUTQNSD, bytes(4)))[0]
    return _Info(info[0], sent - again, received, unsent)


def _unacknowledged(sock: socket.socket) -> int:
    answer: int = struct.unpack("i", ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return answer


class Telling:
    """A story on one connection.

    Each socket is held here too, to look at it; a hold is let go before its end closes.
    """

    def __init__(
        self, theatre: Theatre, story: Story, proxies: Collection[int], told: Sequence[Scene]
    ) -> None:
        self._theatre = theatre
        self._proxies = proxies
        self._told = told
        self._expected: set[int] = set()  # ends whose call returned at this step, when told before
        self._given_up: set[int] = set()  # proxies that have seen their connection fail
        self._generation = 0
        self._calls: list[AnyCall | None] = [None, None]  # what an end is doing
        self._timeouts: list[set[Option]] = [set(), set()]
        self._blocking = list(story.blocking)
        client, server = theatre.connect(story)
        self._ends = theatre.ends
        self._held: list[socket.socket | None] = [client, None]
        self._ends[ACTIVE].tell(Begin(ACTIVE, self._generation), client.fileno())
        self._connected(server)
        self._ends[ACTIVE].hear()

    def _connected(self, server: socket.socket) -> None:
        self._held[PASSIVE] = server
        self._ends[PASSIVE].ask(Begin(PASSIVE, self._generation), server.fileno())
        self._unread = [0, 0]  # bytes that an end sent and the other has not read
        self._reset_due = False  # an end sent to one that has closed
        self._streams = True  # every byte sent is one to be read, and at once
        self._timeouts[PASSIVE].clear()
        self._given_up.discard(PASSIVE)

    def tell(self, steps: tuple[Step, ...], going_on: Callable[[Scene], bool]) -> None:
        """Play `steps` and what ends every story, while `going_on` says so."""
        try:
            for at, step in enumerate((*steps, *CURTAIN)):
                self._expected = _returning(step, self._told[at]) if self._told else set()
                if not going_on(self._scene(step)):
                    break
        finally:
            self._leave()

    def _leave(self) -> None:
        for end in (ACTIVE, PASSIVE):
            self._let_go(end)
            if self._calls[end] is not None:
                self._ends[end].signal(restart=False)
                self._ends[end].hear()

    def _scene(self, step: Step) -> Scene:
        seen = self._act(step.end, step.call)
        if seen is None:
            return SKIPPED
        if step.end in self._proxies and (seen.error in _FATAL or seen.sigpipe):
            self._given_up.add(step.end)
        self._settle()
        return Scene(seen, tuple(self._woken(step.end, seen)))

    def _woken(self, actor: int, seen: Seen) -> Iterator[tuple[int, Seen]]:
        for end in (ACTIVE, PASSIVE):
            just_slept = end == actor and seen is BLOCKED
            if self._calls[end] is None or just_slept:
                continue
            if (woken := self._outcome(end)) is not BLOCKED:
                yield end, woken

    # The steps

    def _act(self, end: int, call: AnyCall) -> Seen | None:
        """None: makes no sense as things are."""
        match call:
            case Pause():
                self._theatre.pause()
                return Seen()
            case Resume():
                self._theatre.resume()
                return Seen()
            case Signal(restart):
                return None if self._calls[end] is None else self._signal(end, restart)
        if self._calls[end] is not None or self._held[end] is None:
            return None
        if end in self._given_up and not isinstance(call, Close | Reset):
            return None
        match call:
            case Reconnect():
                return self._reconnect() if end == ACTIVE else None
            case Stream(size, piece):
                return self._stream(end, size, piece) if self._can_stream(end) else None
            case Fill():
                return self._fill(end, call) if self._can_stream(end) else None
            case Close() | Reset():
                self._let_go(end)
                self._streams = False
                return self._ends[end].ask(Do(call))
            case Send(size) | SendFile(size) | SpliceIn(size) | SendZerocopy(size):
                if self._unread[end] + size > MOST_UNREAD_BYTES:
                    return self._stream(end, size, size) if self._can_stream(end) else None
                if isinstance(call, SendZerocopy):
                    return self._zerocopy(end, call)
                return self._send(end, call)
            case Ask("SIOCOUTQ"):
                self._settle(acknowledged=True)
                seen = self._do(end, call)
                if isinstance(seen.value, int) and seen.value > MOST_UNREAD_BYTES:
                    return Seen("what filled it")  # how much that takes is not promised
                return seen
        return self._do(end, call)

    def _do(self, end: int, call: AnyCall) -> Seen:
        self._note(end, call)
        self._calls[end] = call
        self._ends[end].tell(Do(call))
        return self._outcome(end)

    def _note(self, end: int, call: AnyCall) -> None:
        """What a call changes for those that follow."""
        match call:
            case Set(Option.RCVLOWAT) | SendUrgent() | Shutdown():
                self._streams = False
            case Set(Option.RCVTIMEO | Option.SNDTIMEO as option, value):
                (self._timeouts[end].add if value else self._timeouts[end].discard)(option)
            case SetBlocking(blocking):
                self._blocking[end] = blocking
            case Fork(nested):
                self._note(end, nested)

    def _outcome(self, end: int) -> Seen:
        """What the call at this end gave, or BLOCKED if it sleeps with nothing on its way."""
        process, call = self._ends[end], self._calls[end]
        assert call is not None
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not process.has_answered(1):
            if time.monotonic() > give_up:
                raise Stuck(f"end {end} neither answers nor sleeps in {call}")
            if isinstance(call, _MAY_SLEEP) and not self._timeouts[end] and process.is_asleep:
                self._settle(acknowledged=not isinstance(call, Receive))
                late = LATE_SECONDS if end in self._expected else 0
                if process.is_asleep and not process.has_answered(int(late * 1000)):
                    return BLOCKED
        self._calls[end] = None
        seen = process.hear()
        self._count(end, call, seen)
        return seen

    def _count(self, end: int, call: AnyCall, seen: Seen) -> None:
        match call:
            case Send() | SendFile() | SpliceIn() | SendZerocopy() | SendUrgent():
                self._sent(end, _moved(seen))
            case Receive(peek=False) | SpliceOut():
                self._unread[1 - end] -= _moved(seen)
            case Fork(nested):
                self._count(end, nested, seen)

    def _sent(self, end: int, count: int) -> None:
        self._unread[end] += count
        if count and self._held[1 - end] is None:
            self._reset_due = True

    def _send(self, end: int, call: Send | SendFile | SpliceIn) -> Seen:
        """A socket that does not wait may take a part: then the rest, once there is room."""
        total = 0
        while True:
            rest = msgspec.structs.replace(call, size=call.size - total)
            seen = self._do(end, rest)
            moved = _moved(seen)
            total += moved
            if seen.error or seen.sigpipe or not moved or total >= call.size:
                return msgspec.structs.replace(seen, value=total if total else seen.value)
            self._settle(acknowledged=True)

    def _zerocopy(self, end: int, call: SendZerocopy) -> Seen:
        seen = self._do(end, call)
        if seen.error or not seen.value:
            return seen
        self._settle(acknowledged=True)
        completions = self._ends[end].ask(Completions())
        return Seen(f"{seen.value} sent, {completions.value} completed", completions.error)

    def _signal(self, end: int, restart: bool) -> Seen:
        self._ends[end].signal(restart=restart)
        return Seen()

    def _can_stream(self, end: int) -> bool:
        other = 1 - end
        return (
            self._streams
            and self._calls == [None, None]
            and self._held[end] is not None
            and self._held[other] is not None
        )

    def _stream(self, end: int, size: int, piece: int) -> Seen:
        reader, writer = self._ends[1 - end], self._ends[end]
        reader.tell(Pull(self._unread[end] + size))
        writer.tell(Push(size, piece))
        sent, received = writer.hear(), reader.hear()
        self._unread[end] += _moved(sent) - _moved(received)
        return Seen(
            f"{sent.value} sent, {received.value} received",
            sent.error or received.error,
            received.garbled,
            sent.sigpipe,
        )

    def _fill(self, end: int, call: Fill) -> Seen:
        writer, reader = self._ends[end], self._ends[1 - end]
        self._cram(end, call.piece)
        told = ["full"]
        if call.timeout and self._blocking[end]:
            writer.ask(Do(Set(Option.SNDTIMEO, 20)))
            told.append(f"and then {writer.ask(Do(Send(1))).error}")
            writer.ask(Do(Set(Option.SNDTIMEO, 0)))
        match call.then:
            case "drain":
                pulled = reader.ask(Pull(self._unread[end]))
            case "reader closes":
                self._let_go(1 - end)
                reader.ask(Do(Close()))
                self._reset_due = True
                return Seen(" ".join(told))
            case "writer closes":
                self._let_go(end)
                writer.ask(Do(Close()))
                pulled = reader.ask(Pull(EVERYTHING))
            case "writer shuts down":
                writer.ask(Do(Shutdown(1)))
                pulled = reader.ask(Pull(EVERYTHING))
        self._streams &= call.then == "drain"
        left = self._unread[end] - _moved(pulled)
        self._unread[end] = left
        if pulled.error == "ECONNRESET":  # what was on its way is lost, and nobody says how much
            return Seen(" ".join(told), pulled.error, pulled.garbled)
        return Seen(f"{' '.join(told)}, {left} left", pulled.error, pulled.garbled)

    def _cram(self, end: int, piece: int) -> None:
        """Until there is no room, and none comes of what the receiver acknowledges."""
        idle = 0
        while idle < 3:
            count = _moved(self._ends[end].ask(Cram(piece)))
            self._unread[end] += count
            idle = 0 if count or self._is_writable(end) else idle + 1
            self._poke(1 - end)

    def _is_writable(self, end: int) -> bool:
        sock = self._held[end]
        assert sock is not None
        watching = poll()
        watching.register(sock, POLLOUT)
        return bool(watching.poll(0))

    def _reconnect(self) -> Seen:
        if self._calls[PASSIVE] is not None:
            return Seen(None, "skipped")
        told = [f"disconnect {self._ends[ACTIVE].ask(Disconnect()).error}"]
        self._settle()
        if self._held[PASSIVE] is not None:
            told.append(f"peer {self._ends[PASSIVE].ask(Do(Poll())).value}")
            self._let_go(PASSIVE)
            self._ends[PASSIVE].ask(Do(Close()))
        self._generation += 1
        host, port = self._theatre.address
        connected = self._ends[ACTIVE].ask(Connect(ACTIVE, self._generation, host, port))
        told.append(f"connect {connected.error}")
        if connected.error:
            return Seen(", ".join(told))
        self._connected(self._theatre.accept(self._blocking[PASSIVE]))
        self._timeouts[ACTIVE].clear()
        return Seen(", ".join(told))

    def _let_go(self, end: int) -> None:
        held, self._held[end] = self._held[end], None
        if held is not None:
            held.close()

    # When everything on its way has arrived

    def _settle(self, *, acknowledged: bool = False) -> None:
        """Wait until it has; if asked to, until it was acknowledged, too."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not self._is_settled(acknowledged):
            if time.monotonic() > give_up:
                raise Stuck(f"bytes, or a FIN, do not arrive: {self._looks()}")
            for end in (ACTIVE, PASSIVE):
                self._poke(end)

    def _poke(self, end: int) -> None:
        """Have an end acknowledge now what it would otherwise in 40 ms."""
        sock = self._held[end]
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _looks(self) -> list[_Info]:
        return [_look_at(sock) for sock in self._held if sock is not None]

    def _is_settled(self, acknowledged: bool) -> bool:
        looks = self._looks()
        match looks:
            case []:
                return True
            case [alone]:
                if self._reset_due:
                    return alone.state == TcpState.CLOSE
                return alone.state in (TcpState.CLOSE, TcpState.CLOSE_WAIT)
            case [one, other] if TcpState.CLOSE in (one.state, other.state):
                return one.state == other.state
        one, other = looks
        if acknowledged and any(_unacknowledged(sock) for sock in self._held if sock):
            return False
        return _has_arrived(one, other) and _has_arrived(other, one)


def _returning(step: Step, scene: Scene) -> set[int]:
    """The ends at which a call returned."""
    returned = {end for end, _ in scene.woken}
    return returned if scene.seen == BLOCKED else returned | {step.end}


def _has_arrived(sender: _Info, receiver: _Info) -> bool:
    return (
        not sender.unsent
        and receiver.received >= sender.sent
        and sender.state not in _TRANSIT
        and (sender.state == TcpState.FIN_WAIT2) == (receiver.state == TcpState.CLOSE_WAIT)
    )


def _moved(seen: Seen) -> int:
    """How many bytes."""
    match seen.value:
        case int():
            return seen.value
        case str():
            return int(seen.value.split()[0])
    return 0


# --- the places --------------------------------------------------------------------------------


class Theatre:
    """Two actors, who play stories over connections of one kind."""

    def __init__(
        self, active: Actor, passive: Actor, host: str, make_end: Callable[[int], EndProcess]
    ) -> None:
        self._active, self._passive, self._host = active, passive, host
        self._make_end = make_end
        self.ends: list[EndProcess] = []
        self._spare: list[socket.socket] = []
        self._listeners: dict[bool, socket.socket] = {}
        self._listener: socket.socket | None = None
        self._presumed: dict[bytes, bytes] = {}  # of kept_out: what listen() told
        self._connections = 0
        self.bed: Bed | None = None  # where there is something to pause
        self._paused = False

    @property
    def address(self) -> tuple[str, int]:
        assert self._listener is not None
        return self._host, self._listener.getsockname()[1]

    def connect(self, story: Story) -> tuple[socket.socket, socket.socket]:
        if not self.ends:
            self.ends = [self._make_end(end) for end in (ACTIVE, PASSIVE)]
        if self._connections % CONNECTIONS_A_LISTENER == 0:
            self._close_listeners()
        self._connections += 1
        self._forget_hazards()
        self._listener = self._listening(story.listens_blocking)
        if not self._spare:
            self._spare = self._active.sockets(100)
        client = self._spare.pop()
        begin(client, self.address, blocking=story.blocking[ACTIVE])
        return client, self.accept(story.blocking[PASSIVE])

    def _listening(self, blocking: bool) -> socket.socket:
        if blocking not in self._listeners:
            self._listeners[blocking] = self._passive.listen(self._host, blocking=blocking)
            if self.bed is not None:
                self._presumed = dict(self.bed.kept_out.items())
        return self._listeners[blocking]

    def _forget_hazards(self) -> None:
        """The programs remember listeners and containers that must be kept out.  They forget it
        for each story, or after one hazard no later story would be accelerated; not what they
        presume of a listener."""
        if self.bed is None:
            return
        for key in list(self.bed.kept_out.keys()):
            self.bed.kept_out.delete(key)
        for key, reason in self._presumed.items():
            self.bed.kept_out.update(key, reason)

    def accept(self, blocking: bool) -> socket.socket:
        assert self._listener is not None
        server, _ = self._listener.accept()
        server.setblocking(blocking)
        return server

    def tell(
        self,
        story: Story,
        proxies: Collection[int],
        going_on: Callable[[Scene], bool],
        told: Sequence[Scene] = (),
    ) -> None:
        """Play a story.

        Args:
            told: How it went when it was told before; what returned then is waited for.
        """
        try:
            Telling(self, story, proxies, told).tell(story.steps, going_on)
        except BaseException:
            self._dismiss()
            raise
        finally:
            self.resume()

    def pause(self) -> None:
        if self.bed is not None and not self._paused:
            self.bed.datapath.pause()
        self._paused = True

    def resume(self) -> None:
        if self.bed is not None and self._paused:
            self.bed.datapath.resume()
        self._paused = False

    def _dismiss(self) -> None:
        """The ends may be in the middle of something: others take over."""
        for end in self.ends:
            end.close()
        self.ends = []

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._presumed.clear()

    def close(self) -> None:
        self._dismiss()
        self._close_listeners()
        for sock in self._spare:
            sock.close()


class Stage:
    """The programs on a network of pods, and the same network without them."""

    def __init__(self, bed: Bed, plain_a: Actor, plain_b: Actor) -> None:
        self.bed = bed
        self.facts = facts()
        self._plain_a, self._plain_b = plain_a, plain_b
        self._theatres: dict[tuple[Mode, bool], Theatre] = {}
        self._mode: Mode | None = None

    def plain(self, mode: Mode) -> Theatre:
        """Where the stories of this mode are told by TCP alone."""
        alike = Mode.SIDECARS if mode.app is None else Mode.TRUSTED_OUT
        return self._theatre((alike, False))

    def accelerated(self, mode: Mode) -> Theatre:
        """Where they are told with the programs, which are told of the pods what `mode` says."""
        if self._mode is not mode:
            flags = {
                "trust_apps": mode.trusted,
                "enrol_apps": mode.enrols_app(self.facts),
                "stops_short": mode.stops_short,
            }
            for pod in (self.bed.a, self.bed.b):
                self.bed.mesh(pod, **flags)
            self._mode = mode
        return self._theatre((mode, True))

    def _theatre(self, key: tuple[Mode, bool]) -> Theatre:
        if key not in self._theatres:
            self._theatres[key] = self._build(*key)
        return self._theatres[key]

    def _build(self, mode: Mode, accelerated: bool) -> Theatre:
        a, b = self.bed.a, self.bed.b
        if not accelerated:
            places = (
                (self._plain_a, a, self._plain_b, b)
                if mode.app is None
                else (self._plain_a, a, self._plain_a, a)
            )
        elif mode.app is None:
            places = (a.sidecar, a, b.sidecar, b)
        elif mode.app == ACTIVE:
            places = (a.app, a, a.sidecar, a)
        else:
            places = (a.sidecar, a, a.app, a)
        active, active_pod, passive, passive_pod = places
        where = ((active, active_pod), (passive, passive_pod))

        def make_end(end: int) -> EndProcess:
            actor, pod = where[end]
            return EndProcess(actor, pod.netns.fd, end)

        host = b.address if mode.app is None else "127.0.0.1"
        theatre = Theatre(active, passive, host, make_end)
        if accelerated:
            theatre.bed = self.bed
        return theatre

    def close(self) -> None:
        for theatre in self._theatres.values():
            theatre.close()


@contextmanager
def set_up(network: Network) -> Iterator[Stage]:
    """A stage on `network`; takes half a second."""
    with ExitStack() as stack:
        plain = network.cgroup.with_name(network.cgroup.name + "-plain")
        plain.mkdir()
        stack.callback(plain.rmdir)
        actors = []
        for pod in (network.a, network.b):
            actor = Actor(pod.netns, plain / pod.address)
            stack.callback(actor.cgroup.rmdir)
            stack.callback(actor.close)
            actor.wait_ready()
            actors.append(actor)
        for pod in (network.a, network.b):
            _bound_buffers(pod.netns)
        # The kernel stamps packets while somebody wants it, and begins a while after that.
        stamped = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        stamped.setsockopt(*OPTIONS[Option.TIMESTAMP], 1)
        constants = replace(this_kernel(), max_queued_messages=QUEUE_MESSAGES)
        bed = stack.enter_context(attached(network, constants))
        stage = Stage(bed, *actors)
        stack.callback(stage.close)
        yield stage


def _bound_buffers(netns: Netns) -> None:
    """Let autotuning not go far: buffers that are full sooner are full more often."""

    def write() -> None:
        ipv4 = Path("/proc/sys/net/ipv4")
        (ipv4 / "tcp_wmem").write_text("4096 16384 300000")
        (ipv4 / "tcp_rmem").write_text("4096 131072 600000")

    netns.call(write)

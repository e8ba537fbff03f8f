"""The data path while it runs: its maps written, its counters and connections read.

Everything goes through pins, so an agent and a command line see the same thing,
and acceleration outlives both.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

from accel import bpf
from accel.bpf import BpfError, Map, RingBuffer, Variables
from accel.bpf.closing import Closing
from accel.core.model import Role
from accel.core.plan import (
    Action,
    ContainerEntry,
    DropAddress,
    DropContainer,
    DropPod,
    PodEntry,
    SetAddress,
    SetContainer,
    SetPod,
    Want,
)
from accel.datapath.generation import Generation
from accel.datapath.layout import (
    LISTINGS_AT_ONCE,
    LISTINGS_START,
    AddressBytes,
    Connection,
    ConnectionKey,
    ContainerFlags,
    ContainerValue,
    EventRecord,
    Hop,
    Listing,
    LiveEnd,
    PodFlags,
    PodValue,
    TcpState,
    Verdict,
    Way,
)

T = TypeVar("T")

_FILLED_BY: Mapping[type[Action], str] = MappingProxyType(
    {SetPod: "pods", SetContainer: "containers", SetAddress: "addresses"}
)

# A record whose sockets are gone is left alone this long: its ends may just be closing.
_SWEEP_AFTER_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of one direction of one hop since the data path was loaded."""

    messages_redirected: int
    bytes_redirected: int
    messages_tcp: int
    bytes_tcp: int
    messages_tcp_by_reason: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of every counter.  Counters of several CPUs are read one after the other.

    Attributes:
        refused: Connections refused, by reason; reasons that never occurred are left out.
        options_refused: Calls of setsockopt() for what an enrolled socket cannot bear.
        undecided: Messages of connections whose hop was not known yet; all by TCP.
    """

    accepted: int
    evicted: int
    events_lost: int
    options_refused: int
    refused: Mapping[str, int]
    traffic: Mapping[tuple[Hop, Way], Traffic]
    undecided: Traffic

    @property
    def total(self) -> Traffic:
        """Of all hops and directions, and of what was undecided."""
        return _add((*self.traffic.values(), self.undecided))


class Datapath(Closing):
    """The loaded programs and maps of one generation.  A context manager.

    Closing it drops descriptors only: what is pinned goes on working.
    """

    def __init__(
        self, generation: Generation, maps: Mapping[str, Map[bytes, bytes]], looker: bpf.Program
    ) -> None:
        """Takes over `maps` (every map of the object by name) and `looker` (accel_look)."""
        btf = generation.spec.btf
        if btf is None:
            raise bpf.ObjectError(f"{generation.spec.name} was built without BTF")
        self.generation = generation
        self._btf = btf
        self._looker = looker
        self._resources = ExitStack()
        self._resources.callback(looker.close)
        for owned in maps.values():
            self._resources.callback(owned.close)
        self._connection_keys = maps["connections"]
        self._pods: Map[int, PodValue] = maps["pods"].typed(btf, value_record=PodValue)
        self._containers: Map[int, ContainerValue] = maps["containers"].typed(
            btf, value_record=ContainerValue
        )
        self._addresses: Map[AddressBytes, int] = maps["addresses"].typed(
            btf, key_record=AddressBytes
        )
        self._paused: Map[int, int] = maps["paused"].typed(btf)
        self._connections: Map[ConnectionKey, Connection] = maps["connections"].typed(
            btf, key_record=ConnectionKey, value_record=Connection
        )
        self._traffic: Map[int, tuple[Any, ...]] = maps["traffic"].typed(btf)
        self._verdicts: Map[int, tuple[Any, ...]] = maps["verdicts"].typed(btf)
        self._events = maps["events"]
        self._listing = _codec(btf, "listing", Listing)
        self._event = _codec(btf, "event", EventRecord)
        self.reasons = tuple(member.name for member in btf.struct("reasons").members)
        self._switches = [
            self._resources.enter_context(Variables(maps[name], generation.spec.variables, btf))
            for name in (".data", ".bss")
        ]

    def close(self) -> None:
        self._resources.close()

    def __repr__(self) -> str:
        return f"<Datapath {self.generation.directory.name}>"

    # What the agent writes

    def have(self) -> Want:
        """What the maps hold now."""
        return Want(
            pods=MappingProxyType({n: _pod_entry(value) for n, value in self._pods.items()}),
            containers=MappingProxyType(
                {cgroup: _container_entry(value) for cgroup, value in self._containers.items()}
            ),
            addresses=MappingProxyType(
                {address.bytes: netns for address, netns in self._addresses.items()}
            ),
        )

    def apply(self, actions: Iterable[Action]) -> tuple[str, ...]:
        """Carry out a plan.

        Returns:
            What the kernel refused, for people: the rest was done all the same, and
            whatever lacks its entry goes by TCP.
        """
        problems = []
        exposed: set[int] = set()
        for action in actions:
            if isinstance(action, SetPod) and action.netns in exposed:
                continue
            try:
                self._carry_out(action)
            except BpfError as e:
                problems.append(self._problem(action, e))
                match action:
                    # Unlisted it would count as an application's, and be accelerated.
                    case SetContainer(_, ContainerEntry(netns, Role.EXCLUDED)):
                        self._pods.delete(netns)
                        exposed.add(netns)
        problems += [
            f"pod {netns} is not accelerated: a container excluded from it could not be listed"
            for netns in sorted(exposed)
        ]
        self._policy_changed()
        return tuple(problems)

    def _problem(self, action: Action, error: BpfError) -> str:
        full = _FILLED_BY.get(type(action)) if error.errno == errno.E2BIG else None
        if full is None:
            return f"{action}: {error}"
        held = self.generation.spec.maps[full].max_entries
        return f"{action}: map {full} is full: it holds {held}; the rest goes by TCP"

    def _carry_out(self, action: Action) -> None:
        match action:
            case SetPod(netns, entry):
                self._pods.update(netns, _pod_value(entry))
            case DropPod(netns):
                self._pods.delete(netns)
                self._paused.delete(netns)
            case SetContainer(cgroup_id, container):
                self._containers.update(cgroup_id, _container_value(container))
            case DropContainer(cgroup_id):
                self._containers.delete(cgroup_id)
            case SetAddress(address, netns):
                self._addresses.update(AddressBytes(address), netns)
            case DropAddress(address):
                self._addresses.delete(AddressBytes(address))

    def _policy_changed(self) -> None:
        # Random, not counted up: the agent and a command line may write at once, and a
        # count could then come back to a value some direction has already seen.
        self._set("epoch", secrets.randbits(32) | 1)

    def sweep(self) -> int:
        """Forget connections whose sockets are long gone.  Returns how many."""
        swept = 0
        now = time.monotonic_ns()
        for listing in self.connections():
            if now - listing.connection.established_ns < _SWEEP_AFTER_NS:
                continue
            if not any(_lives(end) for end in listing.live):
                swept += self._connections.delete(listing.key)
        return swept

    # Switches

    @property
    def enabled(self) -> bool:
        return bool(self._get("enabled"))

    @property
    def paused_pods(self) -> frozenset[int]:
        return frozenset(self._paused.keys())

    def pause(self, netns: int | None = None) -> None:
        """Send every message by TCP from the next one on: of one pod, or of the node."""
        if netns is None:
            self._set("enabled", 0)
        else:
            self._paused.update(netns, 1)
        self._policy_changed()

    def resume(self, netns: int | None = None) -> None:
        """Undo pause() of the same scope.  A direction in which bytes went by TCP to an
        app stays with TCP; one into a sidecar comes back once it is drained."""
        if netns is None:
            self._set("enabled", 1)
        else:
            self._paused.delete(netns)
        self._policy_changed()

    def copy_switches(self, other: Datapath) -> None:
        """Take over what people switched off in an older generation."""
        for netns in other.paused_pods:
            self._paused.update(netns, 1)
        self._set("enabled", int(other.enabled))
        self._policy_changed()

    def _get(self, name: str) -> int:
        value = next(v for v in self._switches if name in v)[name].get()
        assert isinstance(value, int)
        return value

    def _set(self, name: str, value: int) -> None:
        next(v for v in self._switches if name in v)[name].set(value)

    # What the programs report

    def connections(self) -> tuple[Listing, ...]:
        """Every connection with an end in a meshed pod, and what its sockets do now."""
        keys = iter(list(self._connection_keys.keys()))
        found: list[Listing] = []
        while some := list(islice(keys, LISTINGS_AT_ONCE)):
            found += self._look(some)
        return tuple(found)

    def _look(self, keys: Sequence[bytes]) -> Iterator[Listing]:
        """Those of a few connections; see accel_look."""
        size = self._listing.size
        items = b"".join(key.ljust(size, b"\0") for key in keys)
        packet = self._looker.run(bytes(LISTINGS_START) + items).data
        for number in range(len(keys)):
            listing = self._listing.unpack(packet[LISTINGS_START + number * size :][:size])
            if listing.connection.established_ns:
                yield listing

    def count_accepted(self) -> int:
        """How many connections are accelerated, or may be again."""
        return sum(
            item.connection.verdict == Verdict.ACCEPTED and any(_lives(end) for end in item.live)
            for item in self.connections()
        )

    def statistics(self) -> Statistics:
        traffic = {
            (hop, way): _traffic(self._traffic.lookup(hop * len(Way) + way) or ())
            for hop in Hop
            for way in Way
        }
        verdicts = self._verdicts.lookup(0) or ()
        return Statistics(
            accepted=sum(v.accepted for v in verdicts),
            evicted=sum(v.evicted for v in verdicts),
            events_lost=sum(v.events_lost for v in verdicts),
            options_refused=sum(v.options_refused for v in verdicts),
            refused=_sum_reasons([v.refused for v in verdicts]),
            traffic=MappingProxyType(traffic),
            undecided=_add(_traffic(self._traffic.lookup(way) or ()) for way in Way),
        )

    def reason(self, number: int) -> str | None:
        """The name of a REASON_*, or None for "none"."""
        if number == 0:
            return None
        return self.reasons[number] if number < len(self.reasons) else f"reason {number}"

    def expect_no_reader(self) -> None:
        """Nobody reads events: whoever did may have died without saying so."""
        self._set("events_wanted", 0)

    async def events(self) -> AsyncGenerator[EventRecord, None]:
        """Connections accepted, refused, evicted and closed, as they happen.

        The kernel keeps 1 MiB for a slow reader; what finds no room is lost and counted in
        Statistics.events_lost.  One reader at a time.
        """
        with RingBuffer(self._events) as ring:
            self._set("events_wanted", 1)
            try:
                async for record in ring:
                    yield self._event.unpack(record)
            finally:
                self.expect_no_reader()


def _lives(end: LiveEnd) -> bool:
    # The memory of a socket that is gone goes on saying CLOSE until it is reused.
    return end.tcp_state not in (TcpState.GONE, TcpState.CLOSE)


def _codec(btf: bpf.Btf, struct: str, record: type[T]) -> bpf.Codec[T]:
    found = btf.find(struct, bpf.Struct)
    if found is None:
        raise bpf.ObjectError(f"the object's BTF has no struct {struct}")
    return bpf.codec_for(btf, found[0], record=record)


def _pod_entry(value: PodValue) -> PodEntry:
    flags = PodFlags(value.flags)
    return PodEntry(
        trust_apps=PodFlags.TRUST_APPS in flags,
        enrol_apps=PodFlags.ENROL_APPS in flags,
        roles_by_uid=PodFlags.ROLES_BY_UID in flags,
        stops_short=PodFlags.STOPS_SHORT in flags,
        proxy_uid=value.proxy_uid,
    )


def _pod_value(entry: PodEntry) -> PodValue:
    flags = PodFlags(0)
    if entry.trust_apps:
        flags |= PodFlags.TRUST_APPS
    if entry.enrol_apps:
        flags |= PodFlags.ENROL_APPS
    if entry.roles_by_uid:
        flags |= PodFlags.ROLES_BY_UID
    if entry.stops_short:
        flags |= PodFlags.STOPS_SHORT
    return PodValue(int(flags), entry.proxy_uid)


def _container_entry(value: ContainerValue) -> ContainerEntry:
    splices = ContainerFlags.SPLICES in ContainerFlags(value.flags)
    return ContainerEntry(value.netns, Role(value.role), splices=splices)


def _container_value(entry: ContainerEntry) -> ContainerValue:
    flags = ContainerFlags.SPLICES if entry.splices else ContainerFlags(0)
    return ContainerValue(entry.netns, int(entry.role), int(flags))


def _traffic(per_cpu: tuple[Any, ...]) -> Traffic:
    return Traffic(
        messages_redirected=sum(t.messages_redirected for t in per_cpu),
        bytes_redirected=sum(t.bytes_redirected for t in per_cpu),
        messages_tcp=sum(t.messages_tcp for t in per_cpu),
        bytes_tcp=sum(t.bytes_tcp for t in per_cpu),
        messages_tcp_by_reason=_sum_reasons([t.messages_tcp_by_reason for t in per_cpu]),
    )


def _add(parts: Iterable[Traffic]) -> Traffic:
    parts = tuple(parts)
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.messages_tcp_by_reason)
    return Traffic(
        messages_redirected=sum(part.messages_redirected for part in parts),
        bytes_redirected=sum(part.bytes_redirected for part in parts),
        messages_tcp=sum(part.messages_tcp for part in parts),
        bytes_tcp=sum(part.bytes_tcp for part in parts),
        messages_tcp_by_reason=MappingProxyType(dict(reasons)),
    )


def _sum_reasons(per_cpu: list[Any]) -> Mapping[str, int]:
    if not per_cpu:
        return MappingProxyType({})
    sums = zip(per_cpu[0]._fields, map(sum, zip(*per_cpu, strict=True)), strict=True)
    return MappingProxyType({name: count for name, count in sums if count})

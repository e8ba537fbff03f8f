"""The connections of meshed pods as people and tools read them: names for numbers."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Literal

from accel.core.model import Role
from accel.datapath.capture import Flow
from accel.datapath.datapath import Datapath
from accel.datapath.layout import (
    Direction,
    End,
    EndState,
    EventKind,
    EventRecord,
    Hop,
    Listing,
    LiveEnd,
    TcpState,
    Verdict,
    Way,
)

Names = Mapping[int, str]
"""Pod names by network namespace."""


def describe(listing: Listing, datapath: Datapath, names: Names) -> dict[str, Any]:
    """One connection in plain values, ready for JSON.

    "pod" is the pod of the active end where that is known here, else of the passive one.
    A direction's "state" is redirect, tcp, or idle before its first message; its
    "reason" says why it is tcp.
    """
    connection = listing.connection
    verdict = Verdict(connection.verdict)
    ends = [_end(end, live, names) for end, live in zip(connection.ends, listing.live, strict=True)]
    reason = datapath.reason(connection.reason)
    return {
        "pod": next(end["pod"] for end in ends if end is not None),
        "hop": Hop(connection.hop).label if connection.hop else None,
        "verdict": verdict.name.lower(),
        "reason": "pending" if verdict is Verdict.PENDING else reason,
        "active": ends[0],
        "passive": ends[1],
        "directions": {
            way.label: _direction(connection.directions[way], datapath, verdict, reason)
            for way in Way
        },
    }


Change = Literal["accepted", "refused", "evicted", "closed"]

_CHANGES: Mapping[EventKind, Change] = {
    EventKind.ACCEPTED: "accepted",
    EventKind.REFUSED: "refused",
    EventKind.EVICTED: "evicted",
    EventKind.CLOSED: "closed",
}


def describe_event(
    record: EventRecord, datapath: Datapath, names: Names
) -> tuple[Change, dict[str, Any]]:
    """What happened, and to which connection: as describe(), but for what its sockets do now."""
    unknown = (LiveEnd(TcpState.GONE, 0),) * 2
    described = describe(Listing(record.key, record.connection, unknown), datapath, names)
    for end in filter(None, (described["active"], described["passive"])):
        del end["tcp_state"], end["queued_bytes"]
    return _CHANGES[EventKind(record.kind)], described


def _end(end: End, live: LiveEnd, names: Names) -> dict[str, Any] | None:
    if not end.sock:
        return None
    state = EndState(end.state)
    return {
        "pod": names.get(end.netns, f"netns:{end.netns}"),
        "role": Role(end.role).name.lower(),
        "local": f"{_host(str(end.local_address))}:{end.local_port}",
        "remote": f"{_host(str(end.remote_address))}:{end.remote_port}",
        "cgroup_id": end.cgroup_id,
        "uid": end.uid,
        "enrolled": EndState.ENROLLED in state and EndState.LEFT not in state,
        "tcp_state": TcpState(live.tcp_state).name.lower(),
        "queued_bytes": live.queued_bytes,
    }


def _host(address: str) -> str:
    return f"[{address}]" if ip_address(address).version == 6 else address


def _direction(
    direction: Direction, datapath: Datapath, verdict: Verdict, refusal: str | None
) -> dict[str, Any]:
    if verdict is Verdict.REFUSED:
        state, reason = "tcp", refusal
    elif not direction.messages_redirected + direction.messages_tcp:
        state, reason = "idle", None
    else:
        reason = datapath.reason(direction.reason)
        state = "tcp" if reason else "redirect"
    return {
        "state": state,
        "reason": reason,
        "messages_redirected": direction.messages_redirected,
        "bytes_redirected": direction.bytes_redirected,
        "messages_tcp": direction.messages_tcp,
        "bytes_tcp": direction.bytes_tcp,
    }


def flows(listing: Listing, way: Way) -> frozenset[Flow]:
    """How packets of one direction may look on a wire: NAT shows each end another."""
    found = set()
    for which, end in zip(Way, listing.connection.ends, strict=True):
        if end.sock:
            local = (str(end.local_address), end.local_port)
            remote = (str(end.remote_address), end.remote_port)
            found.add((local, remote) if which is way else (remote, local))
    return frozenset(found)


def redirected_since(earlier: Listing | None, now: Listing, way: Way) -> int:
    """Messages one direction redirected between two listings."""
    before = earlier.connection.directions[way].messages_redirected if earlier else 0
    return now.connection.directions[way].messages_redirected - before

"""A connection in the words of people and tools."""

from __future__ import annotations

from typing import cast

import pytest

from accel.core.model import Role
from accel.datapath.connections import describe, flows, redirected_since
from accel.datapath.datapath import Datapath
from accel.datapath.layout import (
    AddressBytes,
    Connection,
    ConnectionKey,
    Direction,
    End,
    EndState,
    Hop,
    Listing,
    LiveEnd,
    TcpState,
    Verdict,
    Way,
    address_bytes,
)

POD = 4026532511
NAMES = {POD: "shop"}
REASONS = ("none", "no_peer", "settled")

NO_END = End(0, 0, 0, AddressBytes(bytes(16)), AddressBytes(bytes(16)), 0, 0, 0, 0, 0, 0)
GONE = LiveEnd(TcpState.GONE, 0)
QUIET = Direction(*[0] * 13)


class Names:
    """Of the data path, describe() needs the names of reasons alone."""

    def reason(self, number: int) -> str | None:
        return REASONS[number] if number else None


def end(role: Role, local: tuple[str, int], remote: tuple[str, int], **more: int) -> End:
    return End(
        sock=1,
        cookie=2,
        cgroup_id=3,
        local_address=address_bytes(local[0]),
        remote_address=address_bytes(remote[0]),
        local_port=local[1],
        remote_port=remote[1],
        netns=more.get("netns", POD),
        uid=4,
        role=role,
        state=more.get("state", EndState.ENROLLED),
    )


def listing(
    active: End = NO_END,
    passive: End = NO_END,
    *,
    directions: tuple[Direction, Direction] = (QUIET, QUIET),
    verdict: Verdict = Verdict.ACCEPTED,
    reason: int = 0,
) -> Listing:
    connection = Connection(
        established_ns=1,
        ends=(active, passive),
        directions=directions,
        closed=0,
        verdict=verdict,
        hop=Hop.APP_SIDECAR if verdict is Verdict.ACCEPTED else 0,
        reason=reason,
    )
    live = tuple(LiveEnd(TcpState.ESTABLISHED, 9) if e.sock else GONE for e in (active, passive))
    return Listing(ConnectionKey(1, 2), connection, cast("tuple[LiveEnd, LiveEnd]", live))


# What REDIRECT does: the app meant 10.0.0.9:80, and the sidecar took it at 127.0.0.1:15001.
APP = end(Role.APP, ("10.0.0.1", 40000), ("10.0.0.9", 80))
SIDECAR = end(Role.SIDECAR, ("127.0.0.1", 15001), ("10.0.0.1", 40000))


def described(item: Listing) -> dict[str, object]:
    return describe(item, cast("Datapath", Names()), NAMES)


def test_an_accepted_connection() -> None:
    request = QUIET._replace(messages_redirected=3, bytes_redirected=30)
    facts = described(listing(APP, SIDECAR, directions=(request, QUIET)))
    assert facts == {
        "pod": "shop",
        "hop": "app-sidecar",
        "verdict": "accepted",
        "reason": None,
        "active": {
            "pod": "shop",
            "role": "app",
            "local": "10.0.0.1:40000",
            "remote": "10.0.0.9:80",
            "cgroup_id": 3,
            "uid": 4,
            "enrolled": True,
            "tcp_state": "established",
            "queued_bytes": 9,
        },
        "passive": {
            "pod": "shop",
            "role": "sidecar",
            "local": "127.0.0.1:15001",
            "remote": "10.0.0.1:40000",
            "cgroup_id": 3,
            "uid": 4,
            "enrolled": True,
            "tcp_state": "established",
            "queued_bytes": 9,
        },
        "directions": {
            "request": {
                "state": "redirect",
                "reason": None,
                "messages_redirected": 3,
                "bytes_redirected": 30,
                "messages_tcp": 0,
                "bytes_tcp": 0,
            },
            "response": {
                "state": "idle",
                "reason": None,
                "messages_redirected": 0,
                "bytes_redirected": 0,
                "messages_tcp": 0,
                "bytes_tcp": 0,
            },
        },
    }


@pytest.mark.parametrize("active", [True, False])
def test_one_end_alone_gives_the_pod(active: bool) -> None:
    facts = described(listing(APP) if active else listing(passive=SIDECAR))
    assert facts["pod"] == "shop"
    assert (facts["active"] is None, facts["passive"] is None) == (not active, active)


def test_a_pod_without_a_name_goes_by_its_namespace() -> None:
    assert described(listing(APP._replace(netns=7), SIDECAR))["pod"] == "netns:7"


def test_a_refused_connection_says_why_on_both_directions() -> None:
    facts = described(listing(APP, verdict=Verdict.REFUSED, reason=1))
    assert (facts["verdict"], facts["hop"], facts["reason"]) == ("refused", None, "no_peer")
    directions = cast("dict[str, dict[str, object]]", facts["directions"])
    assert {(d["state"], d["reason"]) for d in directions.values()} == {("tcp", "no_peer")}


def test_a_connection_that_waits_for_its_other_end_is_pending() -> None:
    facts = described(listing(APP, verdict=Verdict.PENDING))
    assert (facts["verdict"], facts["reason"]) == ("pending", "pending")


def test_a_direction_that_went_to_tcp_says_why() -> None:
    settled = QUIET._replace(messages_redirected=3, messages_tcp=1, reason=2)
    facts = described(listing(APP, SIDECAR, directions=(QUIET, settled)))
    directions = cast("dict[str, dict[str, object]]", facts["directions"])
    assert directions["response"]["state"] == "tcp"
    assert directions["response"]["reason"] == "settled"


def test_an_end_that_left_the_map_is_not_enrolled() -> None:
    left = APP._replace(state=EndState.ENROLLED | EndState.LEFT)
    active = cast("dict[str, object]", described(listing(left, SIDECAR))["active"])
    assert active["enrolled"] is False


def test_an_ipv6_address_stands_in_brackets() -> None:
    app = end(Role.APP, ("::1", 40000), ("fd00::9", 80))
    active = cast("dict[str, object]", described(listing(app))["active"])
    assert (active["local"], active["remote"]) == ("[::1]:40000", "[fd00::9]:80")


def test_each_end_sees_its_own_packets() -> None:
    item = listing(APP, SIDECAR)
    app, meant = ("10.0.0.1", 40000), ("10.0.0.9", 80)
    sidecar = ("127.0.0.1", 15001)
    assert flows(item, Way.REQUEST) == {(app, meant), (app, sidecar)}
    assert flows(item, Way.RESPONSE) == {(meant, app), (sidecar, app)}


def test_messages_between_two_listings() -> None:
    def with_messages(count: int) -> Listing:
        return listing(APP, SIDECAR, directions=(QUIET._replace(messages_redirected=count), QUIET))

    assert redirected_since(with_messages(3), with_messages(5), Way.REQUEST) == 2
    assert redirected_since(None, with_messages(5), Way.REQUEST) == 5

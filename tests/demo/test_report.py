"""What the demonstration says of each hop."""

from __future__ import annotations

from accel.demo.agent import Connection, Direction, Strategy, Verified
from accel.demo.measure import Comparison, Figures
from accel.demo.report import DIRECTIONS, HOPS, DemoReport, summarize_hops

REDIRECT = Direction("redirect", None)
MEANT = {hop: dict.fromkeys(DIRECTIONS, Strategy(True, None)) for hop in HOPS}


def connection(hop: str, request: Direction, response: Direction = REDIRECT) -> Connection:
    return Connection(hop, {"request": request, "response": response})


def test_a_hop_is_accelerated_when_all_its_connections_are() -> None:
    hops = summarize_hops([connection(hop, REDIRECT) for hop in HOPS], MEANT)

    assert hops == {hop: dict.fromkeys(DIRECTIONS, "accelerated") for hop in HOPS}


def test_each_direction_has_its_own_reason() -> None:
    untrusted = Direction("tcp", "the receiver is an app")
    hops = summarize_hops([connection("sidecar-app", untrusted)] * 2, MEANT)

    assert hops["sidecar-app"] == {
        "request": "the receiver is an app",
        "response": "accelerated",
    }


def test_a_mixed_hop_tells_how_many_and_the_commonest_reason() -> None:
    seen = [
        connection("sidecar-sidecar", REDIRECT),
        connection("sidecar-sidecar", Direction("tcp", "not drained")),
        connection("sidecar-sidecar", Direction("tcp", "paused")),
        connection("sidecar-sidecar", Direction("tcp", "paused")),
    ]

    hops = summarize_hops(seen, MEANT)

    assert hops["sidecar-sidecar"]["request"] == "1 of 4 connections accelerated; paused"


def test_a_connection_that_carried_nothing_says_nothing() -> None:
    idle = connection("app-sidecar", Direction("idle", None), Direction("idle", None))
    busy = connection("app-sidecar", REDIRECT)

    assert summarize_hops([idle, busy], MEANT)["app-sidecar"]["request"] == "accelerated"
    assert summarize_hops([idle], MEANT)["app-sidecar"]["request"] == "no message was seen"


def test_a_hop_that_is_never_enrolled_has_the_strategys_reason() -> None:
    off = Strategy(False, "FIONREAD era: regressed")
    strategy = MEANT | {"sidecar-app": dict.fromkeys(DIRECTIONS, off)}

    hops = summarize_hops([], strategy)

    assert hops["sidecar-app"]["request"] == "FIONREAD era: regressed"
    assert hops["app-sidecar"]["request"] == "no message was seen"


def test_the_json_has_both_sides_and_their_ratio() -> None:
    figures = Figures(p50_us=1.0, p99_us=2.0, rps=3.0)
    report = DemoReport(
        comparison=Comparison(figures, figures, Figures(1.0, 1.0, 1.0), errors=0),
        hops=summarize_hops([], MEANT),
        verified=Verified(psh_segments=0, messages_redirected=12),
        connections=16,
        rounds=3,
    )

    told = report.to_json()

    assert told["plain"] == told["accelerated"] == {"p50_us": 1.0, "p99_us": 2.0, "rps": 3.0}
    assert told["ratio"] == {"p50_us": 1.0, "p99_us": 1.0, "rps": 1.0}
    assert set(told["hops"]) == set(HOPS)
    assert told["errors"] == 0
    assert told["messages_redirected"] == 12

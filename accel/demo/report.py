"""What a demonstration found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from accel.demo.agent import Connection, Direction, Strategy, Verified
from accel.demo.measure import Comparison

HOPS = ("app-sidecar", "sidecar-sidecar", "sidecar-app")
DIRECTIONS = ("request", "response")
ACCELERATED = "accelerated"


@dataclass(frozen=True)
class DemoReport:
    """Both sides' figures, and what became of each hop.

    Attributes:
        comparison: Medians and ratios.
        hops: By hop and direction, "accelerated" or the reason why not.
        verified: PSH segments seen beside messages redirected, under the same load.
        connections: Connections of the load client.
        rounds: Pairs of measurements behind the medians.
    """

    comparison: Comparison
    hops: Mapping[str, Mapping[str, str]]
    verified: Verified
    connections: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """The report in plain types; a ratio has the name of what it compares, and no unit."""
        return {
            "plain": asdict(self.comparison.plain),
            "accelerated": asdict(self.comparison.accelerated),
            "ratio": asdict(self.comparison.ratio),
            "hops": {hop: dict(directions) for hop, directions in self.hops.items()},
            "psh_segments": self.verified.psh_segments,
            "messages_redirected": self.verified.messages_redirected,
            "errors": self.comparison.errors,
            "connections": self.connections,
            "rounds": self.rounds,
        }


def summarize_hops(
    connections: Sequence[Connection], strategy: Mapping[str, Mapping[str, Strategy]]
) -> dict[str, dict[str, str]]:
    """For each hop and direction: "accelerated", or why not.

    What the connections do counts; the strategy speaks where there are none, as for a
    hop whose sockets are not enrolled at all.
    """
    return {
        hop: {
            direction: _summarize(
                [c.directions[direction] for c in connections if c.hop == hop],
                strategy[hop][direction],
            )
            for direction in DIRECTIONS
        }
        for hop in HOPS
    }


def _summarize(directions: Sequence[Direction], meant: Strategy) -> str:
    # A pool also holds connections that have carried nothing yet.
    seen = [direction for direction in directions if direction.state != "idle"]
    if not seen:
        return "no message was seen" if meant.accelerated else _reason(meant.reason)
    refused = Counter(_reason(d.reason) for d in seen if d.state != "redirect")
    if not refused:
        return ACCELERATED
    reason, _ = refused.most_common(1)[0]
    if refused.total() == len(seen):
        return reason
    return f"{len(seen) - refused.total()} of {len(seen)} connections {ACCELERATED}; {reason}"


def _reason(text: str | None) -> str:
    return text or "no reason was told"

"""What may be said of a connection once both of its ends have told."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

from tests.stress.script import DOWN, UP, Outline, Route
from tests.stress.table import CLIENT, FAR, KINDS, NEAR, SERVER, Outcome, Row, State

# A connection that its client lost may still be on its way to the server.
GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Outage:
    """A worker that was killed, until it worked again.  In seconds of CLOCK_MONOTONIC."""

    kind: int
    worker: int
    since: float
    until: float = math.inf

    def hit(self, route: Route, began: float, ended: float) -> bool:
        """Whether it explains how a connection ended that lived at this time."""
        way = {CLIENT: route.client, NEAR: route.near, FAR: route.far, SERVER: route.server}
        return way[self.kind] == self.worker and began <= self.until and ended >= self.since


class Sentence(enum.Enum):
    COMPLETE = "complete"  # every byte and the end of file, both ways
    ABORTED = "aborted"  # by RST, as its script says
    CUT = "cut"  # by a kill, after nothing but right bytes
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`words` say what is wrong, of a fault; `kind` is the same for faults alike."""

    sentence: Sentence
    kind: str = ""
    words: str = ""


def is_settled(client: Row, server: Row | None, now: float) -> bool:
    """Whether nothing of it will change any more."""
    if client.state is not State.DONE:
        return False
    if server is None:
        return now - client.ended > GRACE_SECONDS
    return server.state is State.DONE


def judge(
    script: Outline,
    client: Row,
    server: Row | None,
    outages: Iterable[Outage],
    *,
    passes_resets: bool,
) -> Judgement:
    """Sentence a settled connection.

    Args:
        server: None if it never heard of the connection.
        passes_resets: The sidecars pass RST on as RST; else it may become an end of file.
    """
    rows = {CLIENT: client} | ({SERVER: server} if server is not None else {})
    for kind, row in rows.items():
        if row.outcome in (Outcome.WRONG, Outcome.EXTRA):
            return _fault("wrong bytes", rows, f"{KINDS[kind]} read what was not sent")
    if _is_as_scripted(script, client, server, passes_resets):
        aborted = script.ending.aborter is not None
        return Judgement(Sentence.ABORTED if aborted else Sentence.COMPLETE)
    began, ended = client.began, max(row.ended for row in rows.values())
    if any(outage.hit(script.route, began, ended) for outage in outages):
        return Judgement(Sentence.CUT)
    for kind, row in rows.items():
        if row.outcome is Outcome.RESET:
            return _fault("reset", rows, f"{KINDS[kind]} met {os.strerror(row.errno)!r}")
        if row.outcome is Outcome.SHORT:
            return _fault("lost bytes", rows, f"{KINDS[kind]} read end of file too early")
        if row.outcome is Outcome.REFUSED:
            return _fault("refused", rows, f"connect: {os.strerror(row.errno)}")
    return _fault("unlike its script", rows, f"it was to end by {script.ending.name}")


def _is_as_scripted(script: Outline, client: Row, server: Row | None, passes_resets: bool) -> bool:
    aborter = script.ending.aborter
    outcomes = (client.outcome, server.outcome if server is not None else None)
    if aborter is None:
        return outcomes == (Outcome.COMPLETE, Outcome.COMPLETE)
    other = outcomes[DOWN if aborter == UP else UP]
    heard = {Outcome.RESET} | (set() if passes_resets else {Outcome.SHORT})
    # A client may be gone before the sidecars have made a way to the server.
    return outcomes[aborter] is Outcome.ABORTED and (other in heard or other is None)


def _fault(kind: str, rows: dict[int, Row], words: str) -> Judgement:
    told = "; ".join(
        f"{KINDS[at]}: {row.outcome.name.lower()} after {row.sent} sent, {row.received} received"
        for at, row in rows.items()
    )
    return Judgement(Sentence.FAULT, kind, f"{words} ({told})")

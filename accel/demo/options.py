"""What a demonstration may be asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How long and how hard the demonstration measures."""

    connections: int = 16
    """Concurrent connections of the load client, each with one request under way."""

    rounds: int = 9
    """Pairs of measurements, plain then accelerated and the next pair the other way round;
    medians over them are told, so an odd number is best."""

    round_seconds: int = 3
    """Length of one measurement; whole seconds, as wrk wants them."""

    trust_apps: bool = False
    """Redirect into the applications as well, wrk and nginx, where this kernel bears it."""

    force_trust: bool = False
    """And where it does not: nginx then hangs on some requests."""

    concurrency: int = 1
    """Worker threads of each Envoy.  Istio's default is two; with two pods, a client and a
    server on a small machine that measures its scheduler."""

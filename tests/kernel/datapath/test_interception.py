"""Whatever leads traffic to a sidecar: REDIRECT and TPROXY by Istio's own rules."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from accel.datapath.layout import Hop, Way
from accel.demo.interception import INBOUND_PORT, OUTBOUND_PORT, Inbound, intercept
from tests.kernel.datapath.bed import (
    PATIENCE_SECONDS,
    Bed,
    Network,
    PodBed,
    attached,
    begin,
    exchange,
)

pytestmark = pytest.mark.kernel

IP_TRANSPARENT = 19  # linux/in.h; Python 3.11 has no name for it
IPV6_TRANSPARENT = 75
APP_PORT = 8080
REQUESTS = 40


@pytest.fixture(params=Inbound, ids=lambda inbound: inbound.value)
def inbound(request: pytest.FixtureRequest) -> Inbound:
    assert isinstance(request.param, Inbound)
    return request.param


@pytest.fixture
def meshed(cgroup: Path, inbound: Inbound) -> Iterator[Bed]:
    """A bed of its own, since the rules stay in its namespaces."""
    with Network(cgroup / "bed") as network:
        for pod in (network.a, network.b):
            intercept(pod.netns, inbound)
        with attached(network) as bed:
            bed.trust()
            yield bed


def _listen_inbound(pod: PodBed, host: str, inbound: Inbound) -> socket.socket:
    if inbound is Inbound.REDIRECT:
        return pod.sidecar.listen(host, INBOUND_PORT)
    six = ":" in host
    sock = pod.sidecar.socket(socket.AF_INET6 if six else socket.AF_INET)
    level, option = (
        (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if six else (socket.IPPROTO_IP, IP_TRANSPARENT)
    )
    sock.setsockopt(level, option, 1)
    sock.bind((host, INBOUND_PORT))
    sock.listen()
    sock.settimeout(PATIENCE_SECONDS)
    return sock


def _hop(
    bed: Bed, client: socket.socket, listener: socket.socket, to: tuple[str, int]
) -> socket.socket:
    begin(bed.keep(client), to)
    server = bed.keep(listener.accept()[0])
    server.setblocking(False)
    exchange(client, server)
    return server


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_request_is_redirected_on_all_three_hops(
    meshed: Bed, inbound: Inbound, family: str
) -> None:
    six = family == "IPv6"
    wildcard, kind = ("::", socket.AF_INET6) if six else ("0.0.0.0", socket.AF_INET)
    a, b = meshed.a, meshed.b
    service = (b.address6 if six else b.address, APP_PORT)
    with ExitStack() as listeners:
        outbound = listeners.enter_context(a.sidecar.listen(wildcard, OUTBOUND_PORT))
        inward = listeners.enter_context(_listen_inbound(b, wildcard, inbound))
        app = listeners.enter_context(b.app.listen(wildcard, APP_PORT))
        for _ in range(REQUESTS):
            _hop(meshed, a.app.socket(kind), outbound, service)
            _hop(meshed, a.sidecar.socket(kind), inward, service)
            to_app = b.sidecar.socket(kind)
            to_app.bind(("::6" if six else "127.0.0.6", 0))
            _hop(meshed, to_app, app, service)

    statistics = meshed.datapath.statistics()
    assert statistics.accepted == 3 * REQUESTS
    assert statistics.refused == {}
    assert statistics.total.messages_tcp == 0
    for hop in Hop:
        for way in Way:
            assert statistics.traffic[hop, way].messages_redirected == REQUESTS
    meshed.assert_forgotten()

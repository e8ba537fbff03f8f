"""Every hop, direction and family: paired, redirected, and counted as what it is."""

from __future__ import annotations

import socket

import pytest

from accel.datapath.layout import Hop, Verdict, Way
from tests.kernel.datapath.bed import Actor, Bed, exchange, read
from tests.patience import few

pytestmark = [pytest.mark.kernel, pytest.mark.essential]

CONNECTIONS = few(200)


def _ends(bed: Bed, hop: Hop) -> tuple[Actor, Actor]:
    return {
        Hop.APP_SIDECAR: (bed.a.app, bed.a.sidecar),
        Hop.SIDECAR_SIDECAR: (bed.a.sidecar, bed.b.sidecar),
        Hop.SIDECAR_APP: (bed.b.sidecar, bed.b.app),
    }[hop]


def _host(bed: Bed, hop: Hop, family: str) -> str:
    if hop is Hop.SIDECAR_SIDECAR:
        return bed.b.address6 if family == "IPv6" else bed.b.address
    return "::1" if family == "IPv6" else "127.0.0.1"


@pytest.mark.parametrize("family", ["IPv4", "IPv6", "v4-mapped"])
def test_each_hop_is_redirected_both_ways(bed: Bed, family: str) -> None:
    bed.trust()
    for hop in Hop:
        active, passive = _ends(bed, hop)
        host = _host(bed, hop, family)
        client, server = bed.pair(active, passive, host, mapped=family == "v4-mapped")
        for _ in range(3):
            exchange(client, server)
        _assert_redirected(bed, client, hop)
    bed.assert_forgotten()


def _assert_redirected(bed: Bed, client: socket.socket, hop: Hop) -> None:
    """Three exchanges, all that went over this hop."""
    listing = bed.record(client)
    assert listing is not None
    connection = listing.connection
    assert (connection.verdict, connection.hop) == (Verdict.ACCEPTED, hop)
    for way, size in zip(Way, (9, 10), strict=True):
        direction = connection.directions[way]
        assert (direction.messages_redirected, direction.bytes_redirected) == (3, 3 * size)
        assert (direction.messages_tcp, direction.bytes_tcp) == (0, 0)
        traffic = bed.datapath.statistics().traffic[hop, way]
        assert (traffic.messages_redirected, traffic.bytes_redirected) == (3, 3 * size)
        assert traffic.messages_tcp == 0


@pytest.mark.parametrize("hop", Hop, ids=lambda hop: hop.label)
def test_every_connection_is_paired(bed: Bed, hop: Hop) -> None:
    bed.trust()
    active, passive = _ends(bed, hop)
    host = _host(bed, hop, "IPv4")
    with passive.listen(host) as listener:
        for number in range(CONNECTIONS):
            client, server = bed.connect(active, listener, host)
            exchange(client, server, b"%d" % number)

    statistics = bed.datapath.statistics()
    assert statistics.accepted == CONNECTIONS
    assert statistics.refused == {}
    assert bed.enrolled() == 2 * CONNECTIONS
    assert [bed.redirected(hop, way) for way in Way] == [CONNECTIONS, CONNECTIONS]
    assert statistics.total.messages_tcp == 0
    bed.assert_forgotten()


def test_response_may_come_first(bed: Bed) -> None:
    """A server that greets, as SMTP's and MySQL's do."""
    bed.trust()
    client, server = bed.pair(bed.a.sidecar, bed.a.app)
    server.send(b"220 hello")
    assert read(client, 9) == b"220 hello"
    assert bed.redirected(Hop.SIDECAR_APP, Way.RESPONSE) == 1

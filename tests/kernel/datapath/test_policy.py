"""Who may talk to whom by the short cut, and who is never touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accel.core.model import Role
from accel.core.plan import (
    Action,
    ContainerEntry,
    DropAddress,
    DropContainer,
    DropPod,
    SetContainer,
)
from accel.datapath.layout import Hop, Way, address_bytes
from accel.datapath.loading import Constants
from tests.kernel.datapath.bed import (
    PROXY_UID,
    Actor,
    Bed,
    Network,
    attached,
    begin,
    eventually,
    exchange,
    facts,
)
from tests.patience import few

pytestmark = pytest.mark.kernel

IPPROTO_MPTCP = 262

Ends = Callable[[Bed], tuple[Actor, Actor, str]]

FORBIDDEN: dict[str, Ends] = {
    "two apps of one pod": lambda bed: (bed.a.app, bed.a.app, "127.0.0.1"),
    "two sidecars of one pod": lambda bed: (bed.a.sidecar, bed.a.sidecar, "127.0.0.1"),
    "app to the sidecar of another pod": lambda bed: (bed.a.app, bed.b.sidecar, bed.b.address),
    "sidecar to the app of another pod": lambda bed: (bed.a.sidecar, bed.b.app, bed.b.address),
    "apps of two pods": lambda bed: (bed.a.app, bed.b.app, bed.b.address),
    "app to a helper with the proxy's uid": lambda bed: (bed.a.app, bed.a.helper, "127.0.0.1"),
    "helper with the proxy's uid to an app": lambda bed: (bed.a.helper, bed.a.app, "127.0.0.1"),
}


@pytest.mark.parametrize("ends", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_other_roles_are_refused(bed: Bed, ends: Ends) -> None:
    bed.trust()
    active, passive, host = ends(bed)
    client, server = bed.pair(active, passive, host)
    exchange(client, server)
    exchange(client, server)

    assert bed.reason(client) == "roles"
    statistics = bed.datapath.statistics()
    assert (statistics.accepted, statistics.total.messages_redirected) == (0, 0)
    assert statistics.refused == {"roles": 1}
    eventually(lambda: bed.enrolled() == 0)
    bed.assert_forgotten()


def test_helper_with_the_proxys_uid_is_an_app(bed: Bed) -> None:
    bed.trust()
    client, server = bed.pair(bed.a.helper, bed.a.sidecar)
    exchange(client, server)
    listing = bed.record(client)
    assert listing is not None
    assert listing.connection.hop == Hop.APP_SIDECAR
    assert [end.role for end in listing.connection.ends] == [Role.APP, Role.SIDECAR]
    assert listing.connection.ends[0].uid == PROXY_UID


def test_uid_stands_in_where_the_cgroup_does_not_tell(bed: Bed) -> None:
    shared = (bed.a.app.cgroup_id, bed.a.sidecar.cgroup_id)
    bed.mesh(bed.a, trust_apps=True, enrol_apps=True, roles_by_uid=True, proxy_uid=PROXY_UID)
    bed.datapath.apply([DropContainer(cgroup_id) for cgroup_id in shared])

    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    exchange(client, server)
    assert [bed.redirected(Hop.APP_SIDECAR, way) for way in Way] == [1, 1]


def test_uid_does_not_stand_in_for_a_cgroup_that_tells(bed: Bed) -> None:
    bed.mesh(bed.a, trust_apps=True, enrol_apps=True, roles_by_uid=True, proxy_uid=PROXY_UID)
    entry = ContainerEntry(bed.a.inode, Role.APP)
    bed.datapath.apply([SetContainer(bed.a.helper.cgroup_id, entry)])
    client, server = bed.pair(bed.a.app, bed.a.helper)
    exchange(client, server)
    assert bed.reason(client) == "roles"


def test_role_holds_in_its_own_namespace_only(bed: Bed) -> None:
    """A container entry of a cgroup that also runs elsewhere says nothing there."""
    bed.trust()
    entry = ContainerEntry(bed.b.inode, Role.SIDECAR)
    bed.datapath.apply([SetContainer(bed.a.sidecar.cgroup_id, entry)])
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    exchange(client, server)
    assert bed.reason(client) == "roles"


@pytest.mark.parametrize("end", ["active", "passive", "both"])
def test_excluded_container_is_never_touched(bed: Bed, end: str) -> None:
    bed.trust()
    excluded = ContainerEntry(bed.a.inode, Role.EXCLUDED)
    bed.datapath.apply([SetContainer(bed.a.helper.cgroup_id, excluded)])
    active = bed.a.sidecar if end == "passive" else bed.a.helper
    passive = bed.a.sidecar if end == "active" else bed.a.helper
    client, server = bed.pair(active, passive)
    for _ in range(3):
        exchange(client, server)
    assert bed.datapath.statistics().total.messages_redirected == 0
    for listing in bed.datapath.connections():
        assert Role.EXCLUDED not in [end.role for end in listing.connection.ends]
    eventually(lambda: bed.enrolled() == 0)
    bed.assert_forgotten()


def test_sidecar_to_an_address_that_is_no_pod(bed: Bed) -> None:
    """The stray namespace is out of reach, so B with its address forgotten stands for it."""
    bed.trust()
    client, server = bed.pair(bed.b.sidecar, bed.a.sidecar, bed.a.address)
    exchange(client, server)
    assert bed.reason(client) is None

    gone: list[Action] = [DropAddress(address_bytes(bed.b.address).bytes), DropPod(bed.b.inode)]
    bed.datapath.apply(gone)
    before = bed.enrolled()
    client, server = bed.pair(bed.a.sidecar, bed.b.sidecar, bed.b.address)
    assert bed.reason(client) == "remote"
    assert bed.enrolled() == before
    exchange(client, server)


def test_app_whose_peer_is_no_pod_leaves_at_its_first_acknowledgement(bed: Bed) -> None:
    bed.trust()
    bed.datapath.apply([DropPod(bed.b.inode)])
    client, server = bed.pair(bed.a.app, bed.b.app, bed.b.address)
    assert bed.enrolled() == 1
    exchange(client, server)
    eventually(lambda: bed.enrolled() == 0)
    assert bed.reason(client) == "no_peer"
    exchange(client, server)
    assert bed.datapath.statistics().evicted == 1
    bed.assert_forgotten()


@pytest.mark.parametrize("where", ["stray", "host"])
def test_who_is_no_pod_is_never_touched(bed: Bed, where: str) -> None:
    """10,000 connections of somebody else: no record, no socket enrolled, nothing counted."""
    bed.trust()
    actor = bed.network.stray if where == "stray" else bed.network.host
    seen = 0
    with actor.listen() as listener:
        address = listener.getsockname()
        for _ in range(few(100)):
            clients = actor.sockets(100)
            servers = []
            for client in clients:
                begin(client, address, blocking=True)
                servers.append(listener.accept()[0])
            exchange(clients[0], servers[0])
            seen += bed.enrolled() + len(bed.datapath.connections())
            for sock in clients + servers:
                sock.close()
    assert seen == 0
    statistics = bed.datapath.statistics()
    assert (statistics.accepted, statistics.refused, statistics.evicted) == (0, {}, 0)
    assert statistics.total.messages_tcp == 0


def test_mptcp_is_refused(bed: Bed) -> None:
    bed.trust()
    try:
        listener = bed.a.sidecar.socket(protocol=IPPROTO_MPTCP)
    except OSError:
        pytest.skip("no MPTCP")
    with listener, bed.a.app.socket(protocol=IPPROTO_MPTCP) as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        begin(client, listener.getsockname(), blocking=True)
        with listener.accept()[0] as server:
            exchange(client, server)
            assert bed.enrolled() == 0
            assert bed.refused("mptcp") == 1
            assert bed.datapath.statistics().accepted == 0


def test_self_connected_socket_is_refused(bed: Bed) -> None:
    bed.trust()
    with bed.a.app.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        begin(sock, sock.getsockname(), blocking=True)
        sock.send(b"to myself")
        assert sock.recv(100) == b"to myself"
        assert bed.enrolled() == 0
        assert bed.datapath.statistics().refused == {"self_connected": 1}
    bed.assert_forgotten()


def test_full_table_degrades_to_tcp(network: Network) -> None:
    with attached(network, room=8) as bed:
        bed.trust()
        with bed.a.sidecar.listen() as listener:
            pairs = [bed.connect(bed.a.app, listener) for _ in range(30)]
            for client, server in pairs:
                exchange(client, server)
        statistics = bed.datapath.statistics()
        assert statistics.accepted == 8
        assert statistics.refused["connections_full"] >= 22
        assert len(bed.datapath.connections()) == 8
        assert bed.redirected() == 8
        bed.assert_forgotten()

        # And there is room again.
        exchange(*bed.pair(bed.a.app, bed.a.sidecar))
        assert bed.redirected() == 9


def test_nothing_into_a_proxy_that_stops_short_of_the_second_queue(network: Network) -> None:
    with attached(network, Constants(facts().charges_rmem, one_queue=False)) as bed:
        for pod in (bed.a, bed.b):
            bed.mesh(pod, trust_apps=True, enrol_apps=True, stops_short=True)
        exchange(*(hop := bed.pair(bed.a.app, bed.a.sidecar)))
        assert bed.reason(hop[0]) is None
        assert bed.redirected(Hop.APP_SIDECAR, Way.RESPONSE) == 1
        assert bed.tcp_reasons() == {"two_queues": 1}

        # Neither way: its sockets are left alone.
        between = bed.pair(bed.a.sidecar, bed.b.sidecar, bed.b.address)
        exchange(*between)
        assert bed.reason(between[0]) == "two_queues"
        bed.mesh(bed.a, enrol_apps=True, stops_short=True)
        back = bed.pair(bed.a.sidecar, bed.a.app)
        exchange(*back)
        assert bed.reason(back[0]) == "untrusted"
        eventually(lambda: bed.enrolled() == 2)
        bed.assert_forgotten()

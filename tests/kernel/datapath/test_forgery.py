"""Connections that are not what they seem: repaired, reused, with data in the SYN."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress

import pytest

from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import Bed, begin, exchange, read

pytestmark = pytest.mark.kernel

# linux/tcp.h; Python has no names for them.
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
TCP_REPAIR_OFF_NO_WP = -1
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2

TFO_CLIENT, TFO_SERVER, TFO_CLIENT_NO_COOKIE, TFO_SERVER_NO_COOKIE = 1, 2, 4, 0x200


def _repair(sock: socket.socket, send_seq: int, receive_seq: int) -> None:
    """Choose the sequence numbers of a connection that never was (criu's way)."""
    sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    for queue, sequence in ((TCP_SEND_QUEUE, send_seq), (TCP_RECV_QUEUE, receive_seq)):
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, struct.pack("I", sequence))


def _disconnect(sock: socket.socket) -> None:
    """connect() to AF_UNSPEC, which Python does not offer."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("@H14x", socket.AF_UNSPEC)
    if libc.connect(sock.fileno(), address, len(address)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_repaired_connection_is_refused(bed: Bed) -> None:
    bed.trust()
    with bed.a.app.socket() as forged:
        _repair(forged, 1_000_000, 2_000_000)
        forged.bind(("127.0.0.1", 0))
        begin(forged, ("127.0.0.1", 9), blocking=True)
        assert bed.reason(forged) == "repaired"
        assert bed.enrolled() == 0
        assert forged.send(b"into the void") == 13
    assert bed.datapath.statistics().total.messages_redirected == 0
    bed.assert_forgotten()


@pytest.mark.parametrize("container", ["app", "sidecar"])
@pytest.mark.parametrize("claims", ["active", "passive"])
def test_forged_numbers_steal_nothing(bed: Bed, container: str, claims: str) -> None:
    """An attacker who knows both numbers of a connection claims to be one of its ends."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    victim = bed.record(client)
    assert victim is not None
    key = (victim.key.active_seq, victim.key.passive_seq)
    attacker = bed.a.app if container == "app" else bed.a.sidecar
    with attacker.socket() as forged:
        _repair(forged, *(key if claims == "active" else key[::-1]))
        forged.bind(("127.0.0.1", 0))
        begin(forged, ("127.0.0.1", 9), blocking=True)

        forged.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
        forged.setblocking(False)
        with suppress(ConnectionError):
            forged.send(b"injected")
        exchange(client, server, b"private")
        with pytest.raises((BlockingIOError, ConnectionError)):
            forged.recv(100)
        assert bed.enrolled() == 2
    exchange(client, server)
    assert [bed.redirected(way=way) for way in Way] == [2, 2]
    assert sum(bed.datapath.statistics().refused.values()) == 1
    bed.assert_forgotten()


@pytest.mark.parametrize("before", ["old bytes unread", "nothing unread"])
@pytest.mark.parametrize("who", ["app", "sidecar"])
def test_reconnected_socket_reads_no_old_bytes(bed: Bed, before: str, who: str) -> None:
    bed.trust()
    active, passive = bed.a.app, bed.a.sidecar
    if who == "sidecar":
        active, passive = passive, active
    hop = Hop.APP_SIDECAR if who == "app" else Hop.SIDECAR_APP
    with passive.listen() as first, passive.listen() as second:
        client, server = bed.connect(active, first)
        server.send(b"old bytes")
        if before == "nothing unread":
            assert read(client, 9) == b"old bytes"
        assert bed.redirected(hop, Way.RESPONSE) == 1

        _disconnect(client)
        begin(client, second.getsockname())
        again = bed.keep(second.accept()[0])
        again.setblocking(False)
        again.send(b"new bytes")
        assert read(client, 9) == b"new bytes"
        exchange(client, again)
    server.close()
    assert bed.redirected(hop, Way.RESPONSE) == 3
    assert bed.enrolled() == 2
    bed.assert_forgotten()


def test_data_in_the_syn_is_refused(bed: Bed) -> None:
    bed.trust()
    modes = TFO_CLIENT | TFO_SERVER | TFO_CLIENT_NO_COOKIE | TFO_SERVER_NO_COOKIE
    netns = bed.a.netns
    ours = int(netns.run(("sysctl", "-n", "net.ipv4.tcp_fastopen")))
    netns.set_sysctl("net.ipv4.tcp_fastopen", modes)
    try:
        with bed.a.sidecar.listen() as listener, bed.a.app.socket() as client:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
            client.sendto(b"early ", socket.MSG_FASTOPEN, listener.getsockname())
            with listener.accept()[0] as server:
                assert client.send(b"later") == 5
                assert read(server, 11) == b"early later"
                exchange(client, server)
                assert bed.enrolled() == 0
        assert bed.datapath.statistics().accepted == 0
        assert bed.refused("fast_open") >= 1
        bed.assert_forgotten()
    finally:
        netns.set_sysctl("net.ipv4.tcp_fastopen", ours)


def test_fast_open_without_data_in_the_syn(bed: Bed) -> None:
    """The first, cookie-asking try: its data follows the handshake, past sk_msg."""
    bed.trust()
    netns = bed.a.netns
    ours = int(netns.run(("sysctl", "-n", "net.ipv4.tcp_fastopen")))
    netns.set_sysctl("net.ipv4.tcp_fastopen", TFO_CLIENT | TFO_SERVER)
    try:
        with bed.a.sidecar.listen() as listener, bed.a.app.socket() as client:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
            client.sendto(b"early ", socket.MSG_FASTOPEN, listener.getsockname())
            with listener.accept()[0] as server:
                client.send(b"later")
                assert read(server, 11) == b"early later"
                exchange(client, server)
        bed.assert_forgotten()
    finally:
        netns.set_sysctl("net.ipv4.tcp_fastopen", ours)

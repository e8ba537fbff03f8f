"""Flows read from packets, and the filter that picks them, on real sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.datapath.capture import _attach_filter, _drain, capture, flow_of
from accel.demo.netns import Netns

PATIENCE_SECONDS = 10.0
ETH_P_ALL = 3
PACKET_OUTGOING = 4


def ipv4(*, options: bytes = b"", protocol: int = socket.IPPROTO_TCP) -> bytes:
    words = 5 + len(options) // 4
    return (
        struct.pack("!BBHHHBBH", 0x40 | words, 0, 0, 0, 0, 64, protocol, 0)
        + socket.inet_aton("10.0.0.1")
        + socket.inet_aton("10.0.0.2")
        + options
    )


def ipv6(*, next_header: int = socket.IPPROTO_TCP) -> bytes:
    head = struct.pack("!IHBB", 0x60000000, 20, next_header, 64)
    return head + IPv6Address("fd00::1").packed + IPv6Address("fd00::2").packed


PORTS = struct.pack("!HH", 40000, 80)


def test_flow_of_ipv4_with_and_without_options() -> None:
    flow = (("10.0.0.1", 40000), ("10.0.0.2", 80))
    assert flow_of(ipv4() + PORTS) == flow
    assert flow_of(ipv4(options=bytes(8)) + PORTS) == flow


def test_flow_of_ipv6() -> None:
    assert flow_of(ipv6() + PORTS) == (("fd00::1", 40000), ("fd00::2", 80))


def test_a_packet_cut_short_has_no_flow() -> None:
    for whole in (ipv4() + PORTS, ipv6() + PORTS):
        assert all(flow_of(whole[:size]) is None for size in range(len(whole)))


@given(st.binary(max_size=64))
def test_nothing_on_a_wire_is_an_error(packet: bytes) -> None:
    flow_of(packet)


@pytest.fixture
def netns() -> Iterator[Netns]:
    if os.geteuid() != 0:
        pytest.skip("makes a network namespace: run as root")
    with Netns() as netns:
        yield netns


Pair = tuple[socket.socket, socket.socket]


def connected(netns: Netns, family: int) -> Pair:
    """A TCP connection over the namespace's loopback."""

    def make() -> Pair:
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_server((host, 0), family=family) as listener:
            client = socket.create_connection(listener.getsockname()[:2])
            return client, listener.accept()[0]

    client, server = netns.call(make)
    for end in (client, server):
        end.settimeout(PATIENCE_SECONDS)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def exchange(pair: Pair) -> None:
    """One message and two answers, each in a segment of its own."""
    client, server = pair
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    for answer in (b"answer", b"and more"):
        server.sendall(answer)
        assert client.recv(100) == answer


@pytest.mark.kernel
def test_the_filter_lets_messages_through_and_nothing_else(netns: Netns) -> None:
    def listen() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))

    seen: Counter[object] = Counter()
    expected: Counter[object] = Counter()
    with netns.call(listen) as packets:
        _attach_filter(packets)
        packets.setblocking(False)
        _drain(packets)
        with netns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as datagrams:
            datagrams.sendto(bytes([0xFF] * 64), ("127.0.0.1", 9))  # PSH would be set in it
        for family in (socket.AF_INET, socket.AF_INET6):
            client, server = connected(netns, family)
            with client, server:
                flow = (client.getsockname()[:2], client.getpeername()[:2])
                exchange((client, server))
            expected[flow] += 1
            expected[flow[::-1]] += 2
        while True:
            try:
                packet, address = packets.recvfrom(128)
            except BlockingIOError:
                break
            if address[2] != PACKET_OUTGOING:
                seen[flow_of(packet)] += 1
    assert seen == expected


@pytest.mark.kernel
def test_a_capture_counts_while_messages_pass(netns: Netns) -> None:
    over = threading.Event()
    rounds = 0
    client, server = connected(netns, socket.AF_INET)

    def talk() -> None:
        nonlocal rounds
        while not over.wait(0.005):
            exchange((client, server))
            rounds += 1

    with client, server:
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            captured = netns.call(lambda: capture(0.3))
        finally:
            over.set()
            thread.join()
        flow = (client.getsockname(), client.getpeername())
    assert captured.dropped == 0
    assert captured.psh_segments.keys() == {flow, flow[::-1]}
    assert 0 < captured.psh_segments[flow] <= rounds
    assert 0 < captured.psh_segments[flow[::-1]] <= 2 * rounds


@pytest.mark.kernel
def test_a_capture_of_silence_ends(netns: Netns) -> None:
    assert netns.call(lambda: capture(0.01)).psh_segments == {}

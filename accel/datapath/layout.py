"""bpf/accel.h for Python: what the programs and the agent say to each other.

Offsets and sizes are not written here: they come from the object's BTF, which
is held against these records when a map is opened (accel.bpf.format.codec).
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum, IntFlag
from ipaddress import IPv6Address
from typing import NamedTuple

# Of a packet for accel_look, in bytes and struct listings.
LISTINGS_START = 16
LISTINGS_AT_ONCE = 11


class Hop(IntEnum):
    """Which of a request's three connections; HOP_* in accel.h."""

    APP_SIDECAR = 1
    SIDECAR_SIDECAR = 2
    SIDECAR_APP = 3

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


class Way(IntEnum):
    """The two directions of a connection, by the end that sends; ACTIVE and PASSIVE."""

    REQUEST = 0
    RESPONSE = 1

    @property
    def label(self) -> str:
        return self.name.lower()


class Verdict(IntEnum):
    PENDING = 0
    ACCEPTED = 1
    REFUSED = 2


class PodFlags(IntFlag):
    TRUST_APPS = 1
    ENROL_APPS = 2
    ROLES_BY_UID = 4
    STOPS_SHORT = 8


class ContainerFlags(IntFlag):
    SPLICES = 1


class EndState(IntFlag):
    ENROLLED = 1
    LEFT = 2
    ONE_QUEUE = 4


class EventKind(IntEnum):
    ACCEPTED = 1
    REFUSED = 2
    EVICTED = 3
    CLOSED = 4


class TcpState(IntEnum):
    """include/net/tcp_states.h; GONE is ours."""

    GONE = 0
    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


class PodValue(NamedTuple):
    flags: int
    proxy_uid: int


class ContainerValue(NamedTuple):
    netns: int
    role: int
    flags: int


class AddressBytes(NamedTuple):
    """16 bytes in network order; IPv4 as ::ffff:a.b.c.d."""

    bytes: bytes

    def __str__(self) -> str:
        address = IPv6Address(self.bytes)
        return str(address.ipv4_mapped or address)


class ConnectionKey(NamedTuple):
    active_seq: int
    passive_seq: int


class End(NamedTuple):
    sock: int
    cookie: int
    cgroup_id: int
    local_address: AddressBytes
    remote_address: AddressBytes
    local_port: int
    remote_port: int
    netns: int
    uid: int
    role: int
    state: int


class Direction(NamedTuple):
    messages_redirected: int
    bytes_redirected: int
    messages_tcp: int
    bytes_tcp: int
    queued_messages: int
    queued_bytes: int
    clear_at: int
    epoch: int
    policy: int
    reason: int
    from_untrusted: int
    memory: int
    memory_asked: int


class Connection(NamedTuple):
    established_ns: int
    ends: tuple[End, End]
    directions: tuple[Direction, Direction]
    closed: int
    verdict: int
    hop: int
    reason: int


class LiveEnd(NamedTuple):
    tcp_state: int
    queued_bytes: int


class Listing(NamedTuple):
    key: ConnectionKey
    connection: Connection
    live: tuple[LiveEnd, LiveEnd]


class EventRecord(NamedTuple):
    at_ns: int
    kind: int
    key: ConnectionKey
    connection: Connection


def address_bytes(text: str) -> AddressBytes:
    """The key of an address as people write it."""
    if ":" in text:
        return AddressBytes(socket.inet_pton(socket.AF_INET6, text))
    return AddressBytes(struct.pack("!10x2s4s", b"\xff\xff", socket.inet_aton(text)))

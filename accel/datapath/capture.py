"""How many segments with data still cross a pod's interfaces: the proof that they do not.

A segment that carries the end of a write has PSH set, so PSH counts stand for
messages.  The kernel filters; Python sees PSH segments only.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_PACKET_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SNAP_BYTES = 128

# Classic BPF on a cooked packet, which begins with the IP header: TCP, PSH set.
# (code, jump if true, jump if false, operand); see linux/filter.h.
_LD_B, _AND, _JEQ, _JSET, _LDX_MSH, _LD_B_X, _RET = 0x30, 0x54, 0x15, 0x45, 0xB1, 0x50, 0x06
_PSH = 0x08
_FILTER = (
    (_LD_B, 0, 0, 0),
    (_AND, 0, 0, 0xF0),
    (_JEQ, 0, 5, 0x40),  # IPv4
    (_LD_B, 0, 0, 9),
    (_JEQ, 0, 9, socket.IPPROTO_TCP),
    (_LDX_MSH, 0, 0, 0),
    (_LD_B_X, 0, 0, 13),
    (_JSET, 5, 6, _PSH),
    (_JEQ, 0, 5, 0x60),  # IPv6, without extension headers
    (_LD_B, 0, 0, 6),
    (_JEQ, 0, 3, socket.IPPROTO_TCP),
    (_LD_B, 0, 0, 40 + 13),
    (_JSET, 0, 1, _PSH),
    (_RET, 0, 0, _SNAP_BYTES),
    (_RET, 0, 0, 0),
)

Endpoint = tuple[str, int]
Flow = tuple[Endpoint, Endpoint]
"""One direction of a connection as packets show it: from, to."""


@dataclass(frozen=True, slots=True)
class Capture:
    """PSH segments by flow, and how many the kernel had no room to hand over."""

    psh_segments: Mapping[Flow, int]
    dropped: int


def capture(seconds: float) -> Capture:
    """Count PSH segments on every interface of the calling thread's network namespace.

    On loopback each segment passes twice; it is counted where it arrives.
    """
    counts: Counter[Flow] = Counter()
    every_protocol = socket.htons(_ETH_P_ALL)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, every_protocol) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        _attach_filter(sock)
        sock.setblocking(False)
        _drain(sock)
        for packet, address in _packets(sock, seconds):
            if address[0] == "lo" and address[2] == _PACKET_OUTGOING:
                continue
            flow = flow_of(packet)
            if flow is not None:
                counts[flow] += 1
        statistics = sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
    return Capture(counts, struct.unpack("II", statistics)[1])


def flow_of(packet: bytes) -> Flow | None:
    """The flow of an IP packet that carries TCP; None if it is cut short."""
    if not packet:
        return None
    if packet[0] >> 4 == 4:
        # What comes from a wire may claim a header shorter than the addresses in it.
        header = max((packet[0] & 15) * 4, 20)
        source, destination = packet[12:16], packet[16:20]
    else:
        header, source, destination = 40, packet[8:24], packet[24:40]
    if len(packet) < header + 4:
        return None
    ports = struct.unpack_from("!HH", packet, header)
    return (str(ip_address(source)), ports[0]), (str(ip_address(destination)), ports[1])


def _attach_filter(sock: socket.socket) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(_FILTER), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _drain(sock: socket.socket) -> None:
    """Throw away what came before the filter did."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(_SNAP_BYTES)


def _packets(sock: socket.socket, seconds: float) -> Iterator[tuple[bytes, tuple[str, int, int]]]:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return
        try:
            packet, address = sock.recvfrom(_SNAP_BYTES)
        except BlockingIOError:
            continue
        yield packet, address

"""What the reasons of bpf/accel.h mean to the person who reads one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from accel.cli import output

MEANINGS: Mapping[str, str] = {
    "no_peer": "the other end is not in a meshed pod of this node",
    "remote": "a sidecar's connection to an address that is no pod's on this node",
    "roles": "neither an application and its own sidecar, nor the sidecars of two pods",
    "fionread": "enrolled, the application's FIONREAD would be wrong on this kernel",
    "blocking": "an application that is not trusted reads this socket blocking",
    "repaired": "made by TCP_REPAIR, not by a handshake",
    "mptcp": "Multipath TCP",
    "fast_open": "data travelled with the SYN",
    "self_connected": "the socket is connected to itself",
    "kernel_socket": "it belongs to the kernel, not to a process",
    "upper_layer": "kTLS, or another protocol in the kernel: on it, or asked for before",
    "zero_copy": "it sends with MSG_ZEROCOPY, or one like it asked to",
    "early_data": "bytes were already on their way when it was established",
    "duplicate": "its sequence numbers are those of another connection",
    "connections_full": "no room to remember it: raise max_connections",
    "sockets_full": "no room for its socket: raise max_connections",
    "no_storage": "the socket has no memory left for a note on it (net.core.optmem_max)",
    "socket_taken": "another sockmap user on this node has the socket",
    "enrol_failed": "the kernel refused the socket",
    "pending": "the other end is not established yet",
    "off": "acceleration of this node is paused, or was removed",
    "paused": "acceleration of a pod is paused",
    "withdrawn": "a pod is no longer meshed, or switched off in the settings",
    "untrusted": "the receiver is an application that is not trusted",
    "splices": "the receiver runs a program known to read by splice",
    "two_queues": "the receiver would miss what waits behind redirected bytes in another queue",
    "low_water": "the receiver waits for more than one byte (SO_RCVLOWAT)",
    "peer_busy": "the receiver's socket was locked: a redirect would have waited for it",
    "closing": "one end has begun to close",
    "in_tcp": "earlier bytes of this direction are still in the TCP path",
    "settled": "bytes went by TCP to a blocking reader: TCP for good",
    "queue_bytes": "the receiver is behind, in bytes",
    "queue_messages": "the receiver is behind, in messages",
    "not_accepted": "the application has not accepted it yet, and this kernel would misaccount",
    "no_memory": "TCP's memory (net.ipv4.tcp_mem), or the receiver's cgroup, is nearly used up",
    "peer_gone": "the other end left",
}


def explain(reasons: Iterable[str]) -> None:
    """A line for each of these, below the table that names them."""
    known = [name for name in dict.fromkeys(reasons) if name in MEANINGS]
    width = max(map(len, known), default=0)
    for name in sorted(known):
        output.line(f"  {name:<{width}}  {MEANINGS[name]}")


def count(title: str, numbers: Mapping[str, int]) -> None:
    """Most frequent first, each with what it means."""
    if not numbers:
        return
    output.line(title)
    names = max(map(len, numbers))
    widest = max(len(f"{number:,}") for number in numbers.values())
    for name, number in sorted(numbers.items(), key=lambda item: (-item[1], item[0])):
        output.line(f"  {number:>{widest},}  {name:<{names}}  {MEANINGS.get(name, '')}".rstrip())

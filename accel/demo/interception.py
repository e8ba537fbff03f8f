"""The packet rules Istio's init container puts into a pod.

Chains, order and marks are those of Istio's istio-iptables; only the port exclusions for
telemetry are left out, since nothing listens there.  One text serves both families, with
its own loopback and magic source address: a sidecar dials its app from 127.0.0.6 or ::6,
which no rule may catch again.

One rule is our own, and only with TPROXY: what the sidecar sends its app bears Istio's
mark and the client's address, and leaves the nat table before the rules that would send
it back to the sidecar.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from accel.demo.netns import Netns

PROXY_UID = 1337
OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008
TPROXY_MARK = 1337
TPROXY_TABLE = 133
TO_SELF_MARK = 1338


class Inbound(enum.Enum):
    """How traffic that enters a pod reaches its sidecar."""

    REDIRECT = "redirect"
    TPROXY = "tproxy"


@dataclass(frozen=True)
class Family:
    """What differs between the address families."""

    restore: str
    ip_option: str
    loopback: str
    magic_source: str
    everything: str


FAMILIES = (
    Family("iptables-restore", "-4", "127.0.0.1/32", "127.0.0.6/32", "0.0.0.0/0"),
    Family("ip6tables-restore", "-6", "::1/128", "::6/128", "::/0"),
)


def intercept(netns: Netns, inbound: Inbound) -> None:
    """Send a pod's TCP traffic through its sidecar."""
    for family in FAMILIES:
        netns.run((family.restore,), stdin=rules(family, inbound))
        if inbound is Inbound.TPROXY:
            _deliver_marked_packets_locally(netns, family)
    # Not there by default, unlike all of 127/8.
    netns.run(("ip", "-6", "addr", "add", "::6/128", "dev", "lo", "nodad"))
    if inbound is Inbound.TPROXY:
        # The sidecar dials its app from the client's address, over loopback.
        for interface in ("all", "default", "lo", "eth0"):
            netns.set_sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)


def rules(family: Family, inbound: Inbound) -> str:
    """The rule set in the language of iptables-restore."""
    tables = [_nat(family, inbound)]
    if inbound is Inbound.TPROXY:
        tables.append(_mangle(family))
    return "\n".join(line for table in tables for line in table) + "\n"


def _nat(family: Family, inbound: Inbound) -> list[str]:
    inbound_rules = [
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
        f"-A ISTIO_INBOUND -p tcp --dport {HBONE_PORT} -j RETURN",
        "-A ISTIO_INBOUND -p tcp --dport 22 -j RETURN",
        "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
    ]
    marked = f"-A ISTIO_OUTPUT -o lo -m mark --mark {TPROXY_MARK} -j RETURN"
    to_self = f"! -d {family.loopback} -o lo -p tcp ! --dport {HBONE_PORT}"
    return [
        "*nat",
        ":ISTIO_INBOUND - [0:0]",
        ":ISTIO_IN_REDIRECT - [0:0]",
        ":ISTIO_OUTPUT - [0:0]",
        ":ISTIO_REDIRECT - [0:0]",
        *(inbound_rules if inbound is Inbound.REDIRECT else ()),
        "-A OUTPUT -p tcp -j ISTIO_OUTPUT",
        f"-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {INBOUND_PORT}",
        f"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}",
        *([marked] if inbound is Inbound.TPROXY else ()),
        f"-A ISTIO_OUTPUT -s {family.magic_source} -o lo -j RETURN",
        f"-A ISTIO_OUTPUT {to_self} -m owner --uid-owner {PROXY_UID} -j ISTIO_IN_REDIRECT",
        f"-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner {PROXY_UID} -j RETURN",
        f"-A ISTIO_OUTPUT -m owner --uid-owner {PROXY_UID} -j RETURN",
        f"-A ISTIO_OUTPUT {to_self} -m owner --gid-owner {PROXY_UID} -j ISTIO_IN_REDIRECT",
        f"-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner {PROXY_UID} -j RETURN",
        f"-A ISTIO_OUTPUT -m owner --gid-owner {PROXY_UID} -j RETURN",
        f"-A ISTIO_OUTPUT -d {family.loopback} -j RETURN",
        "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
        "COMMIT",
    ]


def _mangle(family: Family) -> list[str]:
    target = f"-j TPROXY --on-port {INBOUND_PORT} --tproxy-mark {TPROXY_MARK}/0xffffffff"
    return [
        "*mangle",
        ":ISTIO_DIVERT - [0:0]",
        ":ISTIO_INBOUND - [0:0]",
        ":ISTIO_TPROXY - [0:0]",
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
        f"-A PREROUTING -p tcp -m mark --mark {TPROXY_MARK} -j CONNMARK --save-mark",
        f"-A OUTPUT -o lo -p tcp -m mark --mark {TPROXY_MARK} -j RETURN",
        *(
            f"-A OUTPUT ! -d {family.loopback} -o lo -p tcp -m owner --{owner}-owner {PROXY_UID}"
            f" -j MARK --set-mark {TO_SELF_MARK}"
            for owner in ("uid", "gid")
        ),
        f"-A OUTPUT -p tcp -m connmark --mark {TPROXY_MARK} -j CONNMARK --restore-mark",
        f"-A ISTIO_DIVERT -j MARK --set-mark {TPROXY_MARK}",
        "-A ISTIO_DIVERT -j ACCEPT",
        f"-A ISTIO_INBOUND -p tcp -m mark --mark {TPROXY_MARK} -j RETURN",
        f"-A ISTIO_INBOUND -s {family.magic_source} -i lo -p tcp -j RETURN",
        f"-A ISTIO_INBOUND -i lo -p tcp -m mark ! --mark {TO_SELF_MARK} -j RETURN",
        "-A ISTIO_INBOUND -p tcp --dport 22 -j RETURN",
        "-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT",
        "-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY",
        f"-A ISTIO_TPROXY ! -d {family.loopback} -p tcp {target}",
        "COMMIT",
    ]


def _deliver_marked_packets_locally(netns: Netns, family: Family) -> None:
    table = str(TPROXY_TABLE)
    rule = ("rule", "add", "fwmark", str(TPROXY_MARK), "lookup", table)
    route = ("route", "add", "local", family.everything, "dev", "lo", "table", table)
    for arguments in (rule, route):
        netns.run(("ip", family.ip_option, *arguments))

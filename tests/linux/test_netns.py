"""Network namespaces: recorded tables, and our own."""

import os
import threading
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from accel.errors import LinuxError
from accel.linux import netns

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.88.0.0/24 2 0 2
        |-- 10.88.0.0
           /24 link UNICAST
        |-- 10.88.0.2
           /32 host LOCAL
        |-- 10.88.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 10.89.0.0
        /32 link UNICAST
        /32 host LOCAL
        /24 link UNICAST
Id 133:
  |-- 0.0.0.0
     /0 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fd880000000000000000000000000002 02 40 00 80     eth0
"""


def test_own_ipv4_addresses_are_the_local_hosts() -> None:
    assert list(netns.parse_fib_trie(FIB_TRIE)) == [
        IPv4Address("10.88.0.2"),
        IPv4Address("127.0.0.1"),
        IPv4Address("10.89.0.0"),
    ]


def test_ipv6_addresses() -> None:
    assert list(netns.parse_if_inet6(IF_INET6)) == [IPv6Address("::1"), IPv6Address("fd88::2")]


def test_addresses_come_from_both_tables(tmp_path: Path) -> None:
    (tmp_path / "7/net").mkdir(parents=True)
    (tmp_path / "7/net/fib_trie").write_text(FIB_TRIE)

    without_ipv6 = netns.addresses(7, str(tmp_path))
    (tmp_path / "7/net/if_inet6").write_text(IF_INET6)

    assert without_ipv6 < netns.addresses(7, str(tmp_path))
    assert IPv6Address("fd88::2") in netns.addresses(7, str(tmp_path))
    assert netns.addresses(8, str(tmp_path)) == frozenset()


def test_our_own_namespace() -> None:
    assert netns.inode(os.getpid()) == os.stat("/proc/self/ns/net").st_ino
    assert netns.parse_link("net:[4026531833]") == 4026531833
    assert netns.inode(2**22 + 1) is None


def test_ordinary_files_are_no_names(tmp_path: Path) -> None:
    """`ip netns` leaves a plain file behind when the mount on it is gone."""
    (tmp_path / "left-over").touch()

    assert netns.names(str(tmp_path)) == {}
    assert netns.names(str(tmp_path / "absent")) == {}


def test_entering_what_is_not_there() -> None:
    threads = threading.active_count()

    with pytest.raises(LinuxError, match="No such file"):
        netns.call_inside("/run/netns/absent", lambda: None)
    assert threading.active_count() == threads

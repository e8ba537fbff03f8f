"""How the proxy of each mesh looks among the processes of a node: data, no code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Profile:
    """The marks of one mesh's proxy.

    Attributes:
        name: Of the mesh, as people read it.
        exes: Base names of the proxy's executable.
        uids: The uids it runs under; none means any.  With none, a proxy can be told
            from an application that shares its cgroup only if their uids differ.
        stops_short: It takes a read that fills less than its buffer for the end of what
            waits, as epoll(7) allows, and asks no more before the next event.
    """

    name: str
    exes: frozenset[str]
    uids: frozenset[int] = frozenset()
    stops_short: bool = True

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a profile needs a name")
        if not self.exes or any(not exe or "/" in exe for exe in self.exes):
            raise ValueError("exes must list base names of executables, as in [envoy]")
        if any(not 0 <= uid < 2**32 - 1 for uid in self.uids):
            raise ValueError("uids must be numbers from 0 to 4294967294")

    def matches(self, exe: str, uid: int) -> bool:
        return exe in self.exes and (not self.uids or uid in self.uids)


# The uid is what each injector's redirect rules exempt, so it is the same in every
# installation.  Alibaba ASM and AWS App Mesh look like Istio here.
#
# Envoy reads until EAGAIN (RawBufferSocket::doRead(), and BoringSSL above it); linkerd2-proxy
# is built on tokio, which stops short (PollEvented::poll_read()).
_ENVOYS = {"istio": 1337, "kuma": 5678, "consul": 5995, "osm": 1500}
KNOWN = (
    *(
        Profile(name, frozenset({"envoy"}), frozenset({uid}), stops_short=False)
        for name, uid in _ENVOYS.items()
    ),
    Profile("linkerd", frozenset({"linkerd2-proxy"}), frozenset({2102})),
)


# Executables that read sockets by splice(2), to which redirected bytes do not exist.
SPLICERS = frozenset(
    {
        "3proxy",  # src/sockmap.c, with option -s
        "docker-proxy",  # tcp_proxy_linux.go: io.Copy() of *net.TCPConn is Go's splice_linux.go
        "haproxy",  # src/raw_sock.c, with option splice-auto and the like
        "rootlesskit",  # pkg/port/builtin/parent/tcp/tcp.go, io.Copy() again
        "rootlessport",  # the same code, as Podman runs it
        "systemd-socket-proxyd",  # src/socket-proxy/socket-proxyd.c
        "xray",  # proxy/proxy.go, CopyRawConnIfExist()
    }
)


def find_profile(profiles: Iterable[Profile], exe: str, uid: int) -> Profile | None:
    """The first profile that matches a process."""
    return next((profile for profile in profiles if profile.matches(exe, uid)), None)

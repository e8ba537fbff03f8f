"""Executables that read sockets by splice(2), to which redirected bytes do not exist."""

from __future__ import annotations

from collections.abc import Iterable

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


def splicers(exes: Iterable[str]) -> tuple[str, ...]:
    """Those of the executables (base names) that are known to splice, sorted."""
    return tuple(sorted(SPLICERS.intersection(exes)))

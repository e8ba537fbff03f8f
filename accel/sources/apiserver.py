"""The cluster's API server over HTTP: requests as bytes, nothing of what they mean.

kubernetes_asyncio finds the server, its CA and our credentials (in a pod, or by a
kubeconfig with all its ways to log in) and signs requests; answers are taken from it
raw, since to make its models of a pod takes 1 to 3 ms.  It is imported by load_client(),
not before: it takes half a second and 63 MiB, which an agent without it is spared.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import anyio.to_thread

import accel
from accel.errors import AccelError
from accel.sources.kubernetes_objects import decode_failure
from accel.sources.service_account import ServiceAccount

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_LINGER_SECONDS = 30.0  # a watch may outlast what we asked for by so much
_FAILURE_BYTES = 64 << 10  # of a refusal's body; more is no Status
_MERGE_PATCH = "application/merge-patch+json"

# A watch is silent for minutes, and a server that vanished says nothing ever: after 60 s of
# that the kernel is to tell (client-go asks by HTTP/2 pings, 30 s and 15 s).
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class ApiServerError(AccelError):
    """A request to the API server failed.

    Attributes:
        status: Of HTTP, or 0 when there was no answer.
        retry_after_seconds: How long the server wants to be left alone.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after_seconds: float = 0.0,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class InCluster:
    """As a pod: the environment says where the server is, the service account who we are."""

    account: ServiceAccount = field(default_factory=ServiceAccount)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    async def configure(self, configuration: Any) -> None:
        from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader

        InClusterConfigLoader(
            token_filename=str(self.account.token_file),
            cert_filename=str(self.account.ca_file),
            try_refresh_token=False,
            environ=dict(self.environ),
        ).load_and_set(configuration)
        configuration.refresh_api_key_hook = self._sign

    def _sign(self, configuration: Any) -> None:
        """Before each request: the kubelet replaces the token each hour, or sooner."""
        configuration.api_key["BearerToken"] = f"Bearer {self.account.token()}"


@dataclass(frozen=True, slots=True)
class KubeConfig:
    """By a kubeconfig file, for an agent that is no pod."""

    path: Path

    async def configure(self, configuration: Any) -> None:
        from kubernetes_asyncio.config.kube_config import load_kube_config

        await load_kube_config(config_file=str(self.path), client_configuration=configuration)


Access = InCluster | KubeConfig


async def load_client() -> None:
    """Import the client, in a thread, so that the agent goes on meanwhile.

    Raises:
        ApiServerError: It is not installed.
    """
    try:
        await anyio.to_thread.run_sync(importlib.import_module, "kubernetes_asyncio")
    except ImportError as error:
        raise ApiServerError(
            f"import the API server's client: {error}",
            remedy="install accel with its extra: pip install 'accel[kubernetes]'",
        ) from error


class ApiServer:
    """An open client; see connect()."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, access: Access) -> AsyncIterator[Self]:
        """Read the configuration as it is now; the first request connects.

        Raises:
            ApiServerError: The configuration cannot be read.
        """
        client = await _open_client(access)
        try:
            yield cls(client)
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    async def get(self, path: str, query: Mapping[str, str], accept: str) -> bytes:
        """The whole answer.

        Raises:
            ApiServerError: No answer in half a minute, or a refusal.
        """
        async with self._request("GET", path, query, {"Accept": accept}) as response:
            return bytes(await response.read())

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str], accept: str, seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer in chunks as they come, for at most little more than `seconds`.

        Raises:
            ApiServerError: No answer, a refusal, or the connection was lost on the way.
        """
        headers = {"Accept": accept}
        async with self._request("GET", path, query, headers, seconds=seconds) as response:
            _keep_alive(response)
            yield response.content.iter_any()

    async def create(self, path: str, body: Mapping[str, object]) -> None:
        """POST an object.

        Raises:
            ApiServerError: No answer, or a refusal.
        """
        async with self._request("POST", path, {}, {}, body=body) as response:
            await response.read()

    async def patch(self, path: str, body: Mapping[str, object]) -> None:
        """Merge into an object (RFC 7386).

        Raises:
            ApiServerError: No answer, or a refusal.
        """
        headers = {"Content-Type": _MERGE_PATCH}
        async with self._request("PATCH", path, {}, headers, body=body) as response:
            await response.read()

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        *,
        body: Mapping[str, object] | None = None,
        seconds: float | None = None,
    ) -> AsyncIterator[Any]:
        from aiohttp import ClientError, ClientTimeout

        total = _ANSWER_SECONDS if seconds is None else seconds + _LINGER_SECONDS
        what = f"{method} {path}"  # without the query, which differs each time
        try:
            response = await self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params=dict(headers),
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=ClientTimeout(total=total, sock_connect=_CONNECT_SECONDS),
            )
            async with response:
                if response.status >= 400:
                    raise _refusal(what, response, await response.content.read(_FAILURE_BYTES))
                yield response
        except TimeoutError as error:  # aiohttp's own say which; that of the whole says nothing
            raise ApiServerError(f"{what}: {str(error) or f'no answer in {total:g} s'}") from error
        # UnicodeError: a host's name that IDNA forbids.
        except (ClientError, OSError, UnicodeError) as error:
            raise ApiServerError(f"{what}: {str(error) or type(error).__name__}") from error


async def _open_client(access: Access) -> Any:
    from kubernetes_asyncio.client import ApiClient, Configuration
    from kubernetes_asyncio.config import ConfigException

    configuration = Configuration()
    # A CA made by kubeadm before 2019 lacks extensions that RFC 5280 asks for.  Go does not
    # mind, Python 3.13 would.
    configuration.disable_strict_ssl_verification = True
    try:
        await access.configure(configuration)
        client = ApiClient(configuration)
    except (ConfigException, OSError, ValueError) as error:  # SSLError is an OSError
        raise ApiServerError(
            f"find the API server: {error}",
            remedy="run accel in a pod with a service account, or name a kubeconfig",
        ) from error
    client.user_agent = f"accel/{accel.__version__}"
    return client


def _refusal(what: str, response: Any, body: bytes) -> ApiServerError:
    remedies = {
        401: "the server does not know our token; it is read again at the next attempt",
        403: "give accel's service account this right",
    }
    after = response.headers.get("Retry-After", "")
    return ApiServerError(
        f"{what}: {response.status} {response.reason}: {decode_failure(body)}",
        status=response.status,
        retry_after_seconds=float(after) if after.isdecimal() else 0.0,
        remedy=remedies.get(response.status),
    )


def _keep_alive(response: Any) -> None:
    connection = response.connection
    if connection is None or connection.transport is None:  # it has all arrived already
        return
    sock = connection.transport.get_extra_info("socket")
    for level, option, value in _KEEPALIVE:
        sock.setsockopt(level, option, value)

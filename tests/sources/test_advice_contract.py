"""Every source of advice keeps the AdviceSource promise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from accel.core.events import PodUid
from accel.sources.apiserver import InCluster
from accel.sources.base import AdviceSource
from accel.sources.kubelet import KubeletAdvice, KubeletServer
from accel.sources.kubernetes import KubernetesAdvice
from tests.contract.advice import CHECKS, AdviceStage
from tests.contract.source import PATIENCE_SECONDS
from tests.sources.clusters import NODE, Account, Pauses, pod_object
from tests.sources.conftest import Certificate
from tests.sources.fake_kubelet import PodsApi, PodsOverHttps

pytest.importorskip("kubernetes_asyncio")

from tests.sources.fake_apiserver import PODS, FakeApiServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True)
class ApiServerStage:
    source: AdviceSource
    server: FakeApiServer

    def write(self, name: str, annotations: Mapping[str, str]) -> PodUid:
        self.server.put(PODS, pod_object(name, annotations))
        return PodUid(f"uid-of-{name}")

    async def until_heard(self) -> None:
        await self.server.watched(PODS)


@dataclass(frozen=True, slots=True)
class StreamStage:
    source: AdviceSource
    api: PodsApi

    def write(self, name: str, annotations: Mapping[str, str]) -> PodUid:
        self.api.put(name, annotations)
        return PodUid(name)

    async def until_heard(self) -> None:
        await self.api.watched()


@dataclass(frozen=True, slots=True)
class PollStage:
    source: AdviceSource
    https: PodsOverHttps

    def write(self, name: str, annotations: Mapping[str, str]) -> PodUid:
        others = [pod for pod in self.https.pods or () if pod["metadata"]["name"] != name]
        self.https.pods = [*others, pod_object(name, annotations)]
        return PodUid(f"uid-of-{name}")

    async def until_heard(self) -> None:
        pass


@asynccontextmanager
async def apiserver_stage(
    certificate: Certificate, account: Account, pauses: Pauses, tmp_path: Path
) -> AsyncIterator[AdviceStage]:
    async with FakeApiServer.serve(certificate.file, certificate.key) as server:
        access = InCluster(account.mounted, server.environ)
        yield ApiServerStage(KubernetesAdvice(NODE, access, timing=pauses.timing), server)


@asynccontextmanager
async def stream_stage(
    certificate: Certificate, account: Account, pauses: Pauses, tmp_path: Path
) -> AsyncIterator[AdviceStage]:
    socket = tmp_path / "pods-api.sock"
    async with PodsApi.serve(socket) as api:
        yield StreamStage(KubeletAdvice(NODE, socket=socket, timing=pauses.timing), api)


@asynccontextmanager
async def poll_stage(
    certificate: Certificate, account: Account, pauses: Pauses, tmp_path: Path
) -> AsyncIterator[AdviceStage]:
    async with PodsOverHttps.serve(certificate.file, certificate.key) as https:
        server = KubeletServer(account.mounted, port=https.port)
        source = KubeletAdvice(NODE, socket=tmp_path / "none", server=server, timing=pauses.timing)
        yield PollStage(source, https)


@pytest.fixture(params=[apiserver_stage, stream_stage, poll_stage])
async def stage(
    request: pytest.FixtureRequest,
    certificate: Certificate,
    account: Account,
    pauses: Pauses,
    tmp_path: Path,
) -> AsyncIterator[AdviceStage]:
    async with request.param(certificate, account, pauses, tmp_path) as stage:
        yield stage


@pytest.mark.parametrize("check", CHECKS)
async def test_contract(
    check: Callable[[AdviceStage], Awaitable[None]], stage: AdviceStage
) -> None:
    with anyio.fail_after(2 * PATIENCE_SECONDS):
        await check(stage)

"""Every source keeps the Source promise; tests/kernel holds the real /proc to it."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.source import CHECKS, FakeStage, Stage
from tests.sources.cri_stage import cri_stage
from tests.sources.fake_cri import Flavour
from tests.sources.nri_stage import nri_stage
from tests.sources.recorded import RecordedStage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["fake", "processes", "nri", *Flavour])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    match request.param:
        case "fake":
            yield FakeStage()
        case "processes":
            yield RecordedStage(tmp_path)
        case "nri":
            with nri_stage(tmp_path) as stage:
                yield stage
        case Flavour() as flavour:
            with cri_stage(tmp_path, flavour) as stage:
                yield stage


@pytest.mark.parametrize("check", CHECKS)
async def test_contract(check: Callable[[Stage], Awaitable[None]], stage: Stage) -> None:
    await check(stage)

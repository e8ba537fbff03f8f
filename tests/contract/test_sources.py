"""Every source keeps the Source promise; tests/kernel holds the real /proc to it."""

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.source import CHECKS, FakeStage, Stage
from tests.sources.nri_stage import nri_stage
from tests.sources.recorded import RecordedStage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["fake", "processes", "nri"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    match request.param:
        case "fake":
            yield FakeStage()
        case "processes":
            yield RecordedStage(tmp_path)
        case "nri":
            with nri_stage(tmp_path) as stage:
                yield stage


@pytest.mark.parametrize("check", CHECKS)
async def test_contract(check: Callable[[Stage], Awaitable[None]], stage: Stage) -> None:
    await check(stage)

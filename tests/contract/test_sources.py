"""Every source keeps the Source promise; tests/kernel holds the real /proc to it."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.contract.source import CHECKS, FakeStage, Stage
from tests.sources.recorded import RecordedStage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["fake", "processes"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    return FakeStage() if request.param == "fake" else RecordedStage(tmp_path)


@pytest.mark.parametrize("check", CHECKS)
async def test_contract(check: Callable[[Stage], Awaitable[None]], stage: Stage) -> None:
    await check(stage)

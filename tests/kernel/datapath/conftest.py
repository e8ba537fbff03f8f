"""The bed: made once for all tests, with the programs attached anew for each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType
from uuid import uuid4

import pytest

from accel.datapath.loading import Constants
from tests.kernel.conftest import cgroup2_mount
from tests.kernel.datapath.bed import Bed, Network, attached, facts
from tests.patience import scaled

DEADLINE_SECONDS = int(scaled(90))


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces and cgroups: run as root")
    root = cgroup2_mount()
    if root is None:
        pytest.skip("no writable cgroup v2 mount")
    with Network(root / f"accel-bed-{uuid4().hex[:12]}") as network:
        yield network


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A test that hangs fails instead; bytes that never arrive are what it would wait for."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done after {DEADLINE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(DEADLINE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def bed(network: Network) -> Iterator[Bed]:
    with attached(network) as bed:
        yield bed


@pytest.fixture(params=[True, False], ids=["rmem charged", "rmem not charged"])
def either_bed(network: Network, request: pytest.FixtureRequest) -> Iterator[Bed]:
    """With the rules for kernels that charge redirected bytes, and with those for the others.

    The latter hold everywhere, the former would leave the queue unbounded on such a kernel.
    """
    if request.param and not facts().charges_rmem:
        pytest.skip("this kernel does not charge redirected bytes to sk_rmem_alloc")
    with attached(network, Constants(charges_rmem=request.param)) as bed:
        yield bed

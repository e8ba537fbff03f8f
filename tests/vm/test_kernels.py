"""The oldest and the newest kernel of the matrix; build/vm/matrix runs all, with everything."""

from __future__ import annotations

import tomllib

import pytest

from tests.vm.machine import PROJECT, run

pytestmark = pytest.mark.vm

VM = PROJECT / "build" / "vm"
KERNELS = [
    name
    for name, row in tomllib.loads((VM / "kernels.toml").read_text()).items()
    if row.get("supported", True)
]
ESSENTIAL = tomllib.loads((VM / "matrix.toml").read_text())["essential"]


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[-1]])
def test_what_every_kernel_must_show(kernel: str) -> None:
    """And nothing is left in it, and it logged no warning."""
    ran = run(
        kernel,
        *("python", "-m", "tests.vm.leaves_nothing", "sh", "-c", ESSENTIAL["command"]),
        deadline_seconds=ESSENTIAL["deadline"],
    )
    assert ran.code == 0, f"exit status {ran.code}\n{ran.out}\n{ran.err}"

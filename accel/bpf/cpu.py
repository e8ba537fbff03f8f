"""The CPUs that per-CPU maps are sized by."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from accel.bpf.errors import BpfError

_POSSIBLE = Path("/sys/devices/system/cpu/possible")


@cache
def possible_cpus() -> int:
    """How many CPUs could ever be online; fixed at boot.

    The kernel copies one value for each of them, online or not
    (bpf_percpu_array_copy(), kernel/bpf/arraymap.c), so a smaller number would
    let it write past our buffer.

    Raises:
        BpfError: sysfs does not tell.
    """
    try:
        text = _POSSIBLE.read_text("ascii")
    except OSError as error:
        raise BpfError(
            f"read {_POSSIBLE}", error.errno or 0, remedy="mount sysfs on /sys"
        ) from error
    return count_cpus(text)


def count_cpus(text: str) -> int:
    """Number of CPUs in a kernel CPU list such as "0-3,8"."""
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count

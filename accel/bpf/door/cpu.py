"""CPUs: those that per-CPU maps are sized by, and those that run."""

from __future__ import annotations

from functools import cache

from accel.bpf.errors import BpfError

_POSSIBLE = "/sys/devices/system/cpu/possible"
_ONLINE = "/sys/devices/system/cpu/online"


@cache
def possible_cpus() -> int:
    """How many CPUs could ever be online; fixed at boot.

    The kernel copies one value for each of them, online or not
    (bpf_percpu_array_copy(), kernel/bpf/arraymap.c), so a smaller number would
    let it write past our buffer.

    Raises:
        BpfError: sysfs does not tell.
    """
    return count_cpus(_read(_POSSIBLE))


def online_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that run now, ascending.

    Raises:
        BpfError: sysfs does not tell.
    """
    return list_cpus(_read(_ONLINE))


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError as error:
        raise BpfError(f"read {path}", error.errno or 0, remedy="mount sysfs on /sys") from error


def count_cpus(text: str) -> int:
    """Number of CPUs in a kernel CPU list such as "0-3,8"."""
    return len(list_cpus(text))


def list_cpus(text: str) -> tuple[int, ...]:
    """The CPUs in a kernel CPU list such as "0-3,8"."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)

"""Which release a kernel is, and which of the known bugs it has."""

from __future__ import annotations

import pytest

from accel.datapath.known_bugs import BUGS, Effect, bugs_of, release_of


@pytest.mark.parametrize(
    ("release", "version", "expected"),
    [
        ("6.18.44", "#1 SMP PREEMPT_DYNAMIC", (6, 18, 44)),
        ("7.2.0-rc3+", "#1 SMP", (7, 2, 0)),
        ("6.1", "#1", (6, 1, 0)),
        # Debian 12, and Debian 11's cloud kernel
        ("6.1.0-25-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.106-3 (2024-08-26)", (6, 1, 106)),
        ("5.10.0-32-cloud-amd64", "#1 SMP Debian 5.10.223-1 (2024-08-10)", (5, 10, 223)),
        ("6.10.9+bpo-amd64", "#1 SMP Debian 6.10.9-1~bpo12+1 (2024-09-19)", (6, 10, 9)),
        # Amazon Linux 2, Container-Optimized OS, Azure Linux, Flatcar, Talos, WSL
        ("5.10.223-212.873.amzn2.x86_64", "#1 SMP Thu Aug 1 2024", (5, 10, 223)),
        ("6.1.100+", "#1 SMP PREEMPT_DYNAMIC Sat Aug 24 16:19:44 UTC 2024", (6, 1, 100)),
        ("5.15.160.1-1.cm2", "#1 SMP Wed Jul 10 2024", (5, 15, 160)),
        ("6.6.54-flatcar", "#1 SMP PREEMPT_DYNAMIC", (6, 6, 54)),
        ("6.6.52-talos", "#1 SMP", (6, 6, 52)),
        ("5.15.153.1-microsoft-standard-WSL2", "#1 SMP", (5, 15, 153)),
        ("custom", "#1 SMP", None),
    ],
)
def test_the_upstream_release(
    release: str, version: str, expected: tuple[int, int, int] | None
) -> None:
    assert release_of(release, version) == expected


@pytest.mark.parametrize(
    ("release", "version", "signature", "expected"),
    [
        (
            "5.15.0-119-generic",
            "#129-Ubuntu SMP Fri Aug 2 19:25:20 UTC 2024",
            "Ubuntu 5.15.0-119.129-generic 5.15.160\n",
            (5, 15, 160),
        ),
        (
            "6.8.0-1015-aws",
            "#16~22.04.1-Ubuntu SMP Mon Aug 19 19:53:19 UTC 2024",
            "Ubuntu 6.8.0-1015.16~22.04.1-aws 6.8.12\n",
            (6, 8, 12),
        ),
    ],
)
def test_ubuntu_tells_it_beside_uname(
    release: str, version: str, signature: str, expected: tuple[int, int, int]
) -> None:
    assert release_of(release, version, signature) == expected


def test_a_fix_in_a_stable_series_counts() -> None:
    def trusted(release: tuple[int, int, int]) -> bool:
        return not any(bug.effect is Effect.REFUSE_TRUST for bug in bugs_of(release))

    assert not trusted((5, 10, 257))
    assert trusted((5, 10, 258))
    assert not trusted((5, 19, 17)), "a series that ended without the fix"
    assert trusted((6, 1, 20))
    assert trusted((6, 3, 0))
    assert not trusted((6, 18, 33)), "where accel_pass is in use, kTLS could crash the node"


def test_a_kernel_of_today_has_none() -> None:
    assert list(bugs_of((6, 18, 44))) == []


def test_every_series_is_fixed_before_mainline_or_with_it() -> None:
    for bug in BUGS:
        assert all(series < bug.mainline for series in bug.fixed)

"""Kernel bugs that matter to us, as data: in which releases each was fixed.

Only what a test cannot show without harming the node is decided by version; see
selftest.py for the rest.  A vendor's kernel that keeps an old version and brings the
fix along is taken for one without it: it loses trust by default, no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

Series = tuple[int, int]


class Effect(Enum):
    """What a kernel with the bug is still good for."""

    WARN = "warn"  #: rare or harmless enough: told, not acted on
    REFUSE_TRUST = "no trust"  #: a trusted app could harm the node


@dataclass(frozen=True, slots=True)
class Bug:
    """One bug.

    Attributes:
        source: The upstream fix, or the CVE that names it.
        fixed: Per stable series, the first patch level with the fix.
        mainline: The first release without the bug.
        since: The first series in which it can reach us.
    """

    title: str
    source: str
    effect: Effect
    fixed: Mapping[Series, int]
    mainline: Series
    since: Series = (0, 0)

    def is_in(self, release: tuple[int, int, int]) -> bool:
        series, patch = release[:2], release[2]
        if series in self.fixed:
            return patch < self.fixed[series]
        return self.since <= series < self.mainline


BUGS = (
    Bug(
        "recv() of length 0 on a socket with redirected bytes never returns",
        "CVE-2023-53133",
        Effect.REFUSE_TRUST,
        {(5, 10): 258, (6, 1): 20},
        (6, 3),
    ),
    Bug(
        "a trusted app that turns on kTLS makes the kernel read freed memory",
        "CVE-2026-64025",
        Effect.REFUSE_TRUST,
        {(6, 6): 142, (6, 12): 92, (6, 18): 34, (7, 0): 11},
        (7, 1),
        since=(6, 6),  # older ones do not bear one_queue
    ),
    Bug(
        "a sender's result is wrong when a redirect fails half way",
        "CVE-2024-46783",
        Effect.WARN,
        {(5, 10): 226, (6, 1): 110, (6, 10): 10},
        (6, 11),
    ),
    Bug(
        "redirected bytes are charged to the wrong account",
        "54f89b3178d5",
        Effect.WARN,
        {(5, 10): 233, (6, 1): 123, (6, 12): 8},
        (6, 13),
    ),
)


def release_of(release: str, version: str, signature: str = "") -> tuple[int, int, int] | None:
    """The upstream release of a kernel.

    Args:
        release: Of uname.  On Debian and Ubuntu no more than an ABI name, as in
            "5.10.0-32-cloud-amd64" and "5.15.0-119-generic".
        version: Of uname.  Debian's has it: "#1 SMP Debian 5.10.223-1 (2024-08-10)".
        signature: /proc/version_signature, which Ubuntu alone has:
            "Ubuntu 5.15.0-119.129-generic 5.15.160".
    """
    debian = re.findall(r"Debian (\d\S*)", version)
    ubuntu = re.findall(r"^Ubuntu \S+ (\d\S*)", signature)
    for text in (*ubuntu, *debian, release):
        found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
        if found:
            return int(found[1]), int(found[2]), int(found[3] or 0)
    return None


def bugs_of(release: tuple[int, int, int]) -> Iterator[Bug]:
    return (bug for bug in BUGS if bug.is_in(release))

"""`accel check`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Protocol

import msgspec
from rich.text import Text

from accel.cli import instance, output
from accel.core.strategy import strategy
from accel.datapath.fitness import examine
from accel.policy import policy_of


class _Path(Protocol):
    """One direction of one hop, as decided now or as the agent wrote it down."""

    @property
    def accelerated(self) -> bool: ...

    @property
    def reason(self) -> str | None: ...


def check(arguments: argparse.Namespace) -> int:
    """Usable or not, per hop and direction, with reasons and remedies."""
    settings = instance.settings(arguments)
    fitness = examine(settings.bpffs, settings.cgroup)
    paths = strategy(policy_of(settings, fitness), fitness.era) if fitness.usable else {}
    if arguments.json:
        output.as_json(
            {
                "usable": fitness.usable,
                "reasons": fitness.reasons,
                "trust_possible": fitness.trust_possible,
                "era": fitness.era.value,
                "strategy": paths,
                **msgspec.to_builtins(fitness),
            }
        )
        return 0 if fitness.usable else 1

    output.table(
        ("", "looked at", "found"),
        (
            (
                output.styled(finding.status.value),
                finding.name,
                finding.detail + (f"\n→ {finding.remedy}" if finding.remedy else ""),
            )
            for finding in fitness.findings
        ),
    )
    output.line()
    if not fitness.usable:
        output.line("This node cannot be accelerated; its traffic is left alone.")
        return 1
    output.line("This node can be accelerated:")
    print_strategy({hop: dict(ways) for hop, ways in paths.items()})
    if not fitness.trust_possible:
        output.line("On this kernel applications are trusted only by --force-trust.")
    return 0


def print_strategy(paths: Mapping[str, Mapping[str, _Path]]) -> None:
    """Hops and directions; each reason why one is not accelerated once, below."""
    reasons = list(
        dict.fromkeys(p.reason for ways in paths.values() for p in ways.values() if p.reason)
    )
    columns = dict.fromkeys(way for ways in paths.values() for way in ways)
    output.table(
        ("hop", *columns),
        ((hop, *(_cell(ways[way], reasons) for way in columns)) for hop, ways in paths.items()),
    )
    for number, reason in enumerate(reasons, 1):
        output.line(f"({number}) {reason}")


def _cell(path: _Path, reasons: list[str]) -> Text:
    if path.reason is None:
        return output.styled("accelerated", "ok")
    return output.styled(f"by TCP ({reasons.index(path.reason) + 1})", "warn")

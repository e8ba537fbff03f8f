"""`accel demo`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from accel.cli import output, reasons
from accel.demo.options import DemoOptions

if TYPE_CHECKING:
    from accel.demo.report import DemoReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-apps",
        action="store_true",
        help="redirect into the applications too, where this kernel bears it",
    )
    parser.add_argument(
        "--force-trust",
        action="store_true",
        help="with --trust-apps: also on a kernel that would mislead them (`accel check` tells)",
    )
    parser.add_argument(
        "--connections", type=_positive, default=16, metavar="N", help="of the load client (16)"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=9, metavar="N", help="of plain and accelerated (9)"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=3, metavar="S", help="length of one measurement (3)"
    )


def demo(arguments: argparse.Namespace) -> int:
    """Exit code 0 when no request failed."""
    options = DemoOptions(
        connections=arguments.connections,
        rounds=arguments.rounds,
        round_seconds=arguments.seconds,
        trust_apps=arguments.trust_apps,
        force_trust=arguments.force_trust,
    )
    report = _run(options)
    if arguments.json:
        output.as_json(report.to_json())
    else:
        _print(report, options)
    return 0 if report.comparison.errors == 0 else 1


def _run(options: DemoOptions) -> DemoReport:
    """With a progress bar on standard error, so that standard output stays clean."""
    from accel.demo.run import run_demo  # the test bed is no concern of the other verbs

    with Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=output.errors,
        transient=True,
        disable=not output.errors.is_terminal,
    ) as bar:
        task = bar.add_task("", total=1.0)

        def progress(doing: str, done: float) -> None:
            bar.update(task, description=doing, completed=done)

        return run_demo(options, progress)


def _print(report: DemoReport, options: DemoOptions) -> None:
    facts = report.to_json()
    names = {"rps": "requests/s", "p50_us": "p50, µs", "p99_us": "p99, µs"}
    output.line(
        f"app → Envoy → Envoy → nginx, {options.connections} connections, median of "
        f"{options.rounds} rounds each, in turn"
    )
    output.table(
        ("", "plain TCP", "accelerated", "ratio"),
        (
            (
                label,
                f"{facts['plain'][key]:,.0f}",
                f"{facts['accelerated'][key]:,.0f}",
                f"{facts['ratio'][key]:.2f}",
            )
            for key, label in names.items()
        ),
    )
    output.line()
    output.table(
        ("hop", "direction", ""),
        (
            (hop, way, output.styled(said, "ok" if said == "accelerated" else "warn"))
            for hop, ways in facts["hops"].items()
            for way, said in ways.items()
        ),
    )
    reasons.explain(said for ways in facts["hops"].values() for said in ways.values())
    if not options.trust_apps:
        output.line("--trust-apps redirects into wrk and nginx too: all six directions")
    output.line()
    output.line(
        f"on accelerated directions: {facts['psh_segments']:,} PSH segments while "
        f"{facts['messages_redirected']:,} messages passed"
    )
    output.line(f"failed requests: {facts['errors']}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1 up")
    return int(text)

"""Stress: thousands of connections through two sidecars, each byte checked, much killed.

    sudo .venv/bin/python tests/stress/run.py --connections 10000 --bytes 5G [--trust-apps]

App A, sidecar A, sidecar B and app B are several processes each, in two meshed pods with a
private agent.  Connections follow scripts made from the seed: questions and answers or streams,
pauses, half-closes, closes, resets.  Meanwhile workers and the agent are killed, acceleration
is paused and resumed, pods are trusted, distrusted and withdrawn.

Fails (exit code 1) if a byte was wrong, a connection hung or broke without its script or a
kill explaining it, if less than half of the messages that could be redirected were, if the
kernel logged a warning, or if anything is left in the kernel afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from accel.demo.interrupt import interrupted_once
from tests.stress.conductor import Conductor, Tally, Wanted
from tests.stress.judge import Sentence
from tests.stress.place import Broken, Here, Mesh
from tests.stress.script import Plot

LEAST_SHARE = 0.5
LINGER_SECONDS = 30.0  # how long the kernel may take to free what nobody holds

LINE_SECONDS = 10.0

_COMPLAINT = re.compile(
    r"WARNING:|BUG:|Oops|general protection|refcount_t:|UBSAN:|blocked for more than", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Options:
    """What to run; see the help.

    Attributes:
        mode: default, trust (applications), plain (no agent) or here (no pods either).
    """

    connections: int = 10_000
    bytes: int = 5 << 30
    seconds: float = 0.0
    most_seconds: float = math.inf
    seed: int = 0
    concurrency: int = 1000
    workers: int = 3
    calm: int = 100
    deadline_seconds: float = 60.0
    mode: str = "default"
    envoy: bool = False


def stress(options: Options, progress: Callable[[Tally], None]) -> dict[str, Any]:
    """Run it, and tell what happened as plain values; "problems" is empty if all is well.

    Raises:
        AccelError: Something is missing on this machine; nothing is left behind.
    """
    plot = Plot(
        seed=options.seed,
        workers=options.workers,
        mean_bytes=max(2, options.bytes // max(1, options.connections)),
        intercepted=options.envoy,
    )
    wanted = Wanted(options.connections, options.bytes, options.seconds, options.most_seconds)
    log = _kernel_log()
    place = _place(options)
    with (
        place,
        Conductor(
            place,
            plot,
            wanted,
            concurrency=options.concurrency,
            calm=options.calm,
            deadline_seconds=options.deadline_seconds,
        ) as conductor,
    ):
        broken = []
        try:
            conductor.run(progress)
        except Broken as error:
            broken.append(str(error))
        report = _report(options, conductor)
        report["enough"] = wanted.reached(conductor.tally, conductor.seconds)
    left = _what_is_left(place) if isinstance(place, Mesh) else []
    warnings = [line for line in _after(log, _kernel_log()) if _COMPLAINT.search(line)]
    report["left behind"] = left
    report["kernel warnings"] = warnings
    report["problems"] = [*broken, *_problems(report, whole=not broken), *left, *warnings]
    return report


def _place(options: Options) -> Here | Mesh:
    if options.mode == "here":
        return Here(options.workers)
    trust = {"default": False, "trust": True, "plain": None}[options.mode]
    return Mesh(options.workers, envoy=options.envoy, trust=trust)


def _report(options: Options, conductor: Conductor) -> dict[str, Any]:
    tally = conductor.tally
    return {
        "seed": options.seed,
        "mode": options.mode,
        "kernel": os.uname().release,
        "seconds": round(conductor.seconds, 1),
        "connections": {sentence.value: tally.sentences[sentence] for sentence in Sentence},
        "endings": dict(sorted(tally.endings.items())),
        "bytes": tally.received,
        "chaos": dict(sorted(conductor.chaos.happened.items())),
        "traffic": conductor.traffic(),
        "faults": tally.faults,
    }


def _problems(report: dict[str, Any], *, whole: bool) -> list[str]:
    """`whole`: nothing kept the run from coming to its end."""
    found = [
        f"connection {fault['connection']}: {fault['kind']}: {fault['words']}"
        for fault in report["faults"]
    ]
    if whole and not report["enough"] and not found:
        found.append(f"the time was up after {report['seconds']} s")
    share = report["traffic"].get("share")
    if share is not None and share < LEAST_SHARE:
        found.append(f"only {share:.0%} of the messages that could be were redirected")
    return found


def _what_is_left(place: Mesh) -> list[str]:
    give_up = time.monotonic() + LINGER_SECONDS
    while (left := place.left_behind()) and time.monotonic() < give_up:
        time.sleep(0.1)
    return left


def _kernel_log() -> list[str]:
    """Nothing where we may not read it."""
    done = subprocess.run(("dmesg",), capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def _after(before: list[str], now: list[str]) -> list[str]:
    """The lines that came since; all of them if the last one is forgotten already."""
    return now[now.index(before[-1]) + 1 :] if before and before[-1] in now else now


# --- the command line --------------------------------------------------------------------------


def _number(text: str) -> int:
    """As in 10000, 5G, 200M."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    if text and text[-1].upper() in units:
        return int(float(text[:-1]) * units[text[-1].upper()])
    return int(text)


def _options(arguments: list[str]) -> tuple[Options, bool]:
    usual = Options()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=_number, default=usual.connections)
    parser.add_argument("--bytes", type=_number, default=usual.bytes, help="as in 5G")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on at least so long")
    parser.add_argument("--at-most", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--seed", type=int, help="random if not given; the report tells it")
    parser.add_argument("--concurrency", type=_number, default=usual.concurrency)
    parser.add_argument("--workers", type=int, default=usual.workers, help="of each kind")
    parser.add_argument("--calm", type=int, default=usual.calm, help="connections between events")
    parser.add_argument(
        "--deadline", type=float, default=usual.deadline_seconds, help="seconds until it hangs"
    )
    parser.add_argument("--envoy", action="store_true", help="real Envoys as the sidecars")
    parser.add_argument("--json", action="store_true")
    mode = parser.add_mutually_exclusive_group()
    for name, words in (
        ("--trust-apps", "redirect into applications too, whatever the kernel"),
        ("--plain", "no agent: what plain TCP does with the same scripts"),
        ("--kernel-less", "no agent, no pods, no root: the harness alone"),
    ):
        mode.add_argument(name, action="store_true", help=words)
    chosen = parser.parse_args(arguments)
    if chosen.envoy and chosen.kernel_less:
        parser.error("--envoy needs pods")
    options = Options(
        connections=chosen.connections,
        bytes=chosen.bytes,
        seconds=chosen.seconds,
        most_seconds=chosen.at_most,
        seed=secrets.randbits(32) if chosen.seed is None else chosen.seed,
        concurrency=chosen.concurrency,
        workers=chosen.workers,
        calm=chosen.calm,
        deadline_seconds=chosen.deadline,
        mode=(
            "trust"
            if chosen.trust_apps
            else "plain"
            if chosen.plain
            else "here"
            if chosen.kernel_less
            else "default"
        ),
        envoy=chosen.envoy,
    )
    return options, chosen.json


def main(arguments: list[str]) -> int:
    options, as_json = _options(arguments)
    print(f"seed {options.seed}", file=sys.stderr)
    with interrupted_once():
        report = _with_bar(options)
    if as_json:
        print(json.dumps(report, indent=1, default=str))
    else:
        _print(report)
    return 1 if report["problems"] else 0


def _with_bar(options: Options) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return stress(options, _Lines())
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("stress", total=options.connections, words="")
        return stress(
            options,
            lambda tally: bar.update(
                task, completed=min(tally.whole, options.connections), words=_words(tally)
            ),
        )


class _Lines:
    """Progress for a log: a line now and then."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        if time.monotonic() - self._said_at > LINE_SECONDS:
            self._said_at = time.monotonic()
            print(_words(tally), file=sys.stderr, flush=True)


def _words(tally: Tally) -> str:
    return (
        f"{tally.whole:,} connections, {tally.received / 1e9:.2f} GB, "
        f"{tally.sentences[Sentence.CUT]:,} cut, {len(tally.faults)} faults"
    )


def _print(report: dict[str, Any]) -> None:
    connections = report["connections"]
    print(
        f"seed {report['seed']}, {report['mode']}, Linux {report['kernel']}: "
        f"{report['bytes'] / 1e9:.2f} GB in {report['seconds']} s\n"
        + ", ".join(f"{count:,} {name}" for name, count in connections.items())
    )
    print("happened:", ", ".join(f"{name} {n}" for name, n in report["chaos"].items()) or "nothing")
    for name, traffic in report["traffic"].items():
        if isinstance(traffic, dict) and "accelerated" in traffic:
            reasons = ", ".join(f"{k} {n:,}" for k, n in traffic["messages by TCP"].items())
            print(
                f"{name:24} {traffic['messages redirected']:>10,} redirected"
                f"  by TCP: {reasons or 'none'}"
            )
    if report["traffic"]:
        print(f"redirected where possible: {report['traffic']['share']:.0%}")
    for problem in report["problems"]:
        print("PROBLEM", problem)
    if report["faults"]:
        print(json.dumps(report["faults"], indent=1, default=str))
    right = sum(connections.values()) - connections[Sentence.FAULT.value]
    print(f"{right} passed, {len(report['problems'])} failed")  # as build/vm/matrix counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

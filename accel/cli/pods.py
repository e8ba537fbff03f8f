"""`accel pods`, and how pods are told wherever they are."""

from __future__ import annotations

import argparse
from typing import Any

import msgspec
from rich.text import Text

from accel import state
from accel.cli import instance, output
from accel.datapath.datapath import Datapath
from accel.datapath.errors import NotRunning


def pods(arguments: argparse.Namespace) -> int:
    """Every pod that the agent knows, those without a sidecar too.  Exit code 1 without an agent."""
    settings = instance.settings(arguments)
    agent = state.read(settings.run_dir)
    try:
        with instance.open_datapath(settings) as datapath:
            found, enabled = describe(agent, datapath), datapath.enabled
    except NotRunning:
        found, enabled = describe(agent, None), False
    if arguments.json:
        output.as_json({"pods": found})
    elif agent is None:
        output.line("pods: unknown, as no agent has written its state to this --run-dir")
    elif not found:
        output.line("no pod on this node")
    else:
        _print(found, node_paused=not enabled)
    return 0 if agent is not None else 1


def describe(agent: state.AgentState | None, datapath: Datapath | None) -> list[dict[str, Any]]:
    """As the agent last wrote; without a data path nothing is accelerated."""
    paused = datapath.paused_pods if datapath else frozenset()
    return [
        msgspec.to_builtins(pod)
        | {
            "accelerated": pod.accelerated and datapath is not None,
            "paused": pod.netns in paused,
        }
        for pod in (agent.pods if agent else ())
    ]


def state_of(pod: dict[str, Any], *, node_paused: bool) -> Text:
    """In a word."""
    if pod["accelerated"] and (pod["paused"] or node_paused):
        return output.styled("paused", "warn")
    if pod["accelerated"]:
        return output.styled("accelerated", "ok")
    return output.styled("left alone", "warn" if pod["profile"] else "idle")


def _print(found: list[dict[str, Any]], *, node_paused: bool) -> None:
    output.table(
        ("pod", "mesh", "state", "directions", "containers", "since", "notes"),
        (
            (
                pod["name"],
                pod["profile"] or "-",
                state_of(pod, node_paused=node_paused),
                _directions(pod["hops"]),
                ", ".join(f"{c['name']} ({c['role']})" for c in pod["containers"]) or "-",
                pod["since"] or "-",
                "\n".join(pod["notes"]),
            )
            for pod in found
        ),
    )


def _directions(hops: dict[str, dict[str, bool]]) -> str:
    """How many of its directions are accelerated; `accel status` says which and why."""
    ways = [accelerated for both in hops.values() for accelerated in both.values()]
    return f"{sum(ways)} of {len(ways)}" if ways else "-"

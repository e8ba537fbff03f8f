"""`accel status`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec

from accel import state
from accel.cli import instance, output, pods, reasons
from accel.cli.check import print_strategy
from accel.datapath.datapath import Datapath, Statistics
from accel.datapath.errors import NotRunning

_COUNTERS = ("messages_redirected", "bytes_redirected", "messages_tcp", "bytes_tcp")

# The agent does nothing for it, and what was pinned before works.
_GOES_ON = "agent stopped, acceleration goes on"
_IDLE_GOES_ON = "agent idle, acceleration goes on"


def status(arguments: argparse.Namespace) -> int:
    """Exit code 0 when the agent runs and accelerates, 1 otherwise; see _is_ready() for --ready."""
    settings = instance.settings(arguments)
    agent = state.read(settings.run_dir)
    pid = state.agent_pid(settings.run_dir)
    try:
        with instance.open_datapath(settings) as datapath:
            facts = _facts(agent, pid, datapath)
    except NotRunning:
        facts = _facts(agent, pid, None)
    if arguments.json:
        output.as_json(facts)
    elif arguments.ready:
        output.line(facts["health"])
    else:
        _print(facts, agent)
    good = _is_ready(facts) if arguments.ready else facts["health"] == "accelerating"
    return 0 if good else 1


def _health(agent: state.AgentState | None, pid: int | None, datapath: Datapath | None) -> str:
    """The state file may still be that of an agent before this one."""
    if pid is not None and (agent is None or agent.pid != pid):
        return "starting"
    idle = agent is not None and bool(agent.idle_reasons)
    if datapath is None:
        if pid is None:
            return "not running"
        return "idle" if idle else "starting"
    if not datapath.enabled:
        return "paused"
    if pid is None:
        return _GOES_ON
    return _IDLE_GOES_ON if idle else "accelerating"


def _is_ready(facts: dict[str, Any]) -> bool:
    """Whether the agent has done what this node allows.  An unfit kernel and a pause are no
    fault of the agent: to start it again would change nothing."""
    return bool(facts["agent"]["running"]) and facts["health"] != "starting"


def _facts(
    agent: state.AgentState | None, pid: int | None, datapath: Datapath | None
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "health": _health(agent, pid, datapath),
        "agent": {
            "running": pid is not None,
            "pid": pid or None,
            "version": agent.version if agent else None,
            "started_at": agent.started_at if agent else None,
            "source": agent.source if agent else None,
            "cgroup": agent.cgroup if agent else None,
        },
        "era": agent.era if agent else "unknown",
        "idle_reasons": agent.idle_reasons if agent else (),
        "problems": agent.problems if agent else (),
        "strategy": agent.strategy if agent else {},
        "pods": pods.describe(agent, datapath),
        "sources": msgspec.to_builtins(agent.sources) if agent else {},
    }
    if datapath is not None:
        facts |= _numbers(datapath.statistics())
    return facts


def _numbers(statistics: Statistics) -> dict[str, Any]:
    total = statistics.total
    return {
        "totals": {counter: getattr(total, counter) for counter in _COUNTERS},
        "messages_tcp_by_reason": dict(total.messages_tcp_by_reason),
        "connections_accepted": statistics.accepted,
        "connections_evicted": statistics.evicted,
        "options_refused": statistics.options_refused,
        "refusals": dict(statistics.refused),
        "traffic": {
            hop.label: {
                way.label: {c: getattr(statistics.traffic[hop, way], c) for c in _COUNTERS}
                for h, way in statistics.traffic
                if h == hop
            }
            for hop in dict.fromkeys(hop for hop, _ in statistics.traffic)
        },
    }


def _print(facts: dict[str, Any], agent: state.AgentState | None) -> None:
    output.pairs(
        {
            "health": output.styled(*_health_line(facts["health"])),
            "agent": _agent_line(facts["agent"]),
            "FIONREAD era": facts["era"],
            "sources": ", ".join(map(_source, facts["sources"].items())) or "-",
        }
    )
    errors = [f"{name}: {it['error']}" for name, it in facts["sources"].items() if it["error"]]
    for reason in (*facts["idle_reasons"], *facts["problems"], *errors):
        output.line(output.styled(f"  {reason}", "warn"))
    if facts["idle_reasons"] and "totals" not in facts:
        output.note(
            "  try: `accel check` says what to do about it; traffic is left alone until then"
        )
        return
    if agent is None and "totals" not in facts:
        output.note("  try: start the agent with `accel run`, or name its --bpffs and --run-dir")
        return
    if agent and agent.strategy:
        output.line()
        print_strategy(agent.strategy)
    if "totals" in facts:
        output.line()
        _print_numbers(facts)
    output.line()
    if agent is None:
        output.line("pods: unknown, as no agent has written its state to this --run-dir")
    else:
        _print_pods(facts)


def _source(source: tuple[str, dict[str, Any]]) -> str:
    name, facts = source
    words = [] if facts["listed"] else ["has not listed yet"]
    if facts["drift"]:
        words.append(f"its lists showed {facts['drift']:,} pods otherwise than its events")
    return f"{name} ({', '.join(words)})" if words else name


def _health_line(health: str) -> tuple[str, str]:
    """What to say of it, and how to colour that."""
    if health == "paused":
        return "paused: every message goes by TCP until `accel resume`", "warn"
    if health in (_GOES_ON, _IDLE_GOES_ON):
        return f"{health}; new pods go unnoticed until `accel run`", "warn"
    return health, "ok" if health == "accelerating" else "warn"


def _agent_line(agent: dict[str, Any]) -> str:
    if not agent["running"]:
        return "not running"
    below = f", below {agent['cgroup']}" if agent["cgroup"] else ""
    return f"pid {agent['pid']}, since {agent['started_at']}{below}"


def _print_numbers(facts: dict[str, Any]) -> None:
    numbers = ("redirected", "bytes", "by TCP", "bytes by TCP")
    output.table(("hop", "direction", *numbers), _number_rows(facts), numbers=numbers)
    evicted = facts["connections_evicted"]
    output.line(
        f"connections accelerated: {facts['connections_accepted']:,}"
        + (f", of which {evicted:,} were given up" if evicted else "")
    )
    if refused := facts["options_refused"]:
        output.line(f"socket options refused on accelerated connections: {refused:,}")
    reasons.count("connections not accelerated, by reason:", facts["refusals"])
    reasons.count("messages by TCP, by reason:", facts["messages_tcp_by_reason"])


def _number_rows(facts: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for hop, ways in facts["traffic"].items():
        for way, numbers in ways.items():
            yield (hop, way, *_number_cells(numbers))
    yield ("all", "", *_number_cells(facts["totals"]))


def _number_cells(numbers: dict[str, int]) -> Iterator[str]:
    for counter in _COUNTERS:
        is_bytes = counter.startswith("bytes")
        yield output.size(numbers[counter]) if is_bytes else f"{numbers[counter]:,}"


def _print_pods(facts: dict[str, Any]) -> None:
    meshed = [pod for pod in facts["pods"] if pod["profile"]]
    if not meshed:
        output.line("no meshed pod on this node")
        return
    paused = facts["health"] == "paused"
    output.table(
        ("pod", "mesh", "state", "notes"),
        (
            (
                pod["name"],
                pod["profile"],
                pods.state_of(pod, node_paused=paused),
                "\n".join(pod["notes"]),
            )
            for pod in meshed
        ),
    )

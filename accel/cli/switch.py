"""`accel pause`, `accel resume` and `accel remove`."""

from __future__ import annotations

import argparse
from typing import Any

from accel import state
from accel.cli import instance, output
from accel.datapath.errors import NotRunning
from accel.datapath.loading import remove as remove_datapath
from accel.errors import LinuxError
from accel.settings import Settings


def pause(arguments: argparse.Namespace) -> int:
    return _switch(arguments, pausing=True)


def resume(arguments: argparse.Namespace) -> int:
    return _switch(arguments, pausing=False)


def _switch(arguments: argparse.Namespace, *, pausing: bool) -> int:
    settings = instance.settings(arguments)
    agent = _agent(settings, needed=arguments.pod is not None)
    netns = instance.netns_of(arguments.pod, agent) if arguments.pod else None
    with instance.open_datapath(settings) as datapath:
        if pausing:
            datapath.pause(netns)
        else:
            datapath.resume(netns)
        facts = {
            "paused": not datapath.enabled,
            "paused_pods": sorted(
                instance.pod_names(agent).get(n, f"netns:{n}") for n in datapath.paused_pods
            ),
        }
    if arguments.json:
        output.as_json(facts)
    else:
        _print(arguments.pod, facts, pausing=pausing)
    return 0


def _agent(settings: Settings, *, needed: bool) -> state.AgentState | None:
    """Names of pods are no reason to refuse to pause a node."""
    try:
        return state.read(settings.run_dir)
    except LinuxError:
        if needed:
            raise
        return None


def _print(pod: str | None, facts: dict[str, Any], *, pausing: bool) -> None:
    whom = pod or "all pods"
    if pausing:
        output.line(f"{whom}: paused, from the next message on by TCP")
        return
    output.line(f"{whom}: resumed")
    if facts["paused"]:
        output.line("the whole node is still paused; `accel resume` without --pod resumes it")
    elif not pod and facts["paused_pods"]:
        output.line(f"still paused by name: {', '.join(facts['paused_pods'])}")


def remove(arguments: argparse.Namespace) -> int:
    """Off the node, but for what open connections still hold."""
    settings = instance.settings(arguments)
    if state.agent_pid(settings.run_dir) is not None:
        raise LinuxError(
            f"remove acceleration: the agent still runs in {settings.run_dir}",
            remedy="stop it first (SIGTERM), or it would put everything back",
        )
    try:
        with instance.permitted():
            draining = remove_datapath(settings.bpffs)
        removed = True
    except NotRunning:
        draining, removed = 0, False
    state.forget(settings.run_dir)
    if arguments.json:
        output.as_json({"removed": removed, "connections_draining": draining})
    elif not removed:
        output.line(f"nothing to remove: nothing is pinned below {settings.bpffs}")
    elif draining:
        output.line(
            f"removed; accelerated connections that go on by TCP: {draining:,} (the kernel frees "
            "the programs with the last of them)"
        )
    else:
        output.line("removed")
    return 0

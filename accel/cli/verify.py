"""`accel verify`: what the interfaces show, beside what was redirected."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accel import state
from accel.cli import instance, output
from accel.cli.connections import print_directions
from accel.datapath import connections as listing
from accel.datapath.capture import Capture, capture
from accel.datapath.datapath import Datapath
from accel.datapath.errors import UnknownPod
from accel.datapath.layout import ConnectionKey, Listing, Way
from accel.linux import netns as namespaces


def verify(arguments: argparse.Namespace) -> int:
    """Capture in every pod asked for at once.  Exit code 1 when no connection carried a
    message: then nothing was shown."""
    settings = instance.settings(arguments)
    agent = state.read(settings.run_dir)
    pods = instance.pod_names(agent)
    if arguments.pod:
        wanted = instance.netns_of(arguments.pod, agent)
        pods = {wanted: pods[wanted]}
    with instance.open_datapath(settings) as datapath:
        if not pods:
            raise UnknownPod(
                "verify: the agent knows no meshed pod",
                remedy="start a pod with a sidecar; `accel status` shows those that were found",
            )
        before = {item.key: item for item in datapath.connections()}
        captures = _capture(pods, arguments.seconds, quiet=arguments.json)
        facts = _compare(datapath, before, captures, pods)
    if arguments.json:
        output.as_json(facts)
    else:
        _print(facts)
    return 0 if facts["connections"] else 1


def _capture(pods: dict[int, str], seconds: float, *, quiet: bool) -> dict[int, Capture]:
    paths = _paths(pods)
    if not quiet:
        output.note(f"capturing in {', '.join(sorted(pods.values()))} for {seconds:g} s")
    with ThreadPoolExecutor(max_workers=len(paths)) as threads:
        running = {
            netns: threads.submit(namespaces.call_inside, path, lambda: capture(seconds))
            for netns, path in paths.items()
        }
        return {netns: future.result() for netns, future in running.items()}


def _paths(pods: dict[int, str]) -> dict[int, str]:
    """A process of each namespace, by which it can be entered."""
    found: dict[int, str] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            inode = namespaces.inode(int(directory.name))
            if inode in pods and inode not in found:
                found[inode] = f"/proc/{directory.name}/ns/net"
    if missing := pods.keys() - found.keys():
        raise UnknownPod(
            f"verify: no process is left in pod {', '.join(pods[n] for n in sorted(missing))}",
            remedy="look at `accel status` again; the pod may be gone",
        )
    return found


def _compare(
    datapath: Datapath,
    before: dict[ConnectionKey, Listing],
    captures: dict[int, Capture],
    pods: dict[int, str],
) -> dict[str, Any]:
    rows = []
    for item in datapath.connections():
        row = listing.describe(item, datapath, pods)
        for way in Way:
            row["directions"][way.label] |= {
                "messages": listing.redirected_since(before.get(item.key), item, way),
                "psh_segments": _psh_segments(item, way, captures),
            }
        if any(d["messages"] or d["psh_segments"] for d in row["directions"].values()):
            rows.append(row)
    accelerated = [
        direction
        for row in rows
        for direction in row["directions"].values()
        if direction["state"] == "redirect"
    ]
    return {
        "connections": rows,
        "psh_segments": sum(direction["psh_segments"] for direction in accelerated),
        "messages_redirected": sum(direction["messages"] for direction in accelerated),
        "segments_uncounted": sum(captured.dropped for captured in captures.values()),
    }


def _psh_segments(item: Listing, way: Way, captures: dict[int, Capture]) -> int:
    """Most that one pod saw: a segment between two pods passes through both."""
    return max(
        (
            sum(captures[end.netns].psh_segments.get(f, 0) for f in listing.flows(item, way))
            for end in item.connection.ends
            if end.netns in captures
        ),
        default=0,
    )


def _print(facts: dict[str, Any]) -> None:
    if not facts["connections"]:
        output.line("no connection carried a message meanwhile")
        return
    print_directions(
        facts["connections"], {"redirected": "messages", "PSH segments": "psh_segments"}
    )
    output.line()
    output.line(
        f"accelerated: {facts['psh_segments']:,} PSH segments while "
        f"{facts['messages_redirected']:,} messages passed"
    )
    if facts["segments_uncounted"]:
        output.line(f"{facts['segments_uncounted']:,} segments went uncounted")

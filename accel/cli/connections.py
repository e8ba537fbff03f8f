"""`accel connections`, and how connections are listed wherever they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from accel import state
from accel.cli import instance, output, reasons
from accel.datapath import connections as listing


def connections(arguments: argparse.Namespace) -> int:
    """Every connection with an end in a meshed pod."""
    settings = instance.settings(arguments)
    agent = state.read(settings.run_dir)
    names = instance.pod_names(agent)
    netns = instance.netns_of(arguments.pod, agent) if arguments.pod else None
    with instance.open_datapath(settings) as datapath:
        found = [
            listing.describe(item, datapath, names)
            for item in datapath.connections()
            if netns is None or any(end.netns == netns for end in item.connection.ends)
        ]
    if arguments.json:
        output.as_json({"connections": found})
    elif not found:
        output.line("no connection of a meshed pod")
    else:
        print_directions(found, {"redirected": "messages_redirected", "by TCP": "messages_tcp"})
    return 0


def print_directions(found: Iterable[dict[str, Any]], numbers: Mapping[str, str]) -> None:
    """Two lines a connection, one a direction; where that is too wide, three.

    Args:
        found: As listing.describe() gives them.
        numbers: Title -> key of the directions' numbers to show.
    """
    ordered = sorted(found, key=lambda item: (item["pod"], item["hop"] or "", _addresses(item)))
    rows = [
        (connection["pod"], connection["hop"] or "-", *_addresses(connection), *row)
        for connection in ordered
        for row in _rows(connection, numbers)
    ]
    columns = ("pod", "hop", "from", "to", "direction", "state", *numbers, "why")
    if not output.table_if_it_fits(columns, rows, numbers=numbers):
        _print_narrow(ordered, numbers)
    reasons.explain(row[-1] for row in rows)


def _print_narrow(found: Iterable[dict[str, Any]], numbers: Mapping[str, str]) -> None:
    for connection in found:
        active, passive = _addresses(connection)
        output.line(f"{connection['pod']}  {connection['hop'] or '-'}  {active} → {passive}")
        for way, said, *counts, why in _rows(connection, numbers):
            counted = ", ".join(f"{n} {title}" for n, title in zip(counts, numbers, strict=True))
            said.pad_right(len("redirect") - len(said))
            output.line(Text(f"  {way:<8}  ") + said + Text(f"  {counted}  {why}".rstrip()))


def _addresses(connection: dict[str, Any]) -> tuple[str, str]:
    """Of the active end and the passive, as one of them sees both."""
    if connection["active"]:
        return connection["active"]["local"], connection["active"]["remote"]
    return connection["passive"]["remote"], connection["passive"]["local"]


def _rows(connection: dict[str, Any], numbers: Mapping[str, str]) -> list[tuple[Any, ...]]:
    return [
        (
            way,
            output.styled(direction["state"]),
            *(f"{direction[key]:,}" for key in numbers.values()),
            direction["reason"] or "",
        )
        for way, direction in connection["directions"].items()
    ]

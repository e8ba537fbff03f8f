"""`accel events`."""

from __future__ import annotations

import argparse
import sys
from contextlib import aclosing
from pathlib import Path

import anyio

from accel import stream
from accel.cli import instance


def events(arguments: argparse.Namespace) -> int:
    """One JSON object a line; without --follow what is so now."""
    run_dir = instance.settings(arguments).run_dir
    every = not (arguments.of_pods or arguments.of_connections)
    wish = stream.Wish(arguments.of_pods or every, arguments.of_connections or every)
    if not arguments.follow:
        wish = stream.Wish(pods=True, connections=False)
    anyio.run(_print, run_dir, wish, arguments.follow)
    return 0


async def _print(run_dir: Path, wish: stream.Wish, follow: bool) -> None:
    async with aclosing(stream.lines(run_dir, wish)) as lines:
        async for line in lines:
            stream.decode(line)  # a refusal is an error
            sys.stdout.write(line.decode() + "\n")
            sys.stdout.flush()
            if not follow:
                return

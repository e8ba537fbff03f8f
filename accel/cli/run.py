"""`accel run` and `accel config`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from datetime import UTC, datetime

import anyio
import msgspec

from accel.cli import instance, output
from accel.errors import AccelError
from accel.settings import LogFormat, Settings


def run(arguments: argparse.Namespace) -> int:
    """Be the agent."""
    from accel import agent  # and every wire: no other verb should wait for them

    settings = instance.settings(arguments)
    _log(settings)
    try:
        anyio.run(agent.run, settings)
    except* AccelError as group:
        raise _first(group) from group
    return 0


def _first(group: BaseExceptionGroup[AccelError]) -> AccelError:
    """The error a task group wrapped."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    assert isinstance(inner, AccelError)  # except* lets no other in
    return inner


def config(arguments: argparse.Namespace) -> int:
    """What is in force."""
    sourced = instance.sourced(arguments)
    values = msgspec.to_builtins(sourced.settings, enc_hook=str, order="deterministic")
    if arguments.json:
        output.as_json({"settings": values, "origins": sourced.origins})
    else:
        output.table(
            ("setting", "value", "from"),
            ((key, json.dumps(value), sourced.origins[key]) for key, value in values.items()),
        )
    return 0


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines()
        if settings.log_format is LogFormat.JSON
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=settings.log_level.value.upper(), handlers=[handler], force=True)

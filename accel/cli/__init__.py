"""The command line.  The only part of accel that prints, and that picks exit codes.

0  it is as asked      1  it is not, or something failed      2  wrong usage
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from accel.cli import output
from accel.cli.parser import parse
from accel.errors import AccelError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.  Returns the exit code."""
    _say_what_the_locale_can()
    arguments = parse(argv)
    try:
        code: int = arguments.verb(arguments)
        sys.stdout.flush()
        return code
    except AccelError as e:
        output.error(e, as_json=getattr(arguments, "json", False))
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has enough.  Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say_what_the_locale_can() -> None:
    """An arrow that becomes a question mark is better than a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")

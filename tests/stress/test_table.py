"""What one process writes into the table another reads whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.stress.table import Table

PROJECT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from tests.stress.table import Table

table = Table(Path(sys.argv[1]), 16)
while not table.stopped:
    table.set_next(0, 255)
    table.set_next(0, 256)
"""


def test_a_number_is_never_read_half(tmp_path: Path) -> None:
    """One of 30 was, when bytes were written one by one: 0 is neither of 255 and 256."""
    path = tmp_path / "table"
    table = Table(path, 16)
    table.set_next(0, 255)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=PROJECT) as writer:
        seen = {255}
        while len(seen) < 2 and writer.poll() is None:  # until it writes
            seen.add(table.next_of(0))
        seen |= {table.next_of(0) for _ in range(100_000)}
        table.stop()
    table.close()
    assert seen == {255, 256}
    assert writer.returncode == 0

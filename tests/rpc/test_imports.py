"""What starting accel costs those who need no wire: nothing."""

from __future__ import annotations

import subprocess
import sys


def test_the_command_line_starts_without_the_wires() -> None:
    code = "import sys, accel.cli; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()

    assert "accel.cli" in modules
    assert [name for name in modules if name.startswith(("accel.rpc", "h2", "hpack"))] == []

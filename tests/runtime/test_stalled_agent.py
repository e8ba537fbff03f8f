"""No pod waits for an agent that hangs, or is dead, whatever it listens to."""

from __future__ import annotations

import os
import signal

import pytest

from accel.sources.nri import NriSource
from tests.runtime.listener import listener, read_line, socket_of
from tests.runtime.node import MESHED, Node
from tests.runtime.releases import INSTALLED

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parametrize(
        ("node", "source"),
        [
            (INSTALLED, "containerd"),
            (INSTALLED, "cri"),
            ("containerd-1.7", "nri"),
            ("containerd-2", "nri"),
            ("containerd-2", "containerd"),
        ],
        indirect=["node"],
    ),
]


def test_one_that_hangs(empty_node: Node, source: str) -> None:
    """And once it goes on, it learns what it missed.  NRI waits once, as for any plugin."""
    node = empty_node
    before = len(node.log.read_text())
    pod = node.run_pod("cart-0", annotations=MESHED)
    with listener(source, socket_of(source, node)) as process:
        node.start(pod, "first")
        read_line(process)  # so the runtime has it among its plugins
        os.kill(process.pid, signal.SIGSTOP)
        for number in range(5):
            node.start(pod, f"app-{number}")
        after = node.run_pod("after", annotations=MESHED)
        node.start(after, "app")
        dropped = "closing plugin 99-accel" in node.log.read_text()[before:]
        assert dropped == (source == NriSource.name)

        os.kill(process.pid, signal.SIGCONT)
        while read_line(process) != "default/after default/cart-0":
            pass


def test_one_that_dies(empty_node: Node, source: str) -> None:
    node = empty_node
    pod = node.run_pod("cart-0", annotations=MESHED)
    with listener(source, socket_of(source, node)) as process:
        process.kill()
        for number in range(5):
            node.start(pod, f"app-{number}")
        node.remove_pod(pod)

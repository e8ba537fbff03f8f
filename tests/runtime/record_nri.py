"""Record what a real runtime sends to a plugin, for tests/sources/recordings:

    sudo .venv/bin/python -m tests.runtime.record_nri containerd-1.7 containerd-2

A pod with a container is there; another container starts, one is stopped, the pod is removed.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel.sources.nri import NriSource
from tests.runtime.listener import listener
from tests.runtime.node import MESHED, Node
from tests.runtime.releases import PROJECT, find_release

RECORDINGS = PROJECT / "tests/sources/recordings"


def main() -> None:
    for release in sys.argv[1:]:
        with Node(find_release(release)) as node:
            pod = node.run_pod("cart-0", namespace="shop", annotations=MESHED)
            node.start(pod, "app")
            recorded = bytearray()
            with (
                _listening(node.nri_socket, node.directory / "proxy.sock", recorded) as path,
                listener(NriSource.name, path),
            ):
                proxy = node.start(pod, "istio-proxy", uid=1337)
                node.stop(proxy)
                node.remove_pod(pod)
            (RECORDINGS / f"nri-{release}.bin").write_bytes(recorded)


@contextmanager
def _listening(runtime: Path, path: Path, recorded: bytearray) -> Iterator[Path]:
    """Between the runtime and one plugin; what the runtime says is kept."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as upstream:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            upstream.connect(str(runtime))
            back = threading.Thread(target=_copy, args=(upstream, connection, recorded))
            back.start()
            _copy(connection, upstream, bytearray())
            upstream.shutdown(socket.SHUT_RDWR)
            back.join()
            connection.close()

        serving = threading.Thread(target=serve)
        serving.start()
        yield path
        serving.join()


def _copy(source: socket.socket, target: socket.socket, seen: bytearray) -> None:
    while data := source.recv(1 << 16):
        seen += data
        target.sendall(data)


if __name__ == "__main__":
    main()

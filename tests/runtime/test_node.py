"""The bed itself: a real containerd, pods as a kubelet makes them, and nothing left of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.linux import cgroup, netns, process
from accel.rpc import cri
from accel.rpc.errors import RpcError
from tests.kernel.instance import wait_until
from tests.runtime.node import MESHED, Node
from tests.runtime.releases import find_release, releases

pytestmark = pytest.mark.kernel


@releases()
def test_a_pod_is_as_a_kubelet_makes_it(empty_node: Node) -> None:
    pod = empty_node.run_pod("cart-0", namespace="shop", labels={"a": "b"}, annotations=MESHED)
    app = empty_node.start(pod, "app", ports=[8080])

    listed = empty_node.ask(
        "ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse
    )
    (sandbox,) = listed.items
    assert sandbox.labels == {
        "a": "b",
        "io.kubernetes.pod.name": "cart-0",
        "io.kubernetes.pod.namespace": "shop",
        "io.kubernetes.pod.uid": pod.uid,
    }
    assert sandbox.annotations == MESHED
    assert netns.inode(app.pid) == pod.netns != netns.inode("self")
    place = cgroup.path_of(app.pid)
    assert place is not None
    assert place.startswith(f"/{empty_node.name}/kubepods/besteffort/pod{pod.uid}/")
    assert app.cgroup_id == cgroup.cgroup_id(cgroup.hierarchy().point / place.lstrip("/"))


def test_pods_reach_each_other(empty_node: Node) -> None:
    server, client = empty_node.run_pod("server"), empty_node.run_pod("client")
    empty_node.start(server, "app", ["sh", "-c", "while true; do echo hello | nc -l -p 80; done"])
    app = empty_node.start(client, "app")

    wait_until(lambda: empty_node.execute(app, "nc", server.address, "80") == b"hello\n")


def test_a_sidecar_is_a_real_envoy(empty_node: Node) -> None:
    pod = empty_node.run_pod("cart-0", annotations=MESHED)
    sidecar = empty_node.start_envoy(pod)

    found = process.read(sidecar.container.pid)
    assert found is not None
    assert (found.exe, found.uid) == ("envoy", 1337)


def test_restarts_and_ends(empty_node: Node) -> None:
    pod = empty_node.run_pod("cart-0")
    first = empty_node.start(pod, "app")
    empty_node.kill(first)
    second = empty_node.start(pod, "app")
    assert (first.attempt, second.attempt) == (0, 1)
    assert second.id != first.id

    again = empty_node.restart_pod(pod)
    assert again.uid == pod.uid
    assert again.id != pod.id
    assert not process_is_there(second.pid)


def test_an_address_can_be_given_again(empty_node: Node) -> None:
    pod = empty_node.run_pod("first")
    empty_node.remove_pod(pod)
    empty_node.give_next(pod.address)

    assert empty_node.run_pod("second").address == pod.address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_containers_outlive_containerd(empty_node: Node, number: signal.Signals) -> None:
    app = empty_node.start(empty_node.run_pod("cart-0"), "app")

    empty_node.stop_containerd(number)
    assert empty_node.containerd_pid == 0
    assert process_is_there(app.pid)
    empty_node.start_containerd()

    assert empty_node.execute(app, "cat", "/proc/1/comm") == b"sleep\n"


def test_it_can_hang(empty_node: Node) -> None:
    empty_node.freeze_containerd()
    try:
        state = Path(f"/proc/{empty_node.containerd_pid}/stat").read_text().rpartition(") ")[2][0]
        assert state == "T"
    finally:
        empty_node.thaw_containerd()
    empty_node.ask("Version", cri.VersionRequest(), cri.VersionResponse)


def test_what_cri_refuses_is_told(node: Node) -> None:
    with pytest.raises(RpcError, match="not found"):
        node.start_created("no-such-container")


def test_nothing_is_left() -> None:
    with Node(find_release("containerd")) as node:
        app = node.start(node.run_pod("cart-0"), "app")
        shim = parent_of(app.pid)
        place = node.cgroup
        assert place.exists()

    assert not process_is_there(app.pid)
    assert not process_is_there(shim)
    assert not place.exists()
    assert not node.directory.exists()


def test_nothing_is_left_when_its_owner_is_killed() -> None:
    find_release("containerd")  # or skip
    script = (
        "from tests.runtime.node import Node\n"
        "from tests.runtime.releases import find_release\n"
        "with Node(find_release('containerd')) as node:\n"
        "    app = node.start(node.run_pod('cart-0'), 'app')\n"
        "    print(app.pid, node.cgroup, node.directory, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, place, directory = owner.stdout.readline().split()
        owner.kill()

    gone: list[Callable[[], bool]] = [
        lambda: not process_is_there(int(pid)),
        lambda: not Path(place).exists(),
        lambda: not Path(directory).exists(),
    ]
    wait_until(lambda: all(is_gone() for is_gone in gone))


def process_is_there(pid: int) -> bool:
    """And has not merely been left for its parent to read its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])

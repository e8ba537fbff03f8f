"""The agent in its image, started by a real containerd as the DaemonSet starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.image.built import image
from tests.image.manifests import pod_of, read
from tests.image.volumes import Volumes
from tests.kernel.instance import wait_until
from tests.runtime import deployed
from tests.runtime.deployed import Deployed, Place
from tests.runtime.node import Node, Pod
from tests.runtime.releases import INSTALLED
from tests.runtime.shop import Shop, are_accelerated, pods, redirected

pytestmark = pytest.mark.kernel

AGENT = pod_of(read("accel.yaml"))
REMOVER = pod_of(read("remove.yaml"))

by_each_runtime = pytest.mark.parametrize(
    ("node", "source"), [(INSTALLED, "containerd"), ("containerd-2", "nri")], indirect=["node"]
)


@pytest.fixture
def place(empty_node: Node) -> Place:
    built = image()
    empty_node.import_image(built.archive, built.name)
    run_dir = empty_node.directory / "run-accel"
    run_dir.mkdir(exist_ok=True)
    settings = {
        "cgroup": str(empty_node.cgroup),  # else the root of all
        "trust_apps": True,
        "force_trust": True,  # these apps read plainly
        "log_format": "json",
    }
    volumes = Volumes(
        empty_node.directory,
        {
            "/sys/fs/bpf": empty_node.mount_bpffs(),
            "/sys/fs/cgroup": Path("/sys/fs/cgroup"),
            "/run/accel": run_dir,
            "/run/containerd": empty_node.directory,
            "/run/nri": empty_node.directory,
        },
        {"accel.yaml": json.dumps(settings)},  # JSON is YAML
    )
    return Place(empty_node, built, volumes)


@pytest.fixture
def sandbox(place: Place) -> Pod:
    return deployed.run_pod(place, "accel-x7k2p", AGENT)


def start(place: Place, sandbox: Pod) -> Deployed:
    """The agent, once its startup probe succeeds."""
    (container,) = AGENT["containers"]
    agent = deployed.start(place, sandbox, AGENT, container)
    wait_until(lambda: agent.answers("startupProbe"), lambda: agent.log)
    return agent


def remove(place: Place) -> tuple[int, str]:
    """As remove.yaml does; the exit code, and what it said."""
    (container,) = REMOVER["initContainers"]
    sandbox = deployed.run_pod(place, "accel-remove-5c9qd", REMOVER)
    created = deployed.create(place, sandbox, REMOVER, container)
    place.node.start_created(created)
    code = place.node.wait_for_end(created)
    return code, place.node.log_of(sandbox, container["name"]).read_text()


@by_each_runtime
def test_pods_are_accelerated_until_it_is_removed(
    place: Place, sandbox: Pod, source: str, tmp_path: Path
) -> None:
    """An answer is on its way while the container is killed, started again, and stopped."""
    node = place.node
    agent = start(place, sandbox)
    shop = Shop.open(node, tmp_path / "files")
    wait_until(are_accelerated(agent), lambda: pods(agent))
    for _ in range(3):
        assert shop.fetch("small") == b"hello"
    assert min(redirected(agent).values()) > 0, redirected(agent)
    assert pods(agent)["shop/server"]["uid"] == shop.server.uid
    assert source in agent.facts("status")["sources"]
    assert not pods(agent)["accel-system/accel-x7k2p"]["accelerated"]

    small = redirected(agent)["sidecar-app", "response"]
    shop.fetch_slowly("big")
    wait_until(lambda: redirected(agent)["sidecar-app", "response"] > small)
    node.kill(agent.container)
    agent = start(place, sandbox)
    wait_until(are_accelerated(agent), lambda: pods(agent))
    before = redirected(agent)
    assert shop.fetch("small") == b"hello"
    assert all(now > before[path] for path, now in redirected(agent).items())
    code, said = remove(place)
    assert code == 1
    assert "agent still runs" in said

    node.stop(agent.container)
    code, said = remove(place)
    assert code == 0, said
    shop.read_on()
    wait_until(lambda: shop.has_fetched("big"))
    assert shop.fetch("small") == b"hello"

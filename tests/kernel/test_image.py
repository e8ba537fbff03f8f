"""The agent in its image, under runc, with what build/kubernetes gives it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accel.demo.testbed import Testbed
from tests.image.built import Built, build, image
from tests.image.bundle import Container
from tests.image.manifests import Manifest, pod_of, read
from tests.image.volumes import Volumes
from tests.kernel.instance import Connections, Instance, Mesh, accel, alive, wait_until
from tests.kernel.test_failures import in_own_mounts

pytestmark = pytest.mark.kernel

TRUST = {"trust_apps": True, "force_trust": True}
BOTH_REDIRECT = {("request", "redirect"), ("response", "redirect")}


@pytest.fixture(scope="module")
def built() -> Built:
    if shutil.which("runc") is None:
        pytest.skip("runc is missing: apt-get install runc")
    return image()


@pytest.fixture(scope="module")
def root(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's files."""
    root = tmp_path_factory.mktemp("image") / "root"
    built.unpack(root)
    return root


@pytest.fixture
def instance(cgroup: Path, bpffs: Path, tmp_path: Path) -> Instance:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return Instance(cgroup, bpffs, run_dir)


@pytest.fixture
def volumes(instance: Instance, tmp_path: Path) -> Volumes:
    """The test's own, but for the cgroups: there the configuration says where to stay."""
    return Volumes(
        tmp_path,
        {
            "/sys/fs/bpf": instance.bpffs,
            "/run/accel": instance.run_dir,
            "/sys/fs/cgroup": Path("/sys/fs/cgroup"),
        },
        # JSON is YAML.
        {"accel.yaml": json.dumps({"cgroup": str(instance.cgroup), **TRUST})},
    )


@pytest.fixture
def agent(built: Built, root: Path, volumes: Volumes) -> Container:
    pod = pod_of(read("accel.yaml"))
    return Container(built, root, pod, pod["containers"][0], volumes)


@pytest.fixture
def remover(built: Built, root: Path, volumes: Volumes) -> Container:
    pod = pod_of(read("remove.yaml"))
    return Container(built, root, pod, pod["initContainers"][0], volumes)


@pytest.fixture
def mesh(cgroup: Path, tmp_path: Path) -> Iterator[Mesh]:
    with Testbed(cgroup) as bed:
        yield Mesh(bed, tmp_path)


def saying(container: Container, *arguments: str) -> Container:
    """The same container with other arguments."""
    manifest: Manifest = container.manifest | {"args": list(arguments)}
    return replace(container, manifest=manifest)


def test_there_is_nothing_in_it_but_what_runs(root: Path) -> None:
    programs = [path for path in root.rglob("*") if path.is_file() and path.stat().st_mode & 0o111]
    inside = {str(path.relative_to(root)) for path in programs}
    names = {path.name for path in programs}
    assert {"usr/bin/python3", "usr/local/bin/accel"} <= inside
    assert not names & {"sh", "bash", "dash", "busybox", "pip", "pip3", "apt", "dpkg", "perl"}
    assert not list(root.rglob("pip")) + list(root.rglob("hatchling")) + list(root.rglob("*.deb"))
    assert list(root.rglob("accel/datapath/*.o"))
    assert not list((root / "etc").glob("apt*"))
    assert (root / "usr/share/doc/libc6/copyright").exists()


def test_check_says_what_it_says_on_the_node(agent: Container, volumes: Volumes) -> None:
    settings = volumes.scratch / "accel.yaml"
    settings.write_text(volumes.configuration["accel.yaml"])
    mounted = f"mount --bind '{volumes.directories['/sys/fs/bpf']}' /sys/fs/bpf"
    outside = accel("check", "--json", "--config", str(settings), before=in_own_mounts(mounted))
    inside = saying(agent, "check", "--json").run()
    assert inside.code == outside.code == 0, (inside, outside)
    assert comparable(inside.json) == comparable(outside.json)


def comparable(check: Any) -> Any:
    """Without what no two runs have in common: bytes that happened to be queued."""
    return {
        "usable": check["usable"],
        "trust_possible": check["trust_possible"],
        "era": check["era"],
        "strategy": check["strategy"],
        "findings": [(f["name"], f["status"], f["remedy"]) for f in check["findings"]],
    }


def test_the_agent_lives_works_and_goes(
    agent: Container, remover: Container, instance: Instance, mesh: Mesh
) -> None:
    pod = mesh.meshed("shop")
    with Connections(pod) as connections:
        with agent.started() as running:
            running.wait_for_probe(agent.manifest["startupProbe"])
            # Inside and outside it is the same instance, by the same pid.
            told = instance.facts("status")
            assert told == running.exec("/usr/local/bin/accel", "status", "--json").json
            assert told["health"] == "accelerating"
            instance.wait_for(pod)
            connections.open()
            connections.exchange()
            assert instance.directions() == BOTH_REDIRECT
            refused = remover.run()
            assert refused.code == 1
            assert "agent still runs" in refused.err
            assert "WARNING" not in running.log  # as where process events are refused
            assert running.end(signal.SIGTERM) == 0, running.log

        assert instance.health() == "agent stopped, acceleration goes on"
        connections.open()
        connections.exchange()
        assert instance.directions() == BOTH_REDIRECT
        objects = instance.kernel_objects()

        removed = remover.run()
        assert removed.code == 0, removed
        instance.assert_untouched()
        connections.exchange()
    wait_until(lambda: not alive(objects), lambda: alive(objects))


def test_a_cgroup_namespace_of_its_own_is_named_as_the_trouble(
    agent: Container, instance: Instance
) -> None:
    """There a process beside ours is in "/../NAME" of a hierarchy that shows "/../..": nothing
    says which directory that is."""
    below = f"/{instance.cgroup.name}/agent"
    unfit = replace(saying(agent, "check"), more_namespaces=("cgroup",), cgroup=below)
    answer = unfit.run()
    assert answer.code == 1
    assert "our cgroup namespace begins further down" in answer.out
    assert "run in the host's cgroup namespace" in answer.out


def test_two_builds_are_the_same(built: Built, tmp_path: Path) -> None:
    again = build(tmp_path / "again.tar")
    assert again.manifest == built.manifest
    assert again.archive.read_bytes() == built.archive.read_bytes()

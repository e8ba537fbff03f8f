"""The manifests, as far as that can be told without a cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accel import __version__
from accel.settings import Settings, load_settings
from tests.image.manifests import FOLDER, Manifest, containers, only, pod_of, read

FILES = ("accel.yaml", "remove.yaml", "watch.yaml")
DAEMONS = ("accel.yaml", "remove.yaml")


def test_there_are_no_others() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_all_objects_are_ours_by_label_and_in_a_namespace_that_is_there(name: str) -> None:
    for each in read(name):
        assert each["apiVersion"]
        metadata = each["metadata"]
        assert metadata["labels"]["app.kubernetes.io/name"] == "accel"
        has_none = each["kind"] in {"Namespace", "ClusterRole", "ClusterRoleBinding"}
        assert has_none == ("namespace" not in metadata)
        assert metadata.get("namespace") in {None, "default", "accel-system"}


def test_the_namespace_admits_the_pods() -> None:
    first, *_ = read("accel.yaml")
    assert first["kind"] == "Namespace"
    assert first["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


@pytest.mark.parametrize("name", DAEMONS)
def test_mounts_and_volumes_match(name: str) -> None:
    pod = pod_of(read(name))
    volumes = [volume["name"] for volume in pod["volumes"]]
    mounted = {
        mount["name"]
        for container in containers(pod)
        for mount in container.get("volumeMounts", ())
    }
    assert len(volumes) == len(set(volumes))
    assert set(volumes) == mounted


@pytest.mark.parametrize("name", DAEMONS)
def test_daemons_select_their_own_pods_alone(name: str) -> None:
    daemon = only(read(name), "DaemonSet")
    labels = daemon["spec"]["template"]["metadata"]["labels"]
    assert daemon["spec"]["selector"]["matchLabels"].items() <= labels.items()
    components = {
        only(read(other), "DaemonSet")["spec"]["selector"]["matchLabels"][
            "app.kubernetes.io/component"
        ]
        for other in DAEMONS
    }
    assert len(components) == len(DAEMONS)


@pytest.mark.parametrize("name", DAEMONS)
def test_all_run_the_image_that_build_image_makes(name: str) -> None:
    for container in containers(pod_of(read(name))):
        assert container["image"] == f"localhost/accel:{__version__}"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_configuration_is_one_that_accel_takes(tmp_path: Path) -> None:
    files = only(read("accel.yaml"), "ConfigMap")["data"]
    assert list(files) == ["accel.yaml"]
    path = tmp_path / "accel.yaml"
    path.write_text(files["accel.yaml"])
    load_settings({}, {}, path)


def sources(container: Manifest, pod: Manifest) -> dict[str, str]:
    """Host directory by where a container sees it."""
    paths = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    return {
        mount["mountPath"]: paths[mount["name"]]
        for mount in container["volumeMounts"]
        if mount["name"] in paths
    }


def test_what_accel_uses_by_default_is_the_nodes_own() -> None:
    """Pins, state and lock at the same paths: on the node and for the next agent."""
    defaults = Settings()
    objects = read("accel.yaml")
    pod = pod_of(objects)
    seen = sources(pod["containers"][0], pod)
    for path in (str(defaults.bpffs.parent), "/sys/fs/cgroup", str(defaults.run_dir)):
        assert seen[path] == path
    removing = pod_of(read("remove.yaml"))
    seen = sources(removing["initContainers"][0], removing)
    for path in (str(defaults.bpffs.parent), str(defaults.run_dir)):
        assert seen[path] == path


def test_sockets_are_reached_through_directories() -> None:
    """A file stays what it was when the runtime makes a new socket."""
    pod = pod_of(read("accel.yaml"))
    for volume in pod["volumes"]:
        if "hostPath" in volume:
            assert volume["hostPath"]["type"] in {"Directory", "DirectoryOrCreate"}


def test_the_node_is_seen_as_it_is() -> None:
    pod = pod_of(read("accel.yaml"))
    assert pod["hostPID"] is True
    assert pod["hostNetwork"] is True
    (container,) = pod["containers"]
    # Both containerd (isUnifiedCgroupsMode() && !GetPrivileged()) and CRI-O (!ctr.Privileged()
    # && node.CgroupIsV2()) give a cgroup namespace to those alone that are not.
    assert container["securityContext"]["privileged"] is True
    assert container["args"] == ["run"]


def test_rights_are_for_the_account_that_is_there() -> None:
    account = only(read("accel.yaml"), "ServiceAccount")["metadata"]
    assert pod_of(read("accel.yaml"))["serviceAccountName"] == account["name"]
    objects = read("watch.yaml")
    for binding in (each for each in objects if each["kind"].endswith("Binding")):
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
        role = only(objects, binding["roleRef"]["kind"])
        assert role["metadata"]["name"] == binding["roleRef"]["name"]
        assert role["metadata"].get("namespace") == binding["metadata"].get("namespace")


def test_the_core_needs_no_right_in_the_cluster() -> None:
    for name in DAEMONS:
        assert not [each for each in read(name) if re.search("Role", each["kind"])]

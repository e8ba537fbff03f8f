"""build/kubernetes/*.yaml as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "build" / "kubernetes"

Manifest = dict[str, Any]


def read(name: str) -> list[Manifest]:
    """The objects in one file, in order."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def only(objects: list[Manifest], kind: str) -> Manifest:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def pod_of(objects: list[Manifest]) -> Manifest:
    """What the file's DaemonSet starts on each node."""
    spec: Manifest = only(objects, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", ()), *pod["containers"]]

"""What a manifest's volumes are where a test works, in place of the node's own directories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.image.manifests import Manifest


class Mount(NamedTuple):
    """A directory or file in a container.

    Attributes:
        follows: It sees what is mounted below `source` later (HostToContainer).
    """

    path: str
    source: Path
    follows: bool
    read_only: bool


@dataclass(frozen=True)
class Volumes:
    """The directories behind host paths, and the text of each file of the ConfigMap.

    Attributes:
        scratch: Where what is missing is made.
        directories: By the host path that a manifest names; those not named are made empty.
    """

    scratch: Path
    directories: Mapping[str, Path]
    configuration: Mapping[str, str]

    def mounts(self, pod: Manifest, container: Manifest) -> Iterator[Mount]:
        """What one container of the pod sees of them."""
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in container["volumeMounts"]:
            yield Mount(
                mount["mountPath"],
                self._source(volumes[mount["name"]], mount),
                mount.get("mountPropagation") == "HostToContainer",
                mount.get("readOnly", False),
            )

    def _source(self, volume: Manifest, mount: Manifest) -> Path:
        if "configMap" in volume:
            folder = self._made(volume["name"])
            for name, text in self.configuration.items():
                (folder / name).write_text(text)
            return folder / str(mount["subPath"])
        return self.directories.get(volume["hostPath"]["path"]) or self._made(volume["name"])

    def _made(self, name: str) -> Path:
        path = self.scratch / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

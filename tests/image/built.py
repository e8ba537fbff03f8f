"""The image, built once for each set of inputs and kept in the user's cache."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.image.manifests import PROJECT

MAKE = PROJECT / "build" / "oci" / "make"

# The time of everything in it: that of the last commit would make each commit another image.
EPOCH = "1700000000"

UNAVAILABLE = 77  # of build/oci/make: no mirror has what is needed
_KEPT_SECONDS = 7 * 86400


@dataclass(frozen=True)
class Built:
    """An image in its archive.

    Attributes:
        archive: As `ctr images import` takes it.
        manifest: The digest that it has there.
        name: What it is called there.
        settings: The config's "config".
    """

    archive: Path
    manifest: str
    name: str
    settings: dict[str, Any]

    def unpack(self, root: Path) -> None:
        """All of its files, as a runtime would."""
        root.mkdir()
        with tarfile.open(self.archive) as archive:
            manifest = _blob(archive, self.manifest)
            for layer in json.loads(manifest)["layers"]:
                files = gzip.decompress(_blob(archive, layer["digest"]))
                subprocess.run(["tar", "--extract", "--directory", root], input=files, check=True)


def image() -> Built:
    """The image of the project as it is; skips where it cannot be had, as without a mirror."""
    inputs = _make("--inputs")
    if inputs.returncode == UNAVAILABLE:
        pytest.skip(inputs.stderr.strip())
    assert inputs.returncode == 0, inputs.stderr
    key = hashlib.sha256(inputs.stdout.encode()).hexdigest()[:16]
    archive = _cache() / f"{key}.tar"
    if not archive.exists():
        _build(archive)
        _forget_old()
    return _read(archive)


def _forget_old() -> None:
    """Not all others: another checkout may be at work with its own."""
    for archive in _cache().glob("*.tar"):
        if archive.stat().st_mtime < time.time() - _KEPT_SECONDS:
            archive.unlink()


def build(archive: Path) -> Built:
    """Build it, whether it is there or not."""
    _build(archive)
    return _read(archive)


def _build(archive: Path) -> None:
    done = _make("--output", str(archive))
    assert done.returncode == 0, done.stderr


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, MAKE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH},
    )


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "accel-image" / "tests"


def _read(archive: Path) -> Built:
    with tarfile.open(archive) as files:
        index = files.extractfile("index.json")
        assert index is not None
        (described,) = json.load(index)["manifests"]
        manifest = json.loads(_blob(files, described["digest"]))
        config = json.loads(_blob(files, manifest["config"]["digest"]))
    name = described["annotations"]["io.containerd.image.name"]
    return Built(archive, described["digest"], name, config["config"])


def _blob(archive: tarfile.TarFile, digest: str) -> bytes:
    file = archive.extractfile(f"blobs/{digest.replace(':', '/')}")
    assert file is not None
    return file.read()

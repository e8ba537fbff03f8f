"""The archive against the OCI image specification: digests, sizes, nothing of the moment."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from build.oci.layout import Image, knows, write_archive, write_layer

EPOCH = 1_700_000_000
IMAGE = Image("localhost/some:1", "amd64", EPOCH, {"Cmd": ["/hello"]})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files, made in no particular order, of several times, owners and modes."""
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    for number, name in enumerate(("usr/bin/z", "usr/bin/a", "hello")):
        (root / name).write_text(name)
        os.utime(root / name, (number, number))
    (root / "hello").chmod(0o4755)
    (root / "usr/bin/same").hardlink_to(root / "usr/bin/a")
    (root / "bin").symlink_to("usr/bin")
    return root


def layer_of(root: Path) -> bytes:
    target = io.BytesIO()
    write_layer(root, target, EPOCH)
    return target.getvalue()


def entries(layer: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return archive.getmembers()


def test_entries_are_sorted_and_tell_nothing_of_this_machine(root: Path) -> None:
    found = entries(layer_of(root))
    names = [entry.name for entry in found]
    assert names == [
        "bin", "hello", "tmp", "usr", "usr/bin", "usr/bin/a", "usr/bin/same", "usr/bin/z",
    ]  # fmt: skip
    for entry in found:
        assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")
        assert entry.mtime == EPOCH


def test_modes_links_and_contents_are_kept_but_none_lends_its_owners_rights(root: Path) -> None:
    layer = layer_of(root)
    found = {entry.name: entry for entry in entries(layer)}
    assert found["hello"].mode == 0o755
    assert found["tmp"].mode == 0o1777
    assert found["bin"].issym()
    assert found["bin"].linkname == "usr/bin"
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for name, text in (("usr/bin/a", b"usr/bin/a"), ("usr/bin/same", b"usr/bin/a")):
            file = archive.extractfile(name)
            assert file is not None
            assert file.read() == text


def test_two_archives_are_the_same_bytes(root: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    digest = write_archive(layer_of(root), IMAGE, first)
    os.utime(root / "hello")
    (root / "usr/bin/z").unlink()
    (root / "usr/bin/z").write_text("usr/bin/z")
    assert write_archive(layer_of(root), IMAGE, second) == digest
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar", "root", "second.tar"]


def read_blob(archive: tarfile.TarFile, descriptor: dict[str, Any]) -> bytes:
    """What a descriptor tells of, which has to be as it says."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    file = archive.extractfile(f"blobs/{algorithm}/{digest}")
    assert file is not None
    blob = file.read()
    assert (len(blob), hashlib.new(algorithm, blob).hexdigest()) == (descriptor["size"], digest)
    return blob


def test_everything_is_found_from_the_index(root: Path, tmp_path: Path) -> None:
    layer = layer_of(root)
    digest = write_archive(layer, IMAGE, tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as archive:
        names = archive.getnames()
        marker = archive.extractfile("oci-layout")
        index_file = archive.extractfile("index.json")
        assert marker is not None
        assert index_file is not None
        assert json.load(marker) == {"imageLayoutVersion": "1.0.0"}
        (described,) = json.load(index_file)["manifests"]
        assert described["digest"] == digest
        assert described["platform"] == {"architecture": "amd64", "os": "linux"}
        assert described["annotations"]["io.containerd.image.name"] == IMAGE.name
        manifest = json.loads(read_blob(archive, described))
        config = json.loads(read_blob(archive, manifest["config"]))
        (packed,) = manifest["layers"]
        assert packed["mediaType"].endswith("tar+gzip")
        assert gzip.decompress(read_blob(archive, packed)) == layer
    assert len(names) == len(set(names)) == 5
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert config["config"] == IMAGE.settings
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert (config["os"], config["architecture"]) == ("linux", "amd64")


def test_architectures_by_debians_names() -> None:
    assert knows("arm64")
    assert not knows("hurd-i386")

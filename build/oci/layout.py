"""A root filesystem as an OCI image in one tar archive, the same bytes every time.

The archive is an image layout (image-layout.md of the OCI image specification, 1.0):

    oci-layout             which version of the layout this is
    index.json             which manifests there are: one, with its platform and its name
    blobs/sha256/...       the manifest, the config, the layer: each by the digest of its bytes

Nothing of the machine or the moment gets in: entries are sorted, owned by root, and of
one time; the gzip header has neither name nor time.  (Another release of zlib may pack
otherwise: then the manifest's digest is another, and the config with its diff_ids the same.)
"""

import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"

# Debian's names of architectures, and Go's, which the specification uses, with the variant.
_ARCHITECTURES = {
    "amd64": ("amd64", None),
    "arm64": ("arm64", "v8"),
    "armhf": ("arm", "v7"),
    "i386": ("386", None),
    "ppc64el": ("ppc64le", None),
    "riscv64": ("riscv64", None),
    "s390x": ("s390x", None),
}

_LEVEL = 6  # of gzip: 9 takes six times as long for one hundredth less


@dataclass(frozen=True)
class Image:
    """All that makes an image, but its files.

    Attributes:
        name: As in "localhost/accel:0.1.0"; what it is called after an import.
        architecture: Debian's name of it.
        epoch: When everything in it was made: seconds since 1970.
        settings: The config's "config": Env, Entrypoint, Cmd, Labels and the like.
    """

    name: str
    architecture: str
    epoch: int
    settings: Mapping[str, Any]


def knows(architecture: str) -> bool:
    """Whether images can be made for an architecture, by Debian's name."""
    return architecture in _ARCHITECTURES


def write_layer(root: Path, target: BinaryIO, epoch: int) -> None:
    """Everything below `root` as a tar archive.

    Args:
        epoch: The time of every entry, in seconds since 1970.
    """
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            entry = archive.gettarinfo(path, str(path.relative_to(root)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = epoch
            entry.mode &= 0o1777  # nothing runs as anybody else than who started it
            if entry.isreg() or entry.islnk():
                entry.type, entry.linkname = tarfile.REGTYPE, ""  # hard links become copies
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)


def write_archive(layer: bytes, image: Image, target: Path) -> str:
    """The whole image.  `target` appears at once or not at all.

    Args:
        layer: What write_layer() wrote.

    Returns:
        The digest of its manifest, as in "sha256:0123...".
    """
    packed = _gzip(layer)
    config = _json(_config(layer, image))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, packed)],
        }
    )
    described = _descriptor(_MANIFEST, manifest)
    index = _json(
        {
            "schemaVersion": 2,
            "mediaType": _INDEX,
            "manifests": [
                described
                | {
                    "platform": _platform(image.architecture),
                    # The first is containerd's own, the second what podman and others read.
                    "annotations": {
                        "io.containerd.image.name": image.name,
                        "org.opencontainers.image.ref.name": image.name,
                    },
                }
            ],
        }
    )
    blobs = {f"blobs/sha256/{_digest(blob)}": blob for blob in (packed, config, manifest)}
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": index,
        **dict(sorted(blobs.items())),
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
        unfinished = Path(scratch, target.name)
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(data), 0o644, image.epoch
                archive.addfile(entry, io.BytesIO(data))
        unfinished.rename(target)
    return str(described["digest"])


def _config(layer: bytes, image: Image) -> dict[str, Any]:
    created = datetime.fromtimestamp(image.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "created": created,
        **_platform(image.architecture),
        "config": dict(image.settings),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
        "history": [{"created": created, "created_by": "build/image"}],
    }


def _platform(architecture: str) -> dict[str, str]:
    name, variant = _ARCHITECTURES[architecture]
    return {"architecture": name, "os": "linux"} | ({"variant": variant} if variant else {})


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{_digest(blob)}", "size": len(blob)}


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, _LEVEL, mtime=0)

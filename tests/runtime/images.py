"""One small image for every container of a node: this machine's busybox, with its libraries."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

IMAGE = "localhost/node:1"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(path: Path, *programs: Path) -> None:
    """Write IMAGE as an OCI layout in a tar file, as `ctr images import` takes it.

    Args:
        programs: Executables whose libraries are to be in it as well; they themselves are not,
            so that a large one can be mounted.
    """
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    layer = _layer(busybox, {library for p in (busybox, *programs) for library in _libraries(p)})
    config = _json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/busybox", "sleep", "1000000"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _blob(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [_blob(layer, "application/vnd.oci.image.layer.v1.tar")],
        }
    )
    index = {
        "schemaVersion": 2,
        "manifests": [
            _blob(manifest, "application/vnd.oci.image.manifest.v1+json")
            | {"annotations": {"io.containerd.image.name": IMAGE}}
        ],
    }
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json(index))
        for content in (layer, config, manifest):
            _add(tar, f"blobs/sha256/{_digest(content).removeprefix('sha256:')}", content)


def _libraries(program: Path) -> set[str]:
    """Absolute paths of what the dynamic linker would load, itself included."""
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"(/\S+) \(0x", told))  # a static program has none


def _layer(busybox: Path, libraries: set[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for directory in ("tmp", "proc", "sys", "dev", "etc"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", busybox.read_bytes())
        for name in ("sh", "sleep", "nc", "wget", "cat", "true"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for library in sorted(libraries):
            _add(tar, library.lstrip("/"), Path(library).read_bytes())
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


def _blob(content: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()

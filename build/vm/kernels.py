"""Where the kernels come from: Debian packages, fetched and unpacked, never installed."""

import fnmatch
import re
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import debian


@dataclass(frozen=True)
class Kernel:
    """One row of kernels.toml."""

    name: str
    suites: tuple[str, ...]
    version: str  # glob over VERSION in linux-PART-VERSION
    parts: tuple[str, ...]  # each PART of it
    cpu: str  # as QEMU names it


@dataclass(frozen=True)
class Unpacked:
    """A kernel package on disk."""

    release: str  # as uname -r says
    image: Path
    modules: Path  # the directory that kernel/*.ko are in
    settings: Path | None  # what it was built with, where the package says


def read_matrix(path: Path) -> dict[str, Kernel]:
    """The kernels of kernels.toml by name, oldest first."""
    rows = tomllib.loads(path.read_text())
    return {
        name: Kernel(name, tuple(row["suites"]), row["version"], tuple(row["parts"]), row["cpu"])
        for name, row in rows.items()
    }


def fetch(kernel: Kernel, cache: Path, *, refresh: bool = False) -> Unpacked:
    """The kernel, from the cache or else from the mirror.

    Args:
        refresh: Ask the mirror for the newest, whatever the cache holds.

    Raises:
        debian.Unavailable: No suite of this kernel could be read, or none has such a package.
    """
    home = cache / "kernels" / kernel.name
    if refresh or not home.exists():
        _replace(home, kernel, cache)
    return _look_into(home)


def _replace(home: Path, kernel: Kernel, cache: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        tree = Path(scratch) / "tree"
        for package in _download(kernel, cache, Path(scratch)):
            debian.unpack(package, tree)
        shutil.rmtree(home, ignore_errors=True)
        tree.rename(home)


def _download(kernel: Kernel, cache: Path, into: Path) -> list[Path]:
    """Its packages in the newest version; one suite that fails does not end the search."""
    refusals = []
    for suite in kernel.suites:
        try:
            archive = debian.Suite(suite, cache / "apt" / suite)
            versions = _versions(archive, kernel)
            if versions:
                newest = max(versions, key=_by_number)
                names = [f"linux-{part}-{newest}" for part in kernel.parts]
                return [archive.download(name, into) for name in names]
            refusals.append(f"{suite} has no linux-{kernel.parts[0]}-{kernel.version}")
        except debian.Unavailable as missing:
            refusals.append(str(missing))
    raise debian.Unavailable(f"kernel {kernel.name} is not to be had: {'; '.join(refusals)}")


def _versions(archive: debian.Suite, kernel: Kernel) -> list[str]:
    prefix = f"linux-{kernel.parts[0]}-"
    names = archive.names(prefix)
    return fnmatch.filter([name.removeprefix(prefix) for name in names], kernel.version)


def _by_number(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _look_into(home: Path) -> Unpacked:
    """Up to 6.x the image is boot/vmlinuz-*; later it lies among the modules."""
    (modules,) = [*home.glob("lib/modules/*"), *home.glob("usr/lib/modules/*")]
    image = home / "boot" / f"vmlinuz-{modules.name}"
    if not image.exists():
        image = modules / "vmlinuz"
    settings = home / "boot" / f"config-{modules.name}"
    return Unpacked(modules.name, image, modules, settings if settings.exists() else None)

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
    """One row of kernels.toml, which says what the fields mean."""

    name: str
    suites: tuple[str, ...]
    version: str = ""
    parts: tuple[str, ...] = ()
    package: str = ""
    cpu: str = ""
    supported: bool = True


@dataclass(frozen=True)
class Unpacked:
    """A kernel package on disk."""

    release: str  # as uname -r says, or the package's name
    image: Path
    modules: Path | None  # the directory that kernel/*.ko are in
    settings: Path | None  # what it was built with, where the package says

    @property
    def is_user_mode(self) -> bool:
        """Whether the image is a program of this machine."""
        return self.modules is None


def read_matrix(path: Path) -> dict[str, Kernel]:
    """The kernels of kernels.toml by name, oldest first."""
    rows = tomllib.loads(path.read_text())
    lists = ("suites", "parts")
    return {
        name: Kernel(name, **{key: tuple(row[key]) if key in lists else row[key] for key in row})
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
            if names := _packages(archive, kernel):
                return [archive.download(name, into) for name in names]
            wanted = kernel.package or f"linux-{kernel.parts[0]}-{kernel.version}"
            refusals.append(f"{suite} has no {wanted}")
        except debian.Unavailable as missing:
            refusals.append(str(missing))
    raise debian.Unavailable(f"kernel {kernel.name} is not to be had: {'; '.join(refusals)}")


def _packages(archive: debian.Suite, kernel: Kernel) -> list[str]:
    """Names of the packages to fetch; none where the suite has no such kernel."""
    if kernel.package:
        return [name for name in archive.names(kernel.package) if name == kernel.package]
    prefix = f"linux-{kernel.parts[0]}-"
    known = [name.removeprefix(prefix) for name in archive.names(prefix)]
    versions = fnmatch.filter(known, kernel.version)
    newest = max(versions, key=_by_number, default=None)
    return [f"linux-{part}-{newest}" for part in kernel.parts] if newest else []


def _by_number(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def _look_into(home: Path) -> Unpacked:
    """Up to 6.x the image is boot/vmlinuz-*; later it lies among the modules.

    User-mode Linux is a program; what it has of modules no test needs.
    """
    user_mode = home / "usr" / "bin" / "linux.uml"
    if user_mode.exists():
        return Unpacked(user_mode.name, user_mode, None, None)
    (modules,) = [*home.glob("lib/modules/*"), *home.glob("usr/lib/modules/*")]
    image = home / "boot" / f"vmlinuz-{modules.name}"
    if not image.exists():
        image = modules / "vmlinuz"
    settings = home / "boot" / f"config-{modules.name}"
    return Unpacked(modules.name, image, modules, settings if settings.exists() else None)

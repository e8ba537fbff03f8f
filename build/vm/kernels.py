"""Where the kernels come from: Debian packages, fetched and unpacked, never installed.

Suites other than the installed one are read through an apt configuration of our
own (lists and archives in the cache directory); only the mirror's address and the
proxy settings are the system's.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unavailable(Exception):
    """The mirror does not have this kernel, or cannot be reached."""


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
        Unavailable: No suite of this kernel could be read, or none has such a package.
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
            _run("dpkg", "-x", str(package), str(tree))
        shutil.rmtree(home, ignore_errors=True)
        tree.rename(home)


def _download(kernel: Kernel, cache: Path, into: Path) -> list[Path]:
    """Its packages in the newest version; one suite that fails does not end the search."""
    refusals = []
    for suite in kernel.suites:
        try:
            apt = _Apt(suite, cache / "apt" / suite)
            versions = apt.versions(kernel.parts[0], kernel.version)
            if versions:
                newest = max(versions, key=_by_number)
                return [apt.download(f"linux-{part}-{newest}", into) for part in kernel.parts]
            refusals.append(f"{suite} has no linux-{kernel.parts[0]}-{kernel.version}")
        except Unavailable as missing:
            refusals.append(str(missing))
        except subprocess.CalledProcessError as refused:
            errors = re.findall(r"^E: (.+)", refused.stderr, re.MULTILINE)
            refusals.append(f"{suite}: {errors[0] if errors else refused}")
    raise Unavailable(f"kernel {kernel.name} is not to be had: {'; '.join(refusals)}")


def _by_number(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


class _Apt:
    """apt for one suite, in directories of its own."""

    def __init__(self, suite: str, home: Path) -> None:
        for folder in ("lists/partial", "archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {_archive_of(suite)} {suite} main\n")
        self._options = [
            f"-oDir::State::Lists={home / 'lists'}",
            f"-oDir::Cache={home}",
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=/dev/null",
            "-oAcquire::Languages=none",
            "-oAPT::Sandbox::User=",
            "-oAPT::Update::Error-Mode=any",
        ]
        self._apt("apt-get", "-q", "update")

    def versions(self, part: str, glob: str) -> list[str]:
        prefix = f"linux-{part}-"
        names = self._apt("apt-cache", "pkgnames", prefix).split()
        return fnmatch.filter([name.removeprefix(prefix) for name in names], glob)

    def download(self, name: str, into: Path) -> Path:
        self._apt("apt-get", "-q", "download", name, cwd=into)
        (package,) = into.glob(f"{name}_*.deb")
        return package

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        return _run(tool, *self._options, *arguments, cwd=cwd)


def _archive_of(suite: str) -> str:
    """The address that the system's own apt sources give for such a suite."""
    kind = "-security" if suite.endswith("-security") else ""
    planned = _run("apt-get", "update", "--print-uris")
    own = _codename() + kind
    known = re.search(rf"'(\S+)/dists/{own}/InRelease'", planned)
    if not known:
        raise Unavailable(f"no apt source of this system has the suite {own}")
    return known[1]


def _codename() -> str:
    release = Path("/etc/os-release").read_text()
    found = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)
    if not found:
        raise Unavailable("/etc/os-release names no suite; this needs Debian")
    return found[1]


def _run(*command: str, cwd: Path | None = None) -> str:
    english = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, env=english)
    return done.stdout


def _look_into(home: Path) -> Unpacked:
    """Up to 6.x the image is boot/vmlinuz-*; later it lies among the modules."""
    (modules,) = [*home.glob("lib/modules/*"), *home.glob("usr/lib/modules/*")]
    image = home / "boot" / f"vmlinuz-{modules.name}"
    if not image.exists():
        image = modules / "vmlinuz"
    return Unpacked(modules.name, image, modules)

"""Packages of any Debian suite, fetched and unpacked, never installed.

Suites other than the installed one are read through an apt configuration of our own
(lists and archives in a directory of the caller's); only the mirror's address and the
proxy settings are the system's.  Of the installed one the system's own lists are read,
security updates included.
"""

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


UNAVAILABLE = 77
"""Exit status of what ends because something is Unavailable: a skipped test, for automake and others."""


class Unavailable(Exception):
    """The mirror does not have it, or cannot be reached."""


class Suite:
    """apt for one suite, in directories of its own.

    Every method raises Unavailable when apt does not give what was asked for.
    """

    def __init__(self, name: str, home: Path, architecture: str | None = None) -> None:
        """Fetch the suite's lists of packages.

        Args:
            home: Where apt keeps its files.
            architecture: Of the packages; None for this machine's.
        """
        self.name = name
        for folder in ("lists/partial", "archives/partial"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        sources = home / "sources.list"
        sources.write_text(f"deb [signed-by={KEYRING}] {_archive_of(name)} {name} main\n")
        self._options = [
            f"-oDir::State::Lists={home / 'lists'}",
            f"-oDir::Cache={home}",
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=/dev/null",
            "-oAcquire::Languages=none",
            "-oAPT::Sandbox::User=",
            "-oAPT::Update::Error-Mode=any",
        ]
        if architecture is not None:
            self._options += [f"-oAPT::Architecture={architecture}", "-oAPT::Architectures="]
        self._apt("apt-get", "-q", "update")

    def names(self, prefix: str) -> list[str]:
        """Names of the packages that begin so."""
        return self._apt("apt-cache", "pkgnames", prefix).split()

    def download(self, package: str, into: Path) -> Path:
        """Fetch one package's newest version into a directory; where it is then."""
        self._apt("apt-get", "-q", "download", package, cwd=into)
        (fetched,) = into.glob(f"{package}_*.deb")
        return fetched

    def _apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        try:
            return _run(tool, *self._options, *arguments, cwd=cwd)
        except subprocess.CalledProcessError as refused:
            raise Unavailable(f"{self.name}: {_first_error(refused)}") from refused


@dataclass(frozen=True)
class Archive:
    """A package as apt would fetch it."""

    file: str  # its name
    sha256: str


class EmptySystem:
    """What would have to be installed where nothing is yet, from the system's own sources."""

    def __init__(self, home: Path) -> None:
        """
        Args:
            home: Where apt keeps its files, and archives from one run to the next.
        """
        self._archives = home / "archives"
        self._nowhere = home / "none"
        for folder in (self._archives, self._nowhere):
            (folder / "partial").mkdir(parents=True, exist_ok=True)
        nothing = home / "status"
        nothing.touch()
        self._install = (
            *("apt-get", "-qq", "--yes", "--no-install-recommends"),
            *(f"-oDir::State::Status={nothing}", f"-oDir::Cache={home}"),
            *("-oAPT::Sandbox::User=", "-oAcquire::ForceHash=SHA256", "install"),
        )

    def needs(self, *packages: str) -> tuple[Archive, ...]:
        """The packages and all that they depend on.

        Raises:
            Unavailable: The lists do not have them, or the lists are not there.
        """
        # apt names only what it has not fetched yet.
        planned = self._apt(f"-oDir::Cache::Archives={self._nowhere}", "--print-uris", *packages)
        return tuple(
            Archive(file, sha256)
            for file, sha256 in re.findall(r"^'\S+' (\S+) \d+ SHA256:(\w+)$", planned, re.MULTILINE)
        )

    def fetch(self, *packages: str) -> tuple[Path, ...]:
        """Have all of needs() here, each as the signed lists say; where they are then.

        Raises:
            Unavailable: The mirror does not have them any more, or cannot be reached.
        """
        needed = self.needs(*packages)
        if not all(self._has(archive) for archive in needed):
            self._apt("--download-only", *packages)
        return tuple(self._archives / archive.file for archive in needed)

    def _has(self, archive: Archive) -> bool:
        path = self._archives / archive.file
        return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == archive.sha256

    def _apt(self, *arguments: str) -> str:
        try:
            return _run(*self._install, *arguments)
        except (subprocess.CalledProcessError, FileNotFoundError) as refused:
            raise Unavailable(_first_error(refused)) from refused


def unpack(package: Path, tree: Path) -> None:
    """The files of a fetched package, under a directory."""
    _run("dpkg", "-x", str(package), str(tree))


def _first_error(refused: subprocess.CalledProcessError | FileNotFoundError) -> str:
    """What apt itself says of it."""
    if isinstance(refused, FileNotFoundError):
        return f"{refused.filename} is missing: this needs Debian"
    errors = re.findall(r"^E: (.+)", refused.stderr, re.MULTILINE)
    return str(errors[0] if errors else refused)


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

"""Which containerds there are on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "accel-runtimes"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CNI = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


@dataclass(frozen=True)
class Release:
    """One containerd.

    Attributes:
        path: Where its programs are looked for, as in $PATH: its shim and ctr come with it.
    """

    name: str
    containerd: Path
    path: str

    @property
    def ctr(self) -> Path:
        return self.containerd.with_name("ctr")

    @property
    def major(self) -> int:
        """Of its version."""
        command = [str(self.containerd), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r" v?(\d+)\.", said)
        assert found is not None, said
        return int(found[1])


INSTALLED = "containerd"
FETCHED = tuple(tomllib.loads((PROJECT / "build/runtimes/suites.toml").read_text()))


def find_release(name: str) -> Release:
    """The installed containerd, or one that was fetched; skips the test that asks otherwise."""
    for program in ("containerd", "containerd-shim-runc-v2", "runc", "busybox", "ip"):
        if shutil.which(program, path=_SYSTEM_PATH) is None:
            pytest.skip(f"no {program}: build/setup test")
    if name == INSTALLED:
        found = shutil.which(INSTALLED, path=_SYSTEM_PATH)
        assert found is not None
        return Release(name, Path(found), _SYSTEM_PATH)
    binaries = _CACHE / name / "usr/bin"
    if not (binaries / "containerd").exists():
        pytest.skip(f"no {name}: build/runtimes/fetch")
    return Release(name, binaries / "containerd", f"{binaries}:{_SYSTEM_PATH}")


def cni_plugins() -> Path:
    """The directory of the CNI plugins; skips the test that asks where there are none."""
    for directory in _CNI:
        if (directory / "bridge").exists():
            return directory
    pytest.skip("no CNI plugins: build/setup test")


def releases(*names: str) -> pytest.MarkDecorator:
    """Gives the tests of a module a node for each of these releases, by the fixture `node`.

    Without names: every one there may be.
    """
    return pytest.mark.parametrize("node", names or (INSTALLED, *FETCHED), indirect=True)

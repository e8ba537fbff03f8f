"""accel and what it imports, from the lock files into a directory.

The lock holds more than that, as it serves to build accel, too; what is needed at run
time follows from what each wheel says it requires.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from email.parser import HeaderParser
from pathlib import Path

from failure import Failure
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

COMMAND = """\
#!/usr/bin/python3 -I
import sys

from accel.cli import main

sys.exit(main())
"""


def fetch(locks: Iterable[Path], python_version: str, into: Path) -> None:
    """Download what the locks name, each file checked against its hash.

    Args:
        python_version: Of the interpreter that is to import it, as in "3.11".
    """
    requirements = [word for lock in locks for word in ("--requirement", str(lock))]
    _pip(
        *("download", "--require-hashes", "--no-deps", "--only-binary=:all:"),
        *("--python-version", python_version, "--dest", str(into), *requirements),
        what="download what the lock files name",
    )


def build_project(project: Path, into: Path) -> None:
    """accel itself, as a wheel; the BPF objects have to be there."""
    _pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(into), str(project)),
        what="build accel",
    )


def install(wheels: Path, root: str, python_version: str, into: Path) -> tuple[str, ...]:
    """Unpack one wheel and those it requires.

    Args:
        wheels: Directory that holds them all.
        root: Which one, with its extras, as in "accel[kubernetes]".

    Returns:
        Name and version of each, as in "anyio 4.16.0".
    """
    available = {_name(wheel): wheel for wheel in wheels.glob("*.whl")}
    wanted = _closure(Requirement(root), available, python_version)
    for name in wanted:
        _unpack(available[name], into)
    return tuple(f"{name} {available[name].name.split('-')[1]}" for name in wanted)


def _pip(*arguments: str, what: str) -> None:
    command = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise Failure(
            f"{what}: {said[0] if said else f'pip: exit status {done.returncode}'}",
            "look whether the package index can be reached, or run build/setup image again",
        )


def _name(wheel: Path) -> str:
    return canonicalize_name(wheel.name.partition("-")[0])


def _closure(root: Requirement, available: Mapping[str, Path], python_version: str) -> list[str]:
    """Names of all that is needed, in order."""
    done: set[tuple[str, str]] = set()  # with each extra, "" for none
    waiting = [(root.name, extra) for extra in ("", *root.extras)]
    while waiting:
        name, extra = waiting.pop()
        key = (canonicalize_name(name), extra)
        if key in done:
            continue
        if key[0] not in available:
            raise Failure(f"no lock file names {name}, which accel needs", "run build/lock")
        done.add(key)
        here: dict[str, str | AbstractSet[str]] = {
            **{key: str(value) for key, value in default_environment().items()},
            "python_version": python_version,
            "python_full_version": f"{python_version}.0",
            "extra": extra,
        }
        for requirement in _requirements(available[key[0]]):
            if requirement.marker is None or requirement.marker.evaluate(here):
                waiting += [(requirement.name, each) for each in ("", *requirement.extras)]
    return sorted({name for name, _ in done})


def _requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        text = files.read(metadata).decode()
    return [
        Requirement(line) for line in HeaderParser().parsestr(text).get_all("Requires-Dist", ())
    ]


def _unpack(wheel: Path, into: Path) -> None:
    """Its modules.  Scripts stay away, as do records of them that nobody reads in an image."""
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            top, _, rest = name.partition("/")
            if top.endswith(".data"):
                if rest.startswith(("purelib/", "platlib/")):
                    raise Failure(
                        f"unpack {wheel.name}: it keeps modules in {top}",
                        "teach build/oci/wheels.py that layout",
                    )
            elif not name.endswith(("/", ".dist-info/RECORD")):
                files.extract(name, into)

"""What `source: auto` takes: the best that this node has, and why.

Sockets are looked for where each runtime has them unless told otherwise.  One that is there
while its runtime is not, as between two starts, is as good as any: sources dial again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISSOCK

NRI = ("/run/nri/nri.sock",)
CONTAINERD = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",  # k3s, RKE2
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
)
CRI = (
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
)

_WHY = {
    "nri": "the runtime calls before a container starts",
    "containerd": "its events tell of a container before it runs",
    "cri": "the runtime is asked for its list",
    "processes": "no runtime has its own socket where one would be",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A source that this node has.

    Attributes:
        name: As in the settings.
        socket: Where its runtime listens; empty for processes.
        why: For people.
    """

    name: str
    socket: str
    why: str

    def __str__(self) -> str:
        at = f" at {self.socket}" if self.socket else ""
        return f"{self.name}{at}: {self.why}"


def discover(root: Path = Path("/")) -> tuple[Found, ...]:
    """The sources to follow, the best first.

    NRI never comes alone: it may be switched off though its socket is there.
    """
    runtime = tuple(_runtime(root)) or (Found("processes", "", _WHY["processes"]),)
    return (*_first(root, "nri", NRI), *runtime)


def socket_of(name: str, root: Path = Path("/")) -> str:
    """Where the runtime of that source listens, if it has one; the usual place if nowhere now."""
    places = {"nri": NRI, "containerd": CONTAINERD, "cri": (*CONTAINERD, *CRI)}.get(name)
    if places is None:
        return ""
    return next((found.socket for found in _first(root, name, places)), places[0])


def _runtime(root: Path) -> Iterator[Found]:
    containerd = tuple(_first(root, "containerd", CONTAINERD))
    yield from containerd or _first(root, "cri", CRI)


def _first(root: Path, name: str, places: Collection[str]) -> Iterator[Found]:
    for place in places:
        if _is_socket(root / place.lstrip("/")):
            yield Found(name, place, _WHY[name])
            return


def _is_socket(path: Path) -> bool:
    try:
        return S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False

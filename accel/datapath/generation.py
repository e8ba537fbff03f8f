"""Where the pins are: one directory for each generation of the data path.

    <bpffs>/<object>-<connections>/     e.g. /sys/fs/bpf/accel/1f0c9a73b2d4-65536/
        <map>  for every map            .data is pinned as "data": bpffs reserves dots
        accel_sockops, accel_redirect, accel_pass, accel_guard, accel_look
        guard                           accel_guard on the cgroup of link
        link                            sock_ops on its cgroup; what makes the rest work

A generation is complete once its link is there; the guard comes before it.  Another
object, or other sizes, are another generation; the link is handed over from the old
one, which its last sockets then keep alive without pins.  Guards are not handed over:
each knows the sockets of its own generation, and several may stand side by side.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from accel import bpf
from accel.datapath.errors import DatapathError, NotRunning

PROGRAMS = ("accel_sockops", "accel_redirect", "accel_pass", "accel_guard", "accel_look")
LINK = "link"
GUARD = "guard"


@cache
def object_bytes() -> bytes:
    """The built object for this machine's byte order.

    Raises:
        DatapathError: It was not built.
    """
    suffix = "el" if sys.byteorder == "little" else "eb"
    file = resources.files("accel.datapath") / f"accel.bpf{suffix}.o"
    try:
        return file.read_bytes()
    except FileNotFoundError as e:
        raise DatapathError(
            f"read BPF object {file}: {e.strerror}", remedy="build it with `make -C build`"
        ) from e


@cache
def object_spec() -> bpf.ObjectSpec:
    return bpf.open_object(object_bytes(), name="accel")


@dataclass(frozen=True, slots=True)
class Generation:
    """One pin directory.  Holds no descriptor."""

    directory: Path
    object_id: str
    max_connections: int

    @classmethod
    def ours(cls, bpffs: Path, max_connections: int) -> Generation:
        """The generation that this package's object makes."""
        object_id = hashlib.sha256(object_bytes()).hexdigest()[:12]
        return cls(bpffs / f"{object_id}-{max_connections}", object_id, max_connections)

    @classmethod
    def parse(cls, directory: Path) -> Generation | None:
        object_id, dash, connections = directory.name.partition("-")
        if not dash or not connections.isdecimal():
            return None
        return cls(directory, object_id, int(connections))

    @property
    def link(self) -> Path:
        return self.directory / LINK

    @property
    def guard(self) -> Path:
        """Pin of the setsockopt hook; not there in generations before it existed."""
        return self.directory / GUARD

    def map(self, name: str) -> Path:
        return self.directory / name.lstrip(".").replace(".", "_")

    def program(self, name: str) -> Path:
        return self.directory / name

    @property
    def spec(self) -> bpf.ObjectSpec:
        """Our object, sized as this generation is."""
        return object_spec().with_max_entries(
            connections=self.max_connections,
            sockets=2 * self.max_connections,
            one_queue_sockets=2 * self.max_connections,
        )

    def is_pinned(self) -> bool:
        """All maps and programs are there; the link may not be."""
        pins = [self.map(name) for name in self.spec.maps]
        pins += [self.program(name) for name in PROGRAMS]
        return all(pin.exists() for pin in pins)

    def remove(self) -> None:
        """Drop the pins.  What sockets still use lives on without them."""
        shutil.rmtree(self.directory)


def generations(bpffs: Path) -> Iterator[Generation]:
    """Those found under `bpffs`, complete or not."""
    if not bpffs.is_dir():
        return
    for directory in sorted(bpffs.iterdir()):
        generation = Generation.parse(directory)
        if generation is not None:
            yield generation


@contextmanager
def reserved(bpffs: Path) -> Iterator[None]:
    """Be the one agent that writes these pins' maps, whatever its run directory.

    Raises:
        DatapathError: Another agent does, or the directory cannot be made.
    """
    try:
        bpffs.mkdir(parents=True, exist_ok=True)
        fd = os.open(bpffs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise DatapathError(
            f"use {bpffs}: {e.strerror}",
            remedy=f"mount a BPF file system there: mount -t bpf bpf {bpffs}",
        ) from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise DatapathError(
                f"start the agent: another one keeps the maps pinned in {bpffs}",
                remedy="stop it first, or give this one its own --bpffs and --cgroup",
            ) from e
        yield
    finally:
        os.close(fd)


def running(bpffs: Path) -> Generation:
    """The complete generation, whichever version made it.

    Raises:
        NotRunning: There is none.
    """
    for generation in generations(bpffs):
        if generation.link.exists():
            return generation
    raise NotRunning(
        f"look for pins below {bpffs}: none found",
        remedy="start the agent with `accel run`, or name its --bpffs",
    )

"""A container of a manifest under runc alone: what kubelet and runtime make of it, by hand.

What is the node's (its BPF file system, its /run) is replaced by directories of the test's.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.image.built import Built
from tests.image.manifests import Manifest
from tests.image.volumes import Volumes
from tests.kernel.instance import PATIENCE_SECONDS, Answer, wait_until

# linux/capability.h, in order; privileged containers have all that there are.
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip

# As both containerd and CRI-O mount them in privileged containers.
_USUAL_MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "rw")),
)


@dataclass(frozen=True)
class Container:
    """One container of a pod; runs the image unpacked in `root`, which stays as it is."""

    built: Built
    root: Path
    pod: Manifest
    manifest: Manifest
    volumes: Volumes
    more_namespaces: tuple[str, ...] = ()
    cgroup: str = ""  # in the hierarchy; by default one of its own at the top
    id: str = field(default_factory=lambda: f"accel-test-{uuid4().hex[:12]}")

    def run(self) -> Answer:
        """To its end."""
        with self._bundle() as bundle:
            done = subprocess.run(
                [*self._runc, "run", "--bundle", bundle, self.id],
                capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
            )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Until it is stopped, at the latest at the end of the context."""
        log = self.volumes.scratch / f"{self.id}.log"
        with self._bundle() as bundle, log.open("wb") as err:
            popen = subprocess.Popen(
                [*self._runc, "run", "--bundle", bundle, self.id],
                stdin=subprocess.DEVNULL, stdout=err, stderr=err,
            )  # fmt: skip
            running = Running(self, popen, log)
            try:
                yield running
            finally:
                running.end(signal.SIGTERM)

    @property
    def _runc(self) -> tuple[str, ...]:
        return ("runc", "--root", str(self.volumes.scratch / "runc"))

    @contextmanager
    def _bundle(self) -> Iterator[Path]:
        bundle = self.volumes.scratch / self.id
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(self._spec()))
        try:
            yield bundle
        finally:
            subprocess.run([*self._runc, "delete", "--force", self.id], check=True)
            self._remove_parents()

    def _remove_parents(self) -> None:
        """runc makes the cgroups above its own in every hierarchy, and leaves them."""
        for parent in Path(self.cgroup).parents[:-1]:
            for hierarchy in Path("/sys/fs/cgroup").iterdir():
                with suppress(FileNotFoundError, NotADirectoryError):
                    (hierarchy / parent.relative_to("/")).rmdir()

    def _spec(self) -> dict[str, Any]:
        """The runtime's configuration (config.md of the OCI runtime specification, 1.0.2)."""
        security = self.manifest["securityContext"]
        assert security["privileged"]  # all others would be confined in more ways than here
        command = self.manifest.get("command", self.built.settings["Entrypoint"])
        capabilities = _ours()
        kinds = ["mount", "ipc", "uts", *self.more_namespaces]
        kinds += [] if self.pod.get("hostPID") else ["pid"]
        kinds += [] if self.pod.get("hostNetwork") else ["network"]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": security["runAsUser"], "gid": 0},
                "args": [*command, *self.manifest["args"]],
                "env": self.built.settings["Env"],
                "cwd": "/",
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            },
            "root": {"path": str(self.root), "readonly": security["readOnlyRootFilesystem"]},
            "mounts": [
                *(
                    {"destination": at, "type": kind, "source": source, "options": list(options)}
                    for at, kind, source, options in _USUAL_MOUNTS
                ),
                *self._mounts(),
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in kinds],
                "cgroupsPath": self.cgroup or f"/{self.id}",
                "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            },
        }

    def _mounts(self) -> Iterator[dict[str, Any]]:
        for mount in self.volumes.mounts(self.pod, self.manifest):
            yield {
                "destination": mount.path,
                "type": "bind",
                "source": str(mount.source),
                "options": [
                    "rbind",
                    "rslave" if mount.follows else "rprivate",
                    "ro" if mount.read_only else "rw",
                ],
            }


@dataclass(frozen=True)
class Running:
    """A container that was started."""

    container: Container
    _popen: subprocess.Popen[bytes]
    _log: Path

    @property
    def log(self) -> str:
        return self._log.read_text()

    def exec(self, *command: str) -> Answer:
        """As `kubectl exec`, and as a probe."""
        done = subprocess.run(
            [*self.container._runc, "exec", self.container.id, *command],
            capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def wait_for_probe(self, probe: Manifest) -> None:
        """Until a probe of the manifest succeeds."""
        wait_until(lambda: self.exec(*probe["exec"]["command"]).code == 0, lambda: self.log)

    def end(self, number: signal.Signals) -> int:
        """Send its first process a signal, unless it ended before; the exit code."""
        if self._popen.poll() is None:
            subprocess.run(
                [*self.container._runc, "kill", self.container.id, number.name], check=True
            )
        return self._popen.wait(PATIENCE_SECONDS)


def _ours() -> list[str]:
    """All capabilities that we could give away."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in line
    )
    bits = int(line.split()[1], 16)
    return [f"CAP_{name}" for bit, name in enumerate(_CAPABILITIES) if bits >> bit & 1]

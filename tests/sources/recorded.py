"""A /proc and a cgroup tree in a directory: what ProcessSource reads, without the kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

from accel.errors import LinuxError
from accel.linux.cgroup import Mount
from accel.linux.process_events import ProcessEvent
from accel.sources.processes import ProcessSource

HOST = 4026531840


class RecordedNode:
    """Processes are directories; removing one ends it."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.cgroups = Mount(root / "cgroup")
        self.cgroups.point.mkdir()
        self.proc.mkdir()
        self.run(1, exe="systemd", netns=HOST)

    def run(
        self, pid: int, *, exe: str, netns: int, uid: int = 0, cgroup: str = "", address: str = ""
    ) -> None:
        directory = self.proc / str(pid)
        (directory / "ns").mkdir(parents=True, exist_ok=True)
        (directory / "net").mkdir(exist_ok=True)
        (self.cgroups.point / cgroup).mkdir(parents=True, exist_ok=True)
        (directory / "stat").write_text(f"{pid} ({exe[:15]}) S" + " 0" * 18 + " 77 0\n")
        (directory / "status").write_text(f"Name:\t{exe}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (directory / "cgroup").write_text(f"0::/{cgroup}\n")
        (directory / "net/fib_trie").write_text(
            f"Main:\n |-- {address}\n    /32 host LOCAL\n" if address else "Main:\n"
        )
        for name, target in (("ns/net", f"net:[{netns}]"), ("exe", f"/usr/bin/{exe}")):
            (directory / name).unlink(missing_ok=True)
            (directory / name).symlink_to(target)

    def end(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))

    def source(self) -> ProcessSource:
        """One that has to poll, as where the kernel gives no events."""
        return ProcessSource(self.cgroups, proc=str(self.proc), subscribe=refuse, poll_seconds=0.01)


async def refuse() -> ScriptedHints:
    raise LinuxError("subscribe to process events: no answer")


class ScriptedHints:
    """Process events as a test wants them; each batch is handed out once."""

    def __init__(self, *batches: tuple[ProcessEvent, ...]) -> None:
        self.batches = list(batches)
        self.closed = False

    async def receive(self, timeout_seconds: float) -> tuple[ProcessEvent, ...]:
        return self.batches.pop(0) if self.batches else ()

    def close(self) -> None:
        self.closed = True


class RecordedStage:
    """Pods of one proxy each, in a recorded node."""

    def __init__(self, root: Path) -> None:
        self.node = RecordedNode(root)
        self.source = self.node.source()
        self._last = 100

    def start_pod(self) -> int:
        self._last += 1
        self.node.run(
            self._last, exe="envoy", netns=self._last, uid=1337, cgroup=f"pod{self._last}"
        )
        return self._last

    def stop_pod(self, netns: int) -> None:
        self.node.end(netns)

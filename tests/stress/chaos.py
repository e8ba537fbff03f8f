"""What befalls a run: workers and the agent killed, pauses, changes of trust; all by a seed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from accel.core.plan import PodEntry
from accel.demo.testbed import Pod
from tests.stress.place import Mesh

_FLIPS = (
    PodEntry(),
    PodEntry(enrol_apps=True),
    PodEntry(enrol_apps=True, trust_apps=True),
)


class Victims(Protocol):
    """The workers, for who wants to kill some."""

    def kill(self, chance: random.Random) -> None: ...


class Chaos:
    """Something happens each `calm` connections, on average.

    Whatever it changes it puts right again after a moment, but for the agent, which stays
    dead until its next turn.
    """

    def __init__(self, seed: int, calm: int, victims: Victims, mesh: Mesh | None) -> None:
        self._chance = random.Random(f"{seed}/chaos")
        self._calm = calm
        self._victims = victims
        self._mesh = mesh if mesh is not None and mesh.has_agent else None
        self._next_at = self._draw(0)
        self._repairs: list[tuple[float, Callable[[], None]]] = []
        self._usual: dict[int, PodEntry] = {}
        self._agent_ready = False
        self.happened: Counter[str] = Counter()

    def begin(self) -> None:
        """The agent is ready: from now on is known how the pods are usually treated."""
        if self._mesh is not None:
            self._usual = dict(self._mesh.datapath.have().pods)
            self._agent_ready = True

    def pass_time(self, finished: int) -> None:
        """To be called often, with how many connections have ended."""
        now = time.monotonic()
        due = [repair for when, repair in self._repairs if when <= now]
        self._repairs = [item for item in self._repairs if item[0] > now]
        for repair in due:
            repair()
        self._look_at_agent()
        while finished >= self._next_at:
            self._next_at = self._draw(self._next_at)
            self._do_something()

    def end(self) -> None:
        """Put everything right, and see the agent at work."""
        for _, repair in self._repairs:
            repair()
        self._repairs.clear()
        if self._mesh is not None and not self._mesh.agent_runs:
            self._restart()

    @property
    def is_quiet(self) -> bool:
        """Whether the agent is at work, or there is none."""
        self._look_at_agent()
        return self._mesh is None or self._agent_ready

    def _draw(self, finished: int) -> int:
        return finished + 1 + int(self._chance.expovariate(1 / self._calm))

    def _look_at_agent(self) -> None:
        mesh = self._mesh
        if mesh is not None and mesh.agent_runs and not self._agent_ready:
            self._agent_ready = mesh.is_agent_ready()

    def _do_something(self) -> None:
        match self._chance.randrange(12):
            case 0:
                self._victims.kill(self._chance)
                self.happened["worker killed"] += 1
            case _ if self._mesh is None:
                pass  # as often as with an agent, so that the two can be compared
            case 1 | 2:
                self._kill_or_restart()
            case 3 | 4 | 5 | 6:
                self._pause()
            case 7:
                self._change_pod("pod withdrawn", None)
            case _:
                self._change_pod("trust changed", self._chance.choice(_FLIPS))

    def _kill_or_restart(self) -> None:
        assert self._mesh is not None
        if self._mesh.agent_runs:
            self._mesh.kill_agent()
            self.happened["agent killed"] += 1
            self.happened["agent killed while starting"] += not self._agent_ready
            self._agent_ready = False
        else:
            self._restart()

    def _restart(self) -> None:
        assert self._mesh is not None
        self._mesh.start_agent()
        self.happened["agent restarted"] += 1

    def _pause(self) -> None:
        assert self._mesh is not None
        datapath = self._mesh.datapath
        scope = self._chance.choice((None, *self._usual))
        datapath.pause(scope)
        self._later(lambda: datapath.resume(scope))
        self.happened["paused and resumed"] += 1

    def _change_pod(self, what: str, entry: PodEntry | None) -> None:
        assert self._mesh is not None
        mesh, pod = self._mesh, self._chance.choice((self._mesh.a, self._mesh.b))
        mesh.set_pod(pod, entry)
        self._later(lambda: mesh.set_pod(pod, self._usual_of(pod)))
        self.happened[what] += 1

    def _usual_of(self, pod: Pod) -> PodEntry:
        return self._usual[pod.netns.inode]

    def _later(self, repair: Callable[[], None]) -> None:
        self._repairs.append((time.monotonic() + self._chance.uniform(0.01, 0.3), repair))

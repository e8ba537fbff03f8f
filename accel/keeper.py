"""Keeps the maps in step with the pods, and tells people what it does and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

import accel
from accel import state
from accel.core.merge import Truth, restrain
from accel.core.model import Pod
from accel.core.plan import Pods, Policy, Want, Wanting, plan, pod_notes
from accel.core.strategy import Era, pod_paths, strategy
from accel.datapath.datapath import Datapath

log = logging.getLogger("accel")

States = tuple[state.PodState, ...]

# Of many changes that come together one report is made.
_PACE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class About:
    """What never changes of what the agent says of itself."""

    run_dir: Path
    source: str
    cgroup: Path | None
    policy: Policy
    era: Era

    def base(self, *, usable: bool) -> state.AgentState:
        paths = strategy(self.policy, self.era) if usable else {}
        return state.AgentState(
            pid=os.getpid(),
            version=accel.__version__,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            source=self.source,
            cgroup=str(self.cgroup) if self.cgroup else None,
            era=self.era.value,
            strategy={
                hop: {w: state.PathState(p.accelerated, p.reason) for w, p in ways.items()}
                for hop, ways in paths.items()
            },
        )


class Keeper:
    """Nothing is awaited in take(): when it returns, the kernel knows.

    People are told by tell_people(), which has to run beside it.
    """

    def __init__(
        self, datapath: Datapath, about: About, hearers: Iterable[Callable[[States], None]]
    ) -> None:
        """`hearers` are told the states of all pods whenever one has changed."""
        self.pods: Pods = {}
        self.names: Mapping[int, str] = {}  # of pods, by network namespace
        self.datapath = datapath
        self._hearers = tuple(hearers)
        self._about = about
        self._base = about.base(usable=True)
        self._wanting = Wanting(about.policy)
        self._have: Want | None = None
        self._wanted = Want()
        self._problems: tuple[str, ...] = ()
        self._sources: Mapping[str, state.SourceState] = {}
        self._news = anyio.Event()

    def take(self, pods: Pods, truth: Truth, *, whole: bool) -> None:
        """These are the pods now.

        Args:
            truth: What they were made of.
            whole: A source has just listed: what the kernel holds is read again, to repair
                what another may have changed.
        """
        have = self.datapath.have() if whole or self._have is None else self._have
        wanted = restrain(have, self._wanting.want(pods), truth)
        actions = plan(have, wanted)
        problems = self.datapath.apply(actions) if actions else ()
        for problem in problems:
            log.error("the kernel refused: %s", problem)
        self._have = None if problems else wanted
        if actions or pods != self.pods:
            _log_changes(self.pods, pods)
            self.names = {pod.netns: pod.name for pod in pods.values()}
        self.pods, self._wanted, self._problems = pods, wanted, problems
        self._news.set()

    def note_sources(self, sources: Mapping[str, state.SourceState]) -> None:
        """How the sources are."""
        self._sources = sources
        self._news.set()

    async def tell_people(self) -> None:
        """Write the state file, and tell who listens, whenever there is something new."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            states = tuple(self._states())
            for hear in self._hearers:
                hear(states)
            changed = msgspec.structs.replace(
                self._base, pods=states, problems=self._problems, sources=dict(self._sources)
            )
            state.write(self._about.run_dir, changed)
            await anyio.sleep(_PACE_SECONDS)

    def _states(self) -> Iterable[state.PodState]:
        policy = self._about.policy
        notes = pod_notes(self.pods, policy)
        for key, pod in sorted(self.pods.items(), key=lambda item: item[1].name):
            yield _pod_state(pod, self._wanted, policy, notes[key])


def _pod_state(pod: Pod, wanted: Want, policy: Policy, notes: tuple[str, ...]) -> state.PodState:
    entry = wanted.pods.get(pod.netns)
    began = datetime.fromtimestamp(pod.created_ns / 1e9, UTC) if pod.created_ns else None
    return state.PodState(
        name=pod.name,
        netns=pod.netns,
        profile=pod.profile,
        accelerated=entry is not None,
        trust_apps=entry is not None and entry.trust_apps,
        containers=tuple(
            state.ContainerState(c.cgroup_id, c.role.name.lower(), c.name)
            for c in sorted(pod.containers)
        ),
        addresses=tuple(sorted(map(str, pod.addresses))),
        notes=notes,
        uid=pod.uid,
        since=began.isoformat(timespec="seconds") if began else None,
        hops={hop: dict(ways) for hop, ways in pod_paths(pod, entry, policy).items()},
    )


def _log_changes(before: Pods, after: Pods) -> None:
    """Only meshed pods: of the others there may be a hundred, and nothing is done to them."""
    was, now = _meshed(before), _meshed(after)
    for key in now.keys() - was.keys():
        log.info("pod %s: %s proxy seen", now[key].name, now[key].profile)
    for key in was.keys() - now.keys():
        log.info("pod %s: no proxy any more", was[key].name)


def _meshed(pods: Pods) -> Pods:
    return {key: pod for key, pod in pods.items() if pod.profile}

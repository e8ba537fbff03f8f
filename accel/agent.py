"""The agent: settings in, sources followed, maps kept in step, until it is told to stop.

The composition root.  Its end, however it comes, takes nothing away: what is pinned
goes on working, and the next start adopts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

import accel
from accel import state
from accel.broadcast import Broadcaster, now
from accel.core.meshes import KNOWN
from accel.core.plan import Pods, Policy, Want, fold, plan, pod_notes, want
from accel.core.strategy import strategy
from accel.datapath.connections import describe_event
from accel.datapath.datapath import Datapath
from accel.datapath.fitness import Fitness, examine
from accel.datapath.generation import reserved
from accel.datapath.loading import Constants, start
from accel.errors import AccelError
from accel.linux import cgroup as cgroups
from accel.settings import Settings, SourceName
from accel.sources.base import Source
from accel.sources.processes import ProcessSource
from accel.stream import ConnectionChanged, Lost

log = logging.getLogger("accel")

_LOOK_AGAIN_SECONDS = 300.0
_COUNT_LOSSES_SECONDS = 1.0


class CannotStart(AccelError):
    """Something the operator can put right keeps the agent from starting."""


async def run(settings: Settings) -> None:
    """Be the agent until SIGTERM or SIGINT.

    A kernel that is not fit is left alone: the agent idles, says why, and looks again now and
    then, as a self-test may also fail because the node was too busy.

    Raises:
        CannotStart: The node is set up in a way that the operator can mend.
        AccelError: Another agent runs there, or the data path failed.
    """
    with state.only_agent(settings.run_dir):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, tasks.cancel_scope)
            await _accelerate(settings, await _fit(settings))


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: stopping; what is accelerated stays so", number.name)
            scope.cancel()
            return


async def _fit(settings: Settings) -> Fitness:
    """The node's fitness, once it is fit; idle until then."""
    told: tuple[str, ...] = ()
    while True:
        fitness = await anyio.to_thread.run_sync(examine, settings.bpffs, settings.cgroup)
        if fitness.usable:
            return fitness
        _Report(settings, fitness, settings.cgroup).write(idle_reasons=fitness.reasons)
        if fitness.broken:
            worst = fitness.broken[0]
            raise CannotStart(f"{worst.name}: {worst.detail}", remedy=worst.remedy)
        if fitness.reasons != told:
            told = fitness.reasons
            _log_idle(fitness)
        await anyio.sleep(_LOOK_AGAIN_SECONDS)


def _log_idle(fitness: Fitness) -> None:
    for finding in fitness.failed:
        log.warning(
            "this node is not accelerated: %s: %s%s",
            finding.name,
            finding.detail,
            f" (try: {finding.remedy})" if finding.remedy else "",
        )


async def _accelerate(settings: Settings, fitness: Fitness) -> None:
    mount = cgroups.hierarchy()
    source = _source(settings, mount)
    cgroup = settings.cgroup or mount.point
    facts = fitness.facts
    assert facts is not None  # usable says it was tested
    constants = Constants(facts.charges_rmem, one_queue=fitness.trust_possible)
    with (
        reserved(settings.bpffs),
        start(settings.bpffs, cgroup, constants, settings.max_connections) as datapath,
    ):
        log.info(
            "accelerating below %s: Linux %s, FIONREAD %s",
            cgroup,
            os.uname().release,
            fitness.era.value,
        )
        shown = None if mount.is_our_own and settings.cgroup is None else cgroup
        broadcaster = Broadcaster()
        report = _Report(settings, fitness, shown)
        keeper = Keeper(datapath, policy_of(settings, fitness), report, broadcaster)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broadcaster.serve, settings.run_dir)
            tasks.start_soon(_tell_connections, keeper)
            tasks.start_soon(_follow, source, keeper, None if cgroup == mount.point else cgroup)
            tasks.start_soon(_sweep, datapath, settings.relist_seconds)


def _source(settings: Settings, mount: cgroups.Mount) -> Source:
    if settings.source != (SourceName.PROCESSES,) or settings.kubernetes:
        raise CannotStart(
            f"source {', '.join(settings.source)}{' with kubernetes' * settings.kubernetes}: "
            "only processes can be followed",
            remedy="set source to processes, and kubernetes to false",
        )
    return ProcessSource(
        mount,
        profiles=(*settings.profiles, *KNOWN),
        relist_seconds=settings.relist_seconds,
    )


async def _follow(source: Source, keeper: Keeper, scope: Path | None) -> None:
    async with contextlib.aclosing(source.events()) as events:
        async for event in events:
            pods = fold(keeper.pods, event)
            keeper.take(pods if scope is None else _below(scope, pods))


def _below(cgroup: Path, pods: Pods) -> Pods:
    """Those pods whose sockets the programs see when they are attached to `cgroup`."""
    ids = {cgroups.cgroup_id(Path(directory)) for directory, _, _ in os.walk(cgroup)}
    return {
        key: pod
        for key, pod in pods.items()
        if any(container.cgroup_id in ids for container in pod.containers)
    }


async def _sweep(datapath: Datapath, period_seconds: float) -> None:
    while True:
        await anyio.sleep(period_seconds)
        if swept := datapath.sweep():
            log.info("forgot %d connections whose sockets are gone", swept)


async def _tell_connections(keeper: Keeper) -> None:
    """While somebody wants to hear of them: they are not for free."""
    wanted = keeper.broadcaster.until_connections_are_wanted
    while True:
        await wanted(True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_relay_connections, keeper)
            tasks.start_soon(_tell_losses, keeper)
            await wanted(False)
            tasks.cancel_scope.cancel()


async def _relay_connections(keeper: Keeper) -> None:
    async with contextlib.aclosing(keeper.datapath.events()) as records:
        async for record in records:
            names = {pod.netns: pod.name for pod in keeper.pods.values()}
            change, connection = describe_event(record, keeper.datapath, names)
            keeper.broadcaster.tell(ConnectionChanged(now(), change, connection))


async def _tell_losses(keeper: Keeper) -> None:
    before = keeper.datapath.statistics().events_lost
    while True:
        await anyio.sleep(_COUNT_LOSSES_SECONDS)
        lost = keeper.datapath.statistics().events_lost
        if lost > before:
            keeper.broadcaster.tell(Lost(now(), lost - before, "kernel"))
        before = lost


def policy_of(settings: Settings, fitness: Fitness) -> Policy:
    return Policy(
        trust_apps=settings.trust_apps,
        trust_possible=fitness.trust_possible,
        trust_forced=settings.force_trust,
        enrol_apps_possible=fitness.enrol_apps_possible,
        overrides=settings.pods,
        namespaces=settings.namespaces,
        accelerate=settings.accelerate,
    )


@dataclass(slots=True)
class Keeper:
    """Keeps the maps in step with the pods: nothing awaited, microseconds a change."""

    datapath: Datapath
    policy: Policy
    report: _Report
    broadcaster: Broadcaster
    pods: Pods = field(default_factory=dict)
    _told: bool = False

    def take(self, pods: Pods) -> None:
        """These are the pods now."""
        wanted = want(pods, self.policy)
        actions = plan(self.datapath.have(), wanted)
        problems = self.datapath.apply(actions) if actions else ()
        for problem in problems:
            log.error("the kernel refused: %s", problem)
        if actions or pods != self.pods or not self._told:
            _log_changes(self.pods, pods)
            self.pods = pods
            states = _pod_states(pods, wanted, self.policy)
            self.report.write(pods=states, problems=problems)
            self.broadcaster.take(states)
            self._told = True


def _log_changes(before: Pods, after: Pods) -> None:
    """Only meshed pods: of the others there may be a hundred, and nothing is done to them."""
    was, now = _meshed(before), _meshed(after)
    for key in now.keys() - was.keys():
        log.info("pod %s: %s proxy seen", now[key].name, now[key].profile)
    for key in was.keys() - now.keys():
        log.info("pod %s: no proxy any more", was[key].name)


def _meshed(pods: Pods) -> Pods:
    return {key: pod for key, pod in pods.items() if pod.profile}


def _pod_states(pods: Pods, wanted: Want, policy: Policy) -> tuple[state.PodState, ...]:
    notes = pod_notes(pods, policy)
    return tuple(
        state.PodState(
            name=pod.name,
            netns=pod.netns,
            profile=pod.profile,
            accelerated=pod.netns in wanted.pods,
            trust_apps=pod.netns in wanted.pods and wanted.pods[pod.netns].trust_apps,
            containers=tuple(
                state.ContainerState(c.cgroup_id, c.role.name.lower(), c.name)
                for c in sorted(pod.containers)
            ),
            addresses=tuple(sorted(map(str, pod.addresses))),
            notes=notes[key],
        )
        for key, pod in sorted(pods.items(), key=lambda item: item[1].name)
    )


class _Report:
    """Writes the state file; what never changes is given once."""

    def __init__(self, settings: Settings, fitness: Fitness, cgroup: Path | None) -> None:
        paths = strategy(policy_of(settings, fitness), fitness.era) if fitness.usable else {}
        self._run_dir = settings.run_dir
        self._base = state.AgentState(
            pid=os.getpid(),
            version=accel.__version__,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            source=", ".join(settings.source),
            cgroup=str(cgroup) if cgroup else None,
            era=fitness.era.value,
            strategy={
                hop: {w: state.PathState(p.accelerated, p.reason) for w, p in ways.items()}
                for hop, ways in paths.items()
            },
        )

    def write(
        self,
        *,
        pods: tuple[state.PodState, ...] = (),
        problems: tuple[str, ...] = (),
        idle_reasons: tuple[str, ...] = (),
    ) -> None:
        changed = msgspec.structs.replace(
            self._base, pods=pods, problems=problems, idle_reasons=idle_reasons
        )
        state.write(self._run_dir, changed)

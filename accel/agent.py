"""The agent: settings in, sources followed, maps kept in step, until it is told to stop.

The composition root.  Its end, however it comes, takes nothing away: what is pinned
goes on working, and the next start adopts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import anyio
import msgspec

from accel import state
from accel.broadcast import Broadcaster, now
from accel.composing import Notice, advice_sources, pod_sources
from accel.core.plan import Pods
from accel.datapath.connections import describe_event
from accel.datapath.datapath import Datapath
from accel.datapath.fitness import Fitness, examine
from accel.datapath.generation import reserved
from accel.datapath.loading import Constants, start
from accel.errors import AccelError
from accel.following import Following
from accel.keeper import About, Keeper
from accel.linux import cgroup as cgroups
from accel.linux import pidfd
from accel.policy import policy_of
from accel.settings import Settings
from accel.stream import ConnectionChanged, Lost

log = logging.getLogger("accel")

_LOOK_AGAIN_SECONDS = 300.0
_COUNT_LOSSES_SECONDS = 1.0
# How long a source may take to list; one that asks the API server begins later than others.
_LIST_SECONDS = 30.0


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
    pidfd.allow_many()
    with state.only_agent(settings.run_dir):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stop_on_signal, tasks.cancel_scope)
            notice = Notice(settings)
            tasks.start_soon(notice.run)
            await _accelerate(settings, await _fit(settings, notice), notice)


async def _stop_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: stopping; what is accelerated stays so", number.name)
            scope.cancel()
            return


async def _fit(settings: Settings, notice: Notice) -> Fitness:
    """The node's fitness, once it is fit; idle until then."""
    told: tuple[str, ...] = ()
    while True:
        fitness = await anyio.to_thread.run_sync(examine, settings.bpffs, settings.cgroup)
        if fitness.usable:
            return fitness
        idle = _about(settings, fitness, settings.cgroup).base(usable=False)
        state.write(settings.run_dir, msgspec.structs.replace(idle, idle_reasons=fitness.reasons))
        if fitness.broken:
            worst = fitness.broken[0]
            raise CannotStart(f"{worst.name}: {worst.detail}", remedy=worst.remedy)
        if fitness.reasons != told:
            told = fitness.reasons
            _log_idle(fitness)
            notice.idle(fitness.reasons)
        await anyio.sleep(_LOOK_AGAIN_SECONDS)


def _log_idle(fitness: Fitness) -> None:
    for finding in fitness.failed:
        log.warning(
            "this node is not accelerated: %s: %s%s",
            finding.name,
            finding.detail,
            f" (try: {finding.remedy})" if finding.remedy else "",
        )


async def _accelerate(settings: Settings, fitness: Fitness, notice: Notice) -> None:
    mount = cgroups.hierarchy()
    advice = advice_sources(settings)
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
        pods = pod_sources(settings, mount)
        shown = None if mount.is_our_own and settings.cgroup is None else cgroup
        broadcaster = Broadcaster()
        names = [*(source.name for source in pods), *(source.name for source in advice)]
        about = _about(settings, fitness, shown, names)
        keeper = Keeper(datapath, about, (broadcaster.take, notice.pods))
        within = partial(_below, cgroup) if cgroup != mount.point else _all
        patience = _LIST_SECONDS + (settings.start_jitter_seconds if advice else 0.0)
        following = Following(pods, advice, keeper, within, give_up_seconds=patience)
        notice.active(f"Linux {os.uname().release}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broadcaster.serve, settings.run_dir)
            tasks.start_soon(_tell_connections, keeper, broadcaster)
            tasks.start_soon(keeper.tell_people)
            tasks.start_soon(following.run)
            tasks.start_soon(_sweep, datapath, settings.relist_seconds)


def _all(pods: Pods) -> Pods:
    return pods


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


async def _tell_connections(keeper: Keeper, broadcaster: Broadcaster) -> None:
    """While somebody wants to hear of them: they are not for free."""
    wanted = broadcaster.until_connections_are_wanted
    while True:
        await wanted(True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_relay_connections, keeper, broadcaster)
            tasks.start_soon(_tell_losses, keeper.datapath, broadcaster)
            await wanted(False)
            tasks.cancel_scope.cancel()


async def _relay_connections(keeper: Keeper, broadcaster: Broadcaster) -> None:
    async with contextlib.aclosing(keeper.datapath.events()) as records:
        async for record in records:
            change, connection = describe_event(record, keeper.datapath, keeper.names)
            broadcaster.tell(ConnectionChanged(now(), change, connection))


async def _tell_losses(datapath: Datapath, broadcaster: Broadcaster) -> None:
    before = datapath.statistics().events_lost
    while True:
        await anyio.sleep(_COUNT_LOSSES_SECONDS)
        lost = datapath.statistics().events_lost
        if lost > before:
            broadcaster.tell(Lost(now(), lost - before, "kernel"))
        before = lost


def _about(
    settings: Settings, fitness: Fitness, cgroup: Path | None, sources: Iterable[str] = ()
) -> About:
    return About(
        run_dir=settings.run_dir,
        source=", ".join(sources or settings.source),
        cgroup=cgroup,
        policy=policy_of(settings, fitness),
        era=fitness.era,
    )

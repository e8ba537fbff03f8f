"""From settings to what the agent follows, and to whom it tells of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from accel.core.meshes import KNOWN
from accel.core.publishing import NodeState, Reason, Remark
from accel.linux import cgroup as cgroups
from accel.publisher import Publisher
from accel.settings import Settings, SourceName
from accel.sources.apiserver import Access, InCluster, KubeConfig
from accel.sources.base import AdviceSource, Source
from accel.sources.containerd import ContainerdSource
from accel.sources.cri import CriSource
from accel.sources.discover import discover, socket_of
from accel.sources.kubelet import PODS_SOCKET, KubeletAdvice
from accel.sources.kubernetes import KubernetesAdvice, find_node_name
from accel.sources.nri import NriSource
from accel.sources.processes import ProcessSource
from accel.state import PodState

_log = logging.getLogger("accel")


def pod_sources(settings: Settings, mount: cgroups.Mount) -> tuple[Source, ...]:
    """The sources of pods, the best first."""
    sockets = _sockets(settings)
    meshes = (*settings.profiles, *KNOWN)
    relist = settings.relist_seconds
    make: Mapping[SourceName, Callable[[str], Source]] = {
        SourceName.NRI: lambda at: NriSource(mount, meshes=meshes, socket=at),
        SourceName.CONTAINERD: lambda at: ContainerdSource(
            mount, meshes=meshes, socket=at, relist_seconds=relist
        ),
        SourceName.CRI: lambda at: CriSource(
            mount, meshes=meshes, socket=at, relist_seconds=relist
        ),
        SourceName.PROCESSES: lambda _: ProcessSource(
            mount, profiles=meshes, relist_seconds=relist
        ),
    }
    return tuple(make[name](socket) for name, socket in sockets.items())


def _sockets(settings: Settings) -> Mapping[SourceName, str]:
    """Which sources, and where the runtime of each listens; "auto" stands for what there is."""
    if settings.source == (SourceName.AUTO,):
        found = discover()
        for source in found:
            _log.info("source auto: %s", source)
        usual = {SourceName(source.name): source.socket for source in found}
    else:
        usual = {name: socket_of(name) for name in settings.source}
    told = {
        SourceName.NRI: settings.nri_socket,
        SourceName.CONTAINERD: settings.runtime_socket,
        SourceName.CRI: settings.runtime_socket,
    }
    return {name: str(told.get(name) or socket) for name, socket in usual.items()}


def advice_sources(settings: Settings) -> tuple[AdviceSource, ...]:
    """The sources of what annotations say now, the best first.

    The kubelet's stream is taken wherever it is: it needs no right but to its socket.

    Raises:
        SettingsError: The API server or the kubelet is wanted, and this node's name is not given.
    """
    sources: list[AdviceSource] = []
    if settings.kubernetes:
        sources.append(
            KubernetesAdvice(
                _node_name(settings),
                _access(settings),
                start_jitter_seconds=settings.start_jitter_seconds,
            )
        )
    if settings.kubelet:
        sources.append(KubeletAdvice(_node_name(settings)))
    elif PODS_SOCKET.exists():
        sources.append(KubeletAdvice(settings.node_name))
    return tuple(sources)


class Notice:
    """Tells the cluster how this node and its pods are; nobody where it is not asked to."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: As advice_sources().
        """
        self._publisher = (
            Publisher(_node_name(settings), _access(settings)) if settings.kubernetes else None
        )
        self._told: frozenset[Remark] = frozenset()

    async def run(self) -> None:
        """Send, until cancelled; see Publisher.run()."""
        if self._publisher is not None:
            await self._publisher.run()

    def active(self, kernel: str) -> None:
        self._say(NodeState("active"), Remark(Reason.ACTIVE, f"accelerating on {kernel}"))

    def idle(self, reasons: tuple[str, ...]) -> None:
        why = "; ".join(reasons)
        self._say(NodeState("idle", why), Remark(Reason.UNSUPPORTED, why, warning=True))

    def _say(self, state: NodeState, remark: Remark) -> None:
        if self._publisher is not None:
            self._publisher.node_is(state)
            self._publisher.remark(remark)

    def pods(self, pods: tuple[PodState, ...]) -> None:
        """These are the pods now; what is wrong with one is remarked once."""
        if self._publisher is None:
            return
        remarks = frozenset(
            Remark(Reason.POD_NOT_ACCELERATED, f"pod {pod.name}: {'; '.join(pod.notes)}")
            for pod in pods
            if pod.profile and not pod.accelerated
        )
        for remark in sorted(remarks - self._told, key=lambda remark: remark.message):
            self._publisher.remark(remark)
        self._told = remarks


def _node_name(settings: Settings) -> str:
    return find_node_name(settings.node_name, os.environ)


def _access(settings: Settings) -> Access:
    return KubeConfig(settings.kubeconfig) if settings.kubeconfig else InCluster()

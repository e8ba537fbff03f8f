"""Which agent a command speaks of: settings from flags, environment and file; its pods."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel import state
from accel.bpf import BpfError
from accel.datapath.datapath import Datapath
from accel.datapath.errors import DatapathError, UnknownPod
from accel.datapath.loading import open_running
from accel.settings import Settings, Sourced, explain_settings

# Looked at when it is there and --config names no other.
DEFAULT_CONFIG = Path("/etc/accel.yaml")

_AS_ROOT = "run it as root"


def sourced(arguments: argparse.Namespace) -> Sourced:
    """The settings, and where each came from.

    Raises:
        SettingsError: One of them is wrong, or --config names no file.
    """
    path: Path | None = arguments.config
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    flags = {key: getattr(arguments, key, None) for key in Settings.__struct_fields__}
    return explain_settings(flags, os.environ, path)


def settings(arguments: argparse.Namespace) -> Settings:
    return sourced(arguments).settings


def open_datapath(settings: Settings) -> Datapath:
    """The data path that the agent pinned.

    Raises:
        NotRunning: Nothing is pinned there.
        DatapathError: We may not look, or another version of accel pinned it.
    """
    with permitted():
        return open_running(settings.bpffs)


@contextmanager
def permitted() -> Iterator[None]:
    """What only root may do: say so when we are not, instead of a bare EACCES."""
    try:
        yield
    except PermissionError as e:
        raise DatapathError(f"open {e.filename}: {e.strerror}", remedy=_AS_ROOT) from e
    except BpfError as e:
        if e.remedy is None and os.geteuid() != 0:
            raise DatapathError(str(e), remedy=_AS_ROOT) from e
        raise


def pod_names(agent: state.AgentState | None) -> dict[int, str]:
    """Names of meshed pods by network namespace, as the agent knows them."""
    pods = agent.pods if agent else ()
    return {pod.netns: pod.name for pod in pods if pod.profile and pod.netns}


def netns_of(name: str, agent: state.AgentState | None) -> int:
    """The network namespace of a pod that a person named.

    Raises:
        UnknownPod: The agent knows no such pod.
    """
    known = pod_names(agent)
    for netns, pod in known.items():
        if name in (pod, str(netns), f"netns:{netns}"):
            return netns
    raise UnknownPod(
        f"find pod {name!r}: the agent knows "
        + (", ".join(sorted(known.values())) if known else "no pod"),
        remedy="use a name that `accel status` shows",
    )

"""The configuration of a node's containerd, and of its pod network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.runtime.images import IMAGE

Tree = Mapping[str, Any]

CGROUPFS = {"SystemdCgroup": False}


def containerd_config(major: int, directory: Path, cni: Path, *, nri: bool) -> str:
    """TOML for one of this major version, whose every file is below `directory`.

    restrict_oom_score_adj: where CAP_SYS_RESOURCE is missing, no score can be lowered.
    """
    private = directory / "private"
    runtime = {
        "restrict_oom_score_adj": True,
        "disable_apparmor": True,
        "netns_mounts_under_state_dir": True,
        "enable_unprivileged_ports": False,
        "enable_unprivileged_icmp": False,
        "cni": {"conf_dir": str(directory / "cni")},
        "containerd": {
            "runtimes": {"runc": {"runtime_type": "io.containerd.runc.v2", "options": CGROUPFS}}
        },
    }
    if major == 1:
        runtime["cni"]["bin_dir"] = str(cni)  # type: ignore[index]
        plugins = {"io.containerd.grpc.v1.cri": {**runtime, "sandbox_image": IMAGE}}
    else:
        runtime["cni"]["bin_dirs"] = [str(cni)]  # type: ignore[index]
        plugins = {
            "io.containerd.cri.v1.runtime": runtime,
            "io.containerd.cri.v1.images": {"pinned_images": {"sandbox": IMAGE}},
        }
    plugins |= {
        "io.containerd.internal.v1.opt": {"path": str(private / "opt")},
        "io.containerd.nri.v1.nri": {
            "disable": not nri,
            "socket_path": str(directory / "nri.sock"),
            "plugin_path": str(private / "nri-plugins"),
            "plugin_config_path": str(private / "nri-conf.d"),
        },
    }
    return _toml(
        {
            "version": 2 if major == 1 else 3,
            "root": str(private / "root"),
            "state": str(private / "state"),
            "grpc": {"address": str(directory / "containerd.sock")},
            "plugins": plugins,
        }
    )


def cni_config(directory: Path, subnet: str) -> str:
    """A bridge of the node's own, with addresses out of `subnet`."""
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(directory / "private" / "addresses"),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "0.4.0", "name": "node", "plugins": [bridge]})


def _toml(tree: Tree, path: tuple[str, ...] = ()) -> str:
    """Values are strings, numbers, booleans, lists of strings and further tables; JSON's
    notation of all but the last is TOML's as well."""
    values = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    head = [f"[{'.'.join(json.dumps(part) for part in path)}]"] if path and values else []
    return "\n".join(
        [*head, *lines, *(_toml(table, (*path, key)) for key, table in tables.items())]
    )

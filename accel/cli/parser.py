"""The verbs and their flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import accel
from accel.cli import check, connections, demo, events, pods, run, status, switch, verify
from accel.cli import object as bpf_object

_DESCRIPTION = """\
Removes the latency that a service-mesh sidecar adds: messages between an application and
its sidecar, and between two sidecars of one node, go straight to the peer's socket.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments; `verb` is the function to call with them."""
    parser = argparse.ArgumentParser(prog="accel", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"accel {accel.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(
        name: str, function: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(verb=function)
        return sub

    sub = verb("check", check.check, "say whether this node can be accelerated, and how far")
    _settings(sub)
    _trust(sub)
    _json(sub)

    sub = verb("run", run.run, "be the agent: follow pods and accelerate them, until SIGTERM")
    _settings(sub)
    _trust(sub)
    sub.add_argument(
        "--source",
        help="where pods are learnt from: auto, nri, containerd, cri, processes, or several with "
        "commas (auto)",
    )
    sub.add_argument(
        "--kubernetes",
        action="store_const",
        const=True,
        help="watch the API server for annotations as they are now",
    )
    sub.add_argument("--runtime-socket", metavar="PATH", help="of containerd, or any CRI runtime")
    sub.add_argument("--nri-socket", metavar="PATH", help="where NRI plugins are served")
    sub.add_argument(
        "--max-connections", metavar="N", help="connections accelerated at once (65536)"
    )
    sub.add_argument("--relist-seconds", metavar="S", help="between two looks at everything (30)")
    sub.add_argument("--log-level", help="debug, info, warning or error (info)")
    sub.add_argument("--log-format", help="text or json (text)")

    sub = verb("config", run.config, "show the settings in force, and where each came from")
    _settings(sub)
    _trust(sub)
    _json(sub)

    sub = verb("status", status.status, "show the agent's health, its pods and the totals")
    _settings(sub)
    sub.add_argument(
        "--ready",
        action="store_true",
        help="for probes: exit code 0 also when it idles on an unfit kernel, or is paused",
    )
    _json(sub)

    sub = verb(
        "connections", connections.connections, "list connections: accelerated or not, and why not"
    )
    _settings(sub)
    _pod(sub)
    _json(sub)

    sub = verb(
        "pods", pods.pods, "list the pods of this node: mesh, role of each container, why not"
    )
    _settings(sub)
    _json(sub)

    sub = verb("events", events.events, "print pods, and what happens to them, as lines of JSON")
    _settings(sub)
    sub.add_argument("--follow", action="store_true", help="go on, event by event, until Ctrl-C")
    sub.add_argument(
        "--pods", dest="of_pods", action="store_true", help="with --follow: of pods only"
    )
    sub.add_argument(
        "--connections",
        dest="of_connections",
        action="store_true",
        help="with --follow: of connections only",
    )
    _json(sub)

    sub = verb(
        "verify", verify.verify, "capture in the pods, and count what still goes through TCP"
    )
    _settings(sub)
    _pod(sub)
    sub.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="S", help="how long to capture (5)"
    )
    _json(sub)

    for name, function, help in (
        ("pause", switch.pause, "send every message by TCP, without breaking a connection"),
        ("resume", switch.resume, "undo `pause`"),
    ):
        sub = verb(name, function, help)
        _settings(sub)
        _pod(sub)
        _json(sub)

    sub = verb("remove", switch.remove, "take acceleration off this node, losing no byte")
    _settings(sub)
    _json(sub)

    sub = verb("demo", demo.demo, "two meshed pods on this machine, before and after")
    demo.add_arguments(sub)
    _json(sub)

    help = "look into a BPF object, anybody's, or load it"
    for sub in bpf_object.add_verbs(
        verbs.add_parser("object", help=help, description=help, allow_abbrev=False)
    ):
        _json(sub)
    return parser.parse_args(argv)


def _settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which instance")
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    group.add_argument("--cgroup", metavar="DIR", help="cgroup v2 directory to accelerate below")
    group.add_argument("--bpffs", metavar="DIR", help="where pins are (/sys/fs/bpf/accel)")
    group.add_argument("--run-dir", metavar="DIR", help="the agent's own files (/run/accel)")


def _trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-apps",
        action="store_const",
        const=True,
        help="redirect into applications too, where this kernel bears it",
    )
    parser.add_argument(
        "--force-trust", action="store_const", const=True, help="even where it does not"
    )


def _pod(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pod", metavar="NAME", help="this pod only (as `accel status` names it)")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print facts as JSON")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("must be a number above 0 and at most 3600")
    return value

"""What the operator decides: flags > environment > one YAML file > defaults.

Every wrong value and every unknown key is refused by its name and place; a setting
that silently did nothing would be worse than none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import yaml

from accel.core.advice import Override
from accel.core.meshes import Profile
from accel.errors import SettingsError

ENVIRONMENT_PREFIX = "ACCEL_"


class SourceName(StrEnum):
    """Where facts about pods come from."""

    AUTO = "auto"
    NRI = "nri"
    CONTAINERD = "containerd"
    CRI = "cri"
    PROCESSES = "processes"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of one agent.  A key of the file, ACCEL_KEY and --key are one thing."""

    source: tuple[SourceName, ...] = (SourceName.AUTO,)
    """Where pods are learnt from: one of these, or several with commas, of which the first
    wins where two speak of one pod.  "nri": the runtime calls before a container starts;
    "containerd": its events; "cri": lists of any runtime; "processes" needs no runtime and
    follows the processes of this node; "auto" takes the best that this node has."""

    runtime_socket: Path | None = None
    """Where the container runtime listens, for "containerd" and "cri".  Default: the first
    of the usual places at which there is one."""

    nri_socket: Path | None = None
    """Where the runtime listens for NRI plugins.  Default: /run/nri/nri.sock."""

    kubernetes: bool = False
    """Whether the API server is watched for what annotations of pods and namespaces say
    now.  Off: those of a pod count as they were when it began, those of namespaces not."""

    kubelet: bool = False
    """Whether the node's kubelet is asked for what annotations of pods say now, each 30 s.
    Where it has a stream of them (Kubernetes 1.37) that is taken unasked."""

    node_name: str = ""
    """What Kubernetes calls this node, for `kubernetes` and `kubelet`.  In a pod from the field
    spec.nodeName.  Default: NODE_NAME in the environment."""

    kubeconfig: Path | None = None
    """How to reach the API server when the agent is no pod.  Default: as a pod, by its
    service account."""

    start_jitter_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 30.0
    """The API server is first asked at a random moment within so many seconds, since a
    rollout starts the agents of all nodes together."""

    cgroup: Path | None = None
    """The cgroup v2 directory below which sockets are looked at.  Default: the root of
    the hierarchy, found in /proc/self/mountinfo, because pods may be anywhere.  Set it to
    run a second, private agent on one node."""

    bpffs: Path = Path("/sys/fs/bpf/accel")
    """Directory for pins, inside a mounted bpffs; made when missing.  What is pinned
    there keeps working while the agent is away, so keep it the same across upgrades."""

    run_dir: Path = Path("/run/accel")
    """Directory for the agent's own files, as its control socket; made when missing."""

    trust_apps: bool = False
    """Whether messages may also be redirected INTO applications.  Off, because some
    ways to read a socket do not see them: splice, MSG_WAITALL, SO_RCVLOWAT, FIONREAD on
    some kernels.  Right for applications that read with plain recv or read."""

    force_trust: bool = False
    """Trust applications even where this kernel is known to make their reads go wrong
    (`accel check` tells).  Off; for tests and for applications you know."""

    accelerate: bool = True
    """Whether pods are accelerated of which nobody says anything.  Off: only those that
    an annotation, or a setting below, switches on."""

    pods: Mapping[str, Override] = {}
    """Per pod, by the name `accel status` shows: trust_apps, and accelerate (false
    leaves the pod to plain TCP).  Wins over the pod's annotations, those over all that
    follows.  In the file only."""

    namespaces: Mapping[str, Override] = {}
    """Per Kubernetes namespace, the same two.  Wins over the namespace's annotations, and
    those over the defaults above.  In the file only."""

    profiles: tuple[Profile, ...] = ()
    """Meshes beyond the known ones: name; exes (base names of the proxy's executable),
    uids (those it runs under; none means any); containers (names of its container, * allowed),
    marks (annotations or labels, key or key=value, of which the pod has one; none asks for
    nothing); stops_short.  Tried before the known ones.  In the file only."""

    max_connections: Annotated[int, msgspec.Meta(ge=16, le=1 << 22)] = 65536
    """Connections that may be accelerated at once; beyond, new ones stay with TCP.
    Kernel memory follows use, not this limit.  Takes effect when the maps are made."""

    relist_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    """Seconds between two looks at everything, which repair whatever an event missed.
    A look at 10,000 processes takes 0.2 to 1 second of one CPU."""

    log_level: LogLevel = LogLevel.INFO
    """The least severe messages written: debug, info, warning or error."""

    log_format: LogFormat = LogFormat.TEXT
    """text for people, json (one object a line) for collectors."""


@dataclass(frozen=True, slots=True)
class Sourced:
    """Settings, and for each of their keys who decided it.

    Attributes:
        origins: By key: "default", "/etc/accel.yaml", "ACCEL_TRUST_APPS" or "--trust-apps".
    """

    settings: Settings
    origins: Mapping[str, str]


def load_settings(
    flags: Mapping[str, object], environ: Mapping[str, str], path: Path | None
) -> Settings:
    """The settings in force; see explain_settings()."""
    return explain_settings(flags, environ, path).settings


def explain_settings(
    flags: Mapping[str, object], environ: Mapping[str, str], path: Path | None
) -> Sourced:
    """The settings in force, and where each came from.

    Args:
        flags: Command-line values by key, as in {"trust_apps": True}; None means not given.
        environ: As os.environ; only ACCEL_* is looked at.
        path: The YAML file, or None for none.

    Raises:
        SettingsError: Something given is unknown, malformed or out of range.
    """
    values: dict[str, object] = {}
    origins = dict.fromkeys(Settings.__struct_fields__, "default")
    for key, given, origin in (
        *(_from_file(path) if path is not None else ()),
        *_from_environment(environ),
        *_from_flags(flags),
    ):
        values[key] = given
        origins[key] = origin
    return Sourced(Settings(**values), origins)  # type: ignore[arg-type]  # converted by key


Given = tuple[str, object, str]
"""A key, its converted value, and who gave it."""


def _from_file(path: Path) -> Iterable[Given]:
    place = f"config {path}"
    content = _read_yaml(path, place)
    if content is None:  # empty, or nothing but comments
        return
    if not isinstance(content, dict):
        raise SettingsError(
            f"{place}: expected keys and values, found {_kind(content)}",
            remedy="write lines such as `trust_apps: true`",
        )
    _refuse_unknown(content, Settings.__struct_fields__, place)
    for key in ("pods", "namespaces"):
        for name, said in _items(content.get(key)):
            _refuse_unknown(said, _names(Override), f"{place}: {key}.{name}")
            _convert(key, {name: said}, f"{place}: {key}.{name}", strict=True)  # says which
    for index, profile in _items(content.get("profiles")):
        _refuse_unknown(profile, _names(Profile), f"{place}: profiles[{index}]")
    for key, value in content.items():
        yield key, _convert(key, value, f"{place}: {key}", strict=True), str(path)


def _from_environment(environ: Mapping[str, str]) -> Iterable[Given]:
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key in _FILE_ONLY:
            raise SettingsError(
                f"{name}: {key} can be given in the config file only",
                remedy=f"unset {name} and write {key} to the file",
            )
        if key in Settings.__struct_fields__:
            yield key, _convert(key, value, name, strict=False), name
        elif close := _close(key, Settings.__struct_fields__):
            # Not every stranger: Kubernetes sets ACCEL_SERVICE_HOST for a Service "accel".
            raise SettingsError(
                f"{name}: no such setting; did you mean {ENVIRONMENT_PREFIX}{close.upper()}?",
                remedy=f"rename or unset {name}",
            )


def _from_flags(flags: Mapping[str, object]) -> Iterable[Given]:
    given = {key: value for key, value in flags.items() if value is not None}
    _refuse_unknown(given, Settings.__struct_fields__, "flags")
    for key, value in given.items():
        flag = "--" + key.replace("_", "-")
        yield key, _convert(key, value, flag, strict=not isinstance(value, str)), flag


_FILE_ONLY = frozenset({"pods", "namespaces", "profiles"})
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Settings)}


def _convert(key: str, value: object, place: str, *, strict: bool) -> object:
    try:
        if key == "source":
            return _sources(value)
        return msgspec.convert(value, _TYPES[key], strict=strict, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"{place}: {_in_our_words(str(error))}",
            remedy=_remedy(key),
        ) from error


def _remedy(key: str) -> str:
    for kind in (_TYPES[key], *get_args(_TYPES[key])):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return f"use one of: {', '.join(kind)}"
    return f"correct it, or leave {key} out for its default"


def _sources(value: object) -> tuple[SourceName, ...]:
    """The names in a list, or in a text with commas; msgspec.ValidationError as convert()."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise msgspec.ValidationError(f"Expected names of sources, got {_kind(value)}")
    sources = tuple(msgspec.convert(name, SourceName) for name in names)
    if not sources or len(set(sources)) < len(sources):
        raise msgspec.ValidationError("Expected each source once")
    if SourceName.AUTO in sources and len(sources) > 1:
        raise msgspec.ValidationError("Expected auto alone: it finds the others")
    return sources


def _path(wanted: type, value: object) -> object:
    """Settings' paths: absolute, since the agent's working directory means nothing to people."""
    if wanted is not Path:
        raise NotImplementedError(wanted)
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError(f"expected a path, found {_kind(value)}")
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"expected an absolute path, found {value!r}")
    return Path(value)


def _in_our_words(message: str) -> str:
    """msgspec's "Expected `bool`, got `int` - at `$[...].trust_apps`", for people."""
    text, _, where = message.partition(" - at `")
    text = text[0].lower() + text[1:].replace("`", "")
    inside = re.sub(r"^(key` in `)?\$(\[\.\.\.\])?\.?", "", where.rstrip("`"))
    return f"{inside}: {text}" if inside else text


class _StrictLoader(yaml.SafeLoader):
    """YAML as msgspec wants it, and without a key twice in one mapping: PyYAML lets the
    last one win, which YAML 1.2 (section 3.2.1.3) forbids."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path, place: str) -> object:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)  # a SafeLoader
    except OSError as error:
        raise SettingsError(
            f"{place}: {error.strerror}", remedy="name a file that the agent can read"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{place}: {_yaml_problem(error)}", remedy="write it as YAML"
        ) from error


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return f"not YAML: {' '.join(str(error).split())}"


def _refuse_unknown(given: object, known: Iterable[str], place: str) -> None:
    if not isinstance(given, Mapping):
        return  # _convert() says what is wrong with it
    known = tuple(known)
    for key in given:
        if key not in known:
            close = _close(str(key), known)
            guess = f"; did you mean {close!r}?" if close else ""
            raise SettingsError(
                f"{place}: unknown key {key!r}{guess}",
                remedy=f"use one of: {', '.join(known)}",
            )


def _close(key: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(key, list(known), n=1, cutoff=0.75)), None)


def _names(row: type[Override | Profile]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(row))


def _items(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _kind(value: object) -> str:
    names = {dict: "keys and values", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), f"{value!r}")

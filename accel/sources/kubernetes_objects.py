"""What accel reads of Kubernetes' objects, as JSON: their metadata, and of that a few fields.

Bytes in, values out; no connection is known here.  Of a pod's 10 to 40 kB nothing is kept
but its uid and what its annotations say to accel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import msgspec

from accel.core.advice import Advice, read_advice
from accel.core.events import NamespaceName, PodUid
from accel.errors import AccelError


class MalformedObject(AccelError):
    """Bytes are not the JSON that Kubernetes' API promises."""


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """metav1.ObjectMeta, and of metav1.ListMeta the same field."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Object(msgspec.Struct, frozen=True):
    """Any object, or a metav1.Status."""

    metadata: Metadata = Metadata()
    code: int = 0
    reason: str = ""
    message: str = ""


class _List(msgspec.Struct, frozen=True):
    items: list[_Object] | None  # the kubelet's empty list is null
    metadata: Metadata = Metadata()


class _WatchEvent(msgspec.Struct, frozen=True):
    type: str
    object: _Object


class ChangeKind(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Change:
    """One object is so now, or was so when it was deleted."""

    kind: ChangeKind
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Everything up to this version was sent."""

    resource_version: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The server says that it cannot go on, as with an HTTP status: 410 is Gone."""

    code: int
    reason: str


WatchEvent = Change | Bookmark | Failure


class Lines:
    """Cuts a stream into its lines, whatever the chunks it comes in.

    Args:
        most_bytes: Of one line.  An object is at most 1.5 MiB in etcd; JSON makes more of it.
    """

    def __init__(self, most_bytes: int = 8 << 20) -> None:
        self._most_bytes = most_bytes
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out.

        Raises:
            MalformedObject: A line is too long; what is lost cannot be told.
        """
        first, *others = chunk.split(b"\n")
        self._rest += first
        for part in others:
            if self._rest:
                yield bytes(self._rest)
            self._rest = bytearray(part)
        if len(self._rest) > self._most_bytes:
            raise MalformedObject(f"a line of more than {self._most_bytes} bytes")

    @property
    def rest_bytes(self) -> int:
        """Of a line that has begun and not ended."""
        return len(self._rest)


def decode_list(content: bytes) -> tuple[str, tuple[Metadata, ...]]:
    """The version of a list, and the metadata of its objects.

    Raises:
        MalformedObject: `content` is not a list of objects.
    """
    found = _decode(_lists, content, "a list")
    return found.metadata.resource_version, tuple(each.metadata for each in found.items or ())


def decode_event(line: bytes) -> WatchEvent:
    """One line of a watch.

    Raises:
        MalformedObject: It is not a watch event.
    """
    event = _decode(_events, line, "a watch event")
    found = event.object
    if event.type == "ERROR":
        return Failure(found.code, f"{found.reason}: {found.message}")
    if not found.metadata.resource_version:
        raise MalformedObject(f"a watch event {event.type} without a resourceVersion")
    if event.type == "BOOKMARK":
        return Bookmark(found.metadata.resource_version)
    try:
        return Change(ChangeKind(event.type), found.metadata)
    except ValueError:
        raise MalformedObject(f"a watch event of the unknown type {event.type!r}") from None


def decode_failure(content: bytes) -> str:
    """Why a request failed, from the body of the answer; what is no Status is told as it is."""
    try:
        status = _decode(_objects, content, "a status")
    except MalformedObject:
        return repr(content[:200].decode(errors="replace"))
    return status.message or status.reason or "no reason given"


def pod(metadata: Metadata) -> PodUid:
    """Which pod this is.

    Not what its annotation kubernetes.io/config.hash or config.mirror says, though the API
    server's copy of a static pod has the runtime's uid there: whoever may make a pod may write
    any pod's uid into those, and would advise on that one.

    Raises:
        MalformedObject: It lacks a uid.
    """
    if not metadata.uid:
        raise MalformedObject(f"a pod without a uid: {metadata.namespace}/{metadata.name}")
    return PodUid(metadata.uid)


def namespace(metadata: Metadata) -> NamespaceName:
    """Which namespace this is.

    Raises:
        MalformedObject: It lacks a name.
    """
    if not metadata.name:
        raise MalformedObject("a namespace without a name")
    return NamespaceName(metadata.name)


def advice(metadata: Metadata) -> Advice:
    """What its annotations say."""
    return read_advice(metadata.annotations or {})


_lists = msgspec.json.Decoder(_List)
_events = msgspec.json.Decoder(_WatchEvent)
_objects = msgspec.json.Decoder(_Object)


T = TypeVar("T")


def _decode(decoder: msgspec.json.Decoder[T], content: bytes, what: str) -> T:
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedObject(f"not {what}: {error}: {content[:80]!r}") from error

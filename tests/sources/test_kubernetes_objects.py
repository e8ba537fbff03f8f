"""Bytes from the API server into what accel reads of them."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import NO_ADVICE, Advice
from accel.core.events import NamespaceName, PodUid
from accel.sources.kubernetes_objects import (
    Bookmark,
    Change,
    ChangeKind,
    Failure,
    Lines,
    MalformedObject,
    Metadata,
    advice,
    decode_event,
    decode_failure,
    decode_list,
    namespace,
    pod,
)

# In the form kube-apiserver gives to a watch of PartialObjectMetadata.
WATCH = (
    b'{"type":"ADDED","object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1",'
    b'"metadata":{"name":"web-1","generateName":"web-","namespace":"shop",'
    b'"uid":"0b3c7c1e-5f0e-4a53-9d6c-2f3b1a6f9a11","resourceVersion":"4711",'
    b'"creationTimestamp":"2026-11-30T10:00:00Z","labels":{"app":"web"},'
    b'"annotations":{"accel.dev/accelerate":"false","note":"caf\\u00e9 \xe2\x86\x92"},'
    b'"ownerReferences":[{"kind":"ReplicaSet","name":"web","controller":true}]}}}\n'
    b'{"type":"BOOKMARK","object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1",'
    b'"metadata":{"resourceVersion":"4720","creationTimestamp":null}}}\n'
    b'{"type":"DELETED","object":{"kind":"PartialObjectMetadata","metadata":{"name":"web-1",'
    b'"namespace":"shop","uid":"0b3c7c1e-5f0e-4a53-9d6c-2f3b1a6f9a11",'
    b'"resourceVersion":"4730","deletionGracePeriodSeconds":0}}}\n'
    b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},'
    b'"status":"Failure","message":"too old resource version: 12 (4700)","reason":"Expired",'
    b'"code":410}}\n'
)
UID = "0b3c7c1e-5f0e-4a53-9d6c-2f3b1a6f9a11"


def in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def test_a_watch_as_it_comes() -> None:
    added, bookmark, deleted, error = map(decode_event, Lines().feed(WATCH))

    assert isinstance(added, Change)
    assert (added.kind, pod(added.metadata)) == (ChangeKind.ADDED, PodUid(UID))
    assert advice(added.metadata) == Advice(accelerate=False)
    assert bookmark == Bookmark("4720")
    assert isinstance(deleted, Change)
    assert (deleted.kind, deleted.metadata.resource_version) == (ChangeKind.DELETED, "4730")
    assert error == Failure(410, "Expired: too old resource version: 12 (4700)")


@given(st.lists(st.integers(0, len(WATCH))))
def test_how_a_stream_is_cut_does_not_matter(cuts: list[int]) -> None:
    lines = Lines()

    found = [line for piece in in_pieces(WATCH, cuts) for line in lines.feed(piece)]

    assert found == WATCH.splitlines()
    assert lines.rest_bytes == 0


def test_byte_by_byte() -> None:
    lines = Lines()

    assert [line for byte in WATCH for line in lines.feed(bytes([byte]))] == WATCH.splitlines()


@given(st.integers(0, len(WATCH)))
def test_a_truncated_stream_has_a_rest(length: int) -> None:
    lines = Lines()
    whole = list(lines.feed(WATCH[:length]))

    assert whole == WATCH[:length].splitlines()[: len(whole)]
    assert lines.rest_bytes == length - sum(len(line) + 1 for line in whole)


def test_a_line_without_end_is_refused() -> None:
    lines = Lines(most_bytes=10)
    assert list(lines.feed(b"0123456789\n")) == [b"0123456789"]

    with pytest.raises(MalformedObject, match="more than 10 bytes"):
        list(lines.feed(b"01234567890"))


@given(st.binary())
def test_garbage_is_malformed(garbage: bytes) -> None:
    for decode in (decode_event, decode_list):
        with pytest.raises(MalformedObject):
            decode(garbage)


@given(st.integers(0, len(WATCH)), st.integers(0, 255))
def test_a_spoilt_byte_is_an_event_or_malformed(place: int, byte: int) -> None:
    spoilt = WATCH[:place] + bytes([byte]) + WATCH[place + 1 :]
    for line in Lines().feed(spoilt):
        with suppress(MalformedObject):
            decode_event(line)


def test_a_message_shows_the_beginning_alone() -> None:
    """A line may have megabytes."""
    with pytest.raises(MalformedObject) as raised:
        decode_event(b"x" * 1_000_000)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"type": "ADDED", "object": {"metadata": {"name": "a"}}}, "without a resourceVersion"),
        ({"type": "MOVED", "object": {"metadata": {"resourceVersion": "1"}}}, "'MOVED'"),
        ({"type": "ADDED"}, "object"),
        ({"type": "ADDED", "object": {"metadata": {"annotations": {"a": 1}}}}, "annotations"),
        ([], "object"),
    ],
)
def test_what_is_wrong_is_said(event: object, problem: str) -> None:
    with pytest.raises(MalformedObject, match=problem):
        decode_event(json.dumps(event).encode())


def test_nesting_without_end_is_malformed() -> None:
    with pytest.raises(MalformedObject):
        decode_event(b'{"type":"ADDED","object":{"x":' + b"[" * 100_000)


def test_a_list_has_a_version() -> None:
    version, found = decode_list(
        b'{"kind":"PodList","metadata":{"resourceVersion":"99"},"items":[{"metadata":{"uid":"u"}}]}'
    )

    assert (version, found) == ("99", (Metadata(uid="u"),))


def test_the_kubelets_empty_list_is_null() -> None:
    assert decode_list(b'{"kind":"PodList","metadata":{},"items":null}') == ("", ())


def test_nobody_is_nobody() -> None:
    with pytest.raises(MalformedObject, match="without a uid: shop/web"):
        pod(Metadata(name="web", namespace="shop"))
    with pytest.raises(MalformedObject, match="without a name"):
        namespace(Metadata(uid="u"))
    assert namespace(Metadata(name="shop")) == NamespaceName("shop")
    assert advice(Metadata(name="shop")) == NO_ADVICE


def test_a_pod_cannot_speak_for_another() -> None:
    """Anybody may write annotations on his own pod."""
    forged = {"kubernetes.io/config.hash": "victim", "kubernetes.io/config.mirror": "victim"}

    assert pod(Metadata(uid="mine", annotations=forged)) == PodUid("mine")


def test_a_refusal_is_told_in_the_servers_words() -> None:
    assert decode_failure(b'{"kind":"Status","message":"pods is forbidden"}') == "pods is forbidden"
    assert decode_failure(b"<html>502</html>") == "'<html>502</html>'"
    assert decode_failure(b"{}") == "no reason given"

"""Facts into pods: repeats and order."""

from hypothesis import given
from hypothesis import strategies as st

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.model import Pod
from accel.core.plan import Pods, fold
from tests.core.strategies import events, pods_by_key

WEB = Pod(1, "web", "istio")
DB = Pod(2, "db", "linkerd")


@given(pods_by_key, events)
def test_a_repeated_event_changes_nothing(pods: Pods, event: Event) -> None:
    once = fold(pods, event)

    assert fold(once, event) == once


@given(pods_by_key, pods_by_key)
def test_listing_forgets_what_it_does_not_name(before: Pods, listed: Pods) -> None:
    """A pod that vanished while nobody looked is gone after the relist."""
    assert fold(before, Listed(tuple(listed.values()))) == listed


@given(st.lists(events))
def test_only_what_follows_the_last_listing_counts(some: list[Event]) -> None:
    pods = after_listing = fold({}, Listed((WEB,)))
    for event in (*some, Listed((WEB,))):
        pods = fold(pods, event)

    assert pods == after_listing


def test_the_last_word_on_a_pod_holds() -> None:
    renamed = Pod(1, "web-2", "istio")

    pods = fold(fold(fold({}, PodSeen(WEB)), PodSeen(DB)), PodSeen(renamed))

    assert pods == {1: renamed, 2: DB}


def test_a_pod_that_went_is_gone_and_the_others_stay() -> None:
    pods = fold(fold({}, Listed((WEB, DB))), PodGone(WEB.netns))

    assert pods == {2: DB}
    assert fold(pods, PodGone(WEB.netns)) == pods


@given(pods_by_key, events)
def test_folding_leaves_the_pods_before_untouched(pods: Pods, event: Event) -> None:
    before = dict(pods)

    fold(pods, event)

    assert pods == before

"""Several sources into one truth: order, repeats, losses and restarts do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import NO_ADVICE, Advice
from accel.core.events import (
    AdviceEvent,
    AdviceGone,
    AdviceListed,
    AdviceSeen,
    Event,
    Listed,
    NamespaceName,
    PodGone,
    PodSeen,
    PodUid,
)
from accel.core.merge import (
    Advices,
    Truth,
    awaited,
    drift,
    expecting,
    give_up,
    hear,
    merged,
    restrain,
)
from accel.core.model import Container, Pod, Role
from accel.core.plan import DropPod, PodEntry, Pods, Policy, Want, fold, plan, want
from tests.core.maps import assert_no_more_permissive, carried_out
from tests.core.strategies import (
    advice_events,
    by_key,
    events,
    pods_by_key,
    policies,
    subjects,
    wants,
)
from tests.core.strategies import advices as some_advice

Said = tuple[str, Event | AdviceEvent]

SOURCES = ("runtime", "processes")
ADVISORS = ("kubernetes",)

WEB = Pod(1, "shop/web", "istio", uid="u1", namespace="shop")
FOUND = Pod(1, "netns:1", "istio", addresses=frozenset())
DB = Pod(2, "netns:2", "linkerd")
TRUST, NO_TRUST = Advice(trust_apps=True), Advice(trust_apps=False)

of_pods = st.tuples(st.sampled_from(SOURCES), events)
of_advice = st.tuples(st.sampled_from(ADVISORS), advice_events)
said = of_pods | of_advice
sayings = st.lists(said, max_size=12)
advice_lists = st.dictionaries(subjects, some_advice)


def heard(said: Sequence[Said], truth: Truth | None = None) -> Truth:
    start = expecting(SOURCES, ADVISORS) if truth is None else truth
    return reduce(lambda truth, one: hear(truth, *one), said, start)


def listing(pods: Pods) -> Listed:
    return Listed(tuple(pods.values()))


# What they say together.


def test_the_better_source_wins_and_the_others_add_what_it_does_not_know() -> None:
    truth = heard([("processes", Listed((FOUND, DB))), ("runtime", Listed((WEB,)))])

    assert merged(truth) == {1: WEB, 2: DB}


def test_a_pod_is_the_same_by_its_uid_too() -> None:
    """As when a lesser source has not yet seen that its sandbox was made again."""
    truth = expecting(("nri", "cri"))
    again = replace(WEB, netns=7)
    truth = heard([("cri", Listed((WEB,))), ("nri", Listed((again,)))], truth)

    assert merged(truth) == {7: again}


def test_pods_on_the_hosts_network_are_all_there() -> None:
    one = replace(WEB, netns=0, accelerate=False, reason="hostNetwork")
    other = replace(one, uid="u2")

    truth = heard([("runtime", Listed((one, other)))])

    assert merged(truth) == {"u1": one, "u2": other}
    assert merged(hear(truth, "runtime", PodGone("u1"))) == {"u2": other}


def test_late_news_of_one_undoes_nothing_of_another() -> None:
    truth = heard([("runtime", Listed((WEB,))), ("processes", Listed((FOUND,)))])

    assert merged(hear(truth, "processes", PodGone(1))) == {1: WEB}
    assert merged(hear(truth, "processes", Listed(()))) == {1: WEB}
    assert merged(hear(truth, "runtime", PodGone(1))) == {1: FOUND}


def test_advice_replaces_what_the_sandbox_was_made_with() -> None:
    made_with = replace(WEB, advice=TRUST)
    truth = heard([("runtime", Listed((made_with, DB)))])

    truth = hear(truth, "kubernetes", AdviceListed({PodUid("u1"): NO_TRUST}))
    assert merged(truth)[1].advice == NO_TRUST
    # An annotation that was taken away is advice as well: that nothing is said any more.
    truth = hear(truth, "kubernetes", AdviceSeen(PodUid("u1"), NO_ADVICE))
    assert merged(truth)[1].advice == NO_ADVICE
    truth = hear(truth, "kubernetes", AdviceGone(PodUid("u1")))
    assert merged(truth)[1].advice == TRUST
    assert merged(truth)[2] == DB


def test_advice_may_come_before_its_pod() -> None:
    truth = heard([("kubernetes", AdviceListed({PodUid("u1"): TRUST}))])

    assert merged(hear(truth, "runtime", PodSeen(WEB)))[1].advice == TRUST


def test_a_namespace_advises_all_its_pods() -> None:
    other = replace(WEB, netns=3, uid="u3", namespace="bank")
    truth = heard([("runtime", Listed((WEB, other)))])

    truth = hear(truth, "kubernetes", AdviceSeen(NamespaceName("shop"), TRUST))

    assert merged(truth)[1].namespace_advice == TRUST
    assert merged(truth)[3] == other


def test_the_first_advisor_who_knows_decides() -> None:
    truth = expecting(("runtime",), ("kubernetes", "kubelet"))
    truth = heard(
        [
            ("runtime", Listed((WEB,))),
            ("kubelet", AdviceListed({PodUid("u1"): TRUST})),
        ],
        truth,
    )
    assert merged(truth)[1].advice == TRUST

    truth = hear(truth, "kubernetes", AdviceListed({PodUid("u1"): NO_TRUST}))
    assert merged(truth)[1].advice == NO_TRUST


# Whatever happens on the way.


def _by_source(said: Sequence[Said]) -> dict[str, list[Said]]:
    return {name: [s for s in said if s[0] == name] for name in (*SOURCES, *ADVISORS)}


@given(st.data(), sayings)
def test_the_order_in_which_sources_are_heard_does_not_matter(
    data: st.DataObject, one: list[Said]
) -> None:
    """Each source keeps its own order; nothing else does."""
    queues = _by_source(one)
    other = [queues[name].pop(0) for name in data.draw(st.permutations([name for name, _ in one]))]

    assert heard(other) == heard(one)


@given(sayings, said)
def test_a_repeat_changes_nothing(before: list[Said], again: Said) -> None:
    once = heard([*before, again])

    assert hear(once, *again) == once


@given(sayings, pods_by_key, pods_by_key, advice_lists)
def test_lists_make_good_whatever_was_lost_or_said_before(
    said: list[Said], one: Pods, other: Pods, advice: Advices
) -> None:
    """A source that restarts, reconnects or relists says Listed again."""
    lists: list[Said] = [
        ("runtime", listing(one)),
        ("processes", listing(other)),
        ("kubernetes", AdviceListed(advice)),
    ]

    assert merged(heard([*said, *lists])) == merged(heard(lists))


@given(pods_by_key, st.lists(events), pods_by_key)
def test_a_source_that_falls_silent_keeps_its_last_word(
    runtime: Pods, others: list[Event], processes: Pods
) -> None:
    truth = heard([("runtime", listing(runtime))])

    for event in (*others, listing(processes)):
        truth = hear(truth, "processes", event)
        assert truth.pods["runtime"].pods == runtime
        assert {key: merged(truth).get(key) for key in runtime} == runtime


@given(st.lists(pods_by_key, min_size=2, max_size=6), st.data())
def test_a_world_that_changes_is_told_rightly_by_events_or_lists(
    worlds: list[Pods], data: st.DataObject
) -> None:
    """Each step told by events, some of them lost; the list at the end repairs it."""
    truth = expecting(("runtime",))
    truth = hear(truth, "runtime", listing(worlds[0]))
    lost = False
    for before, after in pairwise(worlds):
        for event in data.draw(st.permutations(_difference(before, after))):
            if data.draw(st.booleans()):
                truth = hear(truth, "runtime", event)
            else:
                lost = True
    if not lost:
        assert merged(truth) == merged(heard([("runtime", listing(worlds[-1]))]))
    told = truth.pods["runtime"].pods
    assert (drift(told, worlds[-1]) == 0) == (told == worlds[-1])
    truth = hear(truth, "runtime", listing(worlds[-1]))
    assert truth.pods["runtime"].pods == worlds[-1]


def _difference(before: Pods, after: Pods) -> list[Event]:
    return [
        *(PodGone(key) for key in before.keys() - after.keys()),
        *(PodSeen(pod) for key, pod in after.items() if before.get(key) != pod),
    ]


def test_drift_counts_pods() -> None:
    told = by_key(WEB, DB)
    changed = replace(DB, profile="istio")

    assert drift(told, told) == 0
    assert drift(told, by_key(WEB, changed, replace(WEB, netns=3))) == 2
    assert drift({}, told) == drift(told, {}) == 2


# Until every source has listed.


def test_whom_the_agent_waits_for() -> None:
    truth = expecting(("runtime", "processes"), ("kubernetes",))
    assert awaited(truth) == ("runtime", "processes", "kubernetes")

    truth = hear(truth, "runtime", Listed(()))
    truth = hear(truth, "kubernetes", AdviceSeen(PodUid("u1"), TRUST))
    assert awaited(truth) == ("processes", "kubernetes")
    assert awaited(give_up(truth, "kubernetes")) == ("processes",)


WITH_PROXY = replace(WEB, containers=frozenset({Container(10, Role.SIDECAR)}))


def test_what_nobody_has_spoken_of_stays_until_all_have_listed() -> None:
    have = want(by_key(WITH_PROXY, replace(DB, containers=frozenset())), Policy())
    truth = expecting(("runtime", "processes"))

    for step in (
        [("runtime", Listed(()))],
        [("runtime", PodSeen(WITH_PROXY))],
        [("runtime", PodGone(1))],
    ):
        truth = heard(step, truth)
        wanted = restrain(have, want(merged(truth), Policy()), truth)
        assert not any(isinstance(action, DropPod) for action in plan(have, wanted))
    truth = hear(truth, "processes", Listed(()))
    assert restrain(have, want(merged(truth), Policy()), truth) == Want()


def test_a_source_that_was_given_up_still_keeps_its_pods() -> None:
    have = want(by_key(DB), Policy())
    truth = give_up(heard([("runtime", Listed(()))], expecting(("runtime", "cri"))), "cri")

    assert restrain(have, want(merged(truth), Policy()), truth) == have


def test_a_lesser_source_does_not_switch_on_what_a_better_one_may_switch_off() -> None:
    off = replace(WITH_PROXY, advice=Advice(accelerate=False))
    truth = expecting(("runtime", "processes"))
    truth = hear(truth, "processes", Listed((replace(FOUND, containers=off.containers),)))

    assert restrain(Want(), want(merged(truth), Policy()), truth) == Want()
    given_up = give_up(truth, "runtime")
    assert restrain(Want(), want(merged(given_up), Policy()), given_up).pods == {1: PodEntry()}
    truth = hear(truth, "runtime", Listed((off,)))
    assert restrain(Want(), want(merged(truth), Policy()), truth) == Want()


def test_annotations_as_old_as_the_pod_do_not_widen_what_it_has() -> None:
    """Trust that was taken back while the agent ran is not lent again while it starts."""
    policy = Policy(trust_possible=True)
    old = replace(WITH_PROXY, advice=TRUST)
    have = want(by_key(replace(old, advice=NO_TRUST)), policy)
    truth = heard([("runtime", Listed((old,)))], expecting(("runtime",), ADVISORS))

    assert restrain(have, want(merged(truth), policy), truth) == have
    truth = hear(truth, "kubernetes", AdviceListed({PodUid("u1"): NO_TRUST}))
    assert restrain(have, want(merged(truth), policy), truth) == have


def test_a_pod_that_was_seen_to_come_need_not_wait_for_advice() -> None:
    truth = heard(
        [("runtime", Listed(())), ("runtime", PodSeen(WITH_PROXY))],
        expecting(("runtime",), ADVISORS),
    )

    assert restrain(Want(), want(merged(truth), Policy()), truth).pods.keys() == {1}
    truth = heard([("runtime", PodGone(1)), ("runtime", Listed((WITH_PROXY,)))], truth)
    assert restrain(Want(), want(merged(truth), Policy()), truth) == Want()


@given(wants, sayings, policies)
def test_what_may_be_done_already_is_less_than_either_end(
    have: Want, said: list[Said], policy: Policy
) -> None:
    truth = heard(said)
    wanted = want(merged(truth), policy)
    now = restrain(have, wanted, truth)

    assert_no_more_permissive(now, (have, wanted))
    assert restrain(now, wanted, truth) == now
    for source in awaited(truth):
        truth = hear(truth, source, _empty(source))
    assert restrain(have, want(merged(truth), policy), truth) == want(merged(truth), policy)


def _empty(source: str) -> Event | AdviceEvent:
    return AdviceListed({}) if source in ADVISORS else Listed(())


@given(wants, sayings, pods_by_key, pods_by_key, advice_lists, policies)
def test_the_maps_follow_the_sources_from_anywhere(
    have: Want, said: list[Said], one: Pods, other: Pods, advice: Advices, policy: Policy
) -> None:
    """An agent that begins with any maps: no step permits more than the maps before or after
    it, and once all have listed the maps are what those lists alone would make them."""
    lists: list[Said] = [
        ("runtime", listing(one)),
        ("processes", listing(other)),
        ("kubernetes", AdviceListed(advice)),
    ]
    truth = expecting(SOURCES, ADVISORS)
    maps = have
    for source, event in (*said, *lists):
        truth = hear(truth, source, event)
        goal = restrain(maps, want(merged(truth), policy), truth)
        before = maps
        for maps in carried_out(before, plan(before, goal)):
            assert_no_more_permissive(maps, (before, goal))
        assert plan(maps, goal) == ()

    assert maps == want(merged(heard(lists)), policy)


@given(sayings, said)
def test_hearing_leaves_the_truth_before_untouched(before: list[Said], one: Said) -> None:
    truth = heard(before)
    copy = heard(before)

    hear(truth, *one)

    assert truth == copy


@given(pods_by_key, policies)
def test_one_source_alone_is_as_without_merging(pods: Pods, policy: Policy) -> None:
    """Also where it knows a pod twice, by two network namespaces: a sandbox made again."""
    truth = heard([("runtime", listing(pods))], expecting(("runtime",)))

    assert merged(truth) == fold({}, listing(pods))
    assert restrain(Want(), want(merged(truth), policy), truth) == want(pods, policy)

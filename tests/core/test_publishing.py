"""What is told to the cluster, and when: a budget, and never the same thing twice."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from accel.core.publishing import (
    BURST,
    MOST_REMARKS,
    REFILL_SECONDS,
    STATE_REFUSED_SECONDS,
    STATE_SECONDS,
    AnnotateNode,
    CreateEvent,
    NodeState,
    Outbox,
    Reason,
    Remark,
    RepeatEvent,
    Sending,
)

NOON = 1_764_500_000.0  # Unix time, in seconds
ACTIVE = Remark(Reason.ACTIVE, "every hop")


def shop(number: int) -> Remark:
    return Remark(Reason.POD_NOT_ACCELERATED, f"pod shop/web-{number}: opted out", warning=True)


def tell_all(outbox: Outbox, now: float) -> list[Sending]:
    sent = list(outbox.due(now))
    for each in sent:
        outbox.told(each, now)
    return sent


def test_nothing_to_say() -> None:
    outbox = Outbox()

    assert outbox.due(NOON) == ()
    assert outbox.wait_seconds(NOON) == math.inf


def test_a_remark_is_told_once() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)

    (event,) = outbox.due(NOON + 1)
    assert isinstance(event, CreateEvent)
    assert (event.remark, event.count, event.first, event.last) == (ACTIVE, 1, NOON, NOON)
    assert outbox.due(NOON + 1) == (event,)  # until it has arrived
    outbox.told(event, NOON + 1)
    assert outbox.due(NOON + 1) == ()


def test_equal_remarks_are_counted() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)
    outbox.remark(ACTIVE, NOON + 5)

    (first,) = tell_all(outbox, NOON + 6)
    outbox.remark(ACTIVE, NOON + 7)
    (again,) = tell_all(outbox, NOON + 8)

    assert isinstance(first, CreateEvent)
    assert (first.count, first.first, first.last) == (2, NOON, NOON + 5)
    assert again == RepeatEvent(first.name, ACTIVE, 3, NOON + 7)


def test_a_repeat_while_it_is_being_sent_is_not_lost() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)
    (event,) = outbox.due(NOON)
    outbox.remark(ACTIVE, NOON + 1)
    outbox.told(event, NOON + 1)

    (again,) = outbox.due(NOON + 1)
    assert isinstance(again, RepeatEvent)
    assert again.count == 2


def test_an_agent_that_starts_again_names_its_events_the_same() -> None:
    names = []
    for _ in range(2):
        outbox = Outbox()
        outbox.remark(ACTIVE, NOON)
        outbox.remark(shop(1), NOON)
        names.append([each.name for each in outbox.due(NOON) if isinstance(each, CreateEvent)])

    assert names[0] == names[1]
    assert len(set(names[0])) == 2


def test_an_event_that_is_there_already_is_repeated() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)
    (event,) = outbox.due(NOON)
    assert isinstance(event, CreateEvent)
    outbox.is_there(event)

    assert outbox.due(NOON) == (RepeatEvent(event.name, ACTIVE, 1, NOON),)


def test_an_event_that_the_server_forgot_is_created_anew() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)
    tell_all(outbox, NOON)
    outbox.remark(ACTIVE, NOON + 4000)
    (again,) = outbox.due(NOON + 4000)
    assert isinstance(again, RepeatEvent)
    outbox.is_away(again)

    (event,) = outbox.due(NOON + 4000)
    assert isinstance(event, CreateEvent)
    assert event.count == 2


def test_what_is_refused_is_dropped() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)
    (event,) = outbox.due(NOON)
    outbox.refused(event, NOON)

    assert outbox.due(NOON) == ()


def test_many_remarks_wait_for_the_budget() -> None:
    outbox = Outbox()
    for number in range(BURST + 3):
        outbox.remark(shop(number), NOON)

    assert len(tell_all(outbox, NOON)) == BURST
    assert tell_all(outbox, NOON + 1) == []
    assert outbox.wait_seconds(NOON + 1) == REFILL_SECONDS - 1
    (late,) = tell_all(outbox, NOON + REFILL_SECONDS)
    assert isinstance(late, CreateEvent)
    assert late.remark == shop(BURST)


def test_new_remarks_go_before_repeats() -> None:
    outbox = Outbox()
    outbox.remark(shop(0), NOON)
    tell_all(outbox, NOON)
    outbox.remark(shop(0), NOON + 1)
    outbox.remark(shop(1), NOON + 2)

    new, repeat = outbox.due(NOON + 3)
    assert isinstance(new, CreateEvent)
    assert isinstance(repeat, RepeatEvent)


def test_remarks_that_none_repeats_are_forgotten() -> None:
    outbox = Outbox()
    for number in range(MOST_REMARKS + 50):
        outbox.remark(shop(0), NOON + number)
        outbox.remark(shop(number), NOON + number)

    told = tell_all(outbox, NOON + 1000)
    assert any(isinstance(each, CreateEvent) and each.remark == shop(0) for each in told)


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 600)), max_size=300))
def test_the_budget_holds_whatever_happens(story: list[tuple[int, float]]) -> None:
    outbox, now, sent = Outbox(), NOON, 0
    for number, pause in story:
        now += pause
        outbox.remark(shop(number), now)
        sent += len(tell_all(outbox, now))

    assert sent <= BURST + (now - NOON) / REFILL_SECONDS + 1e-6


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_in_the_end_every_remark_is_told_with_its_count(numbers: list[int]) -> None:
    outbox, counts, now = Outbox(), dict[Remark, int](), NOON
    for number in numbers:
        outbox.remark(shop(number), now)
        now += 1
        for sent in tell_all(outbox, now):
            assert isinstance(sent, CreateEvent | RepeatEvent)
            counts[sent.remark] = sent.count
    now += 30 * REFILL_SECONDS
    for sent in tell_all(outbox, now):
        assert isinstance(sent, CreateEvent | RepeatEvent)
        counts[sent.remark] = sent.count

    assert counts == {shop(number): numbers.count(number) for number in set(numbers)}
    assert outbox.wait_seconds(now) == math.inf


def test_the_clock_may_be_set_back() -> None:
    outbox = Outbox()
    outbox.remark(ACTIVE, NOON)
    tell_all(outbox, NOON)
    outbox.remark(ACTIVE, NOON - 5000)

    assert len(outbox.due(NOON - 5000)) == 1
    assert outbox.wait_seconds(NOON - 5000) == 0


def test_the_state_is_told_when_it_changes() -> None:
    outbox = Outbox()
    active, idle = NodeState("active"), NodeState("idle", "Linux 4.19")
    outbox.node_is(idle)
    assert tell_all(outbox, NOON) == [AnnotateNode(idle)]
    outbox.node_is(idle)
    assert outbox.due(NOON + 100) == ()

    outbox.node_is(active)
    outbox.node_is(idle)
    outbox.node_is(active)
    assert tell_all(outbox, NOON + 100) == [AnnotateNode(active)]


def test_a_state_that_flaps_is_told_now_and_then() -> None:
    outbox = Outbox()
    outbox.node_is(NodeState("active"))
    tell_all(outbox, NOON)
    outbox.node_is(NodeState("idle"))

    assert outbox.due(NOON + 1) == ()
    assert outbox.wait_seconds(NOON + 1) == STATE_SECONDS - 1
    assert outbox.due(NOON + STATE_SECONDS) == (AnnotateNode(NodeState("idle")),)


def test_a_refused_state_is_tried_later() -> None:
    outbox = Outbox()
    outbox.node_is(NodeState("active"))
    (state,) = outbox.due(NOON)
    outbox.refused(state, NOON)

    assert outbox.due(NOON + STATE_SECONDS) == ()
    assert outbox.due(NOON + STATE_REFUSED_SECONDS) == (state,)


def test_the_state_needs_no_budget() -> None:
    outbox = Outbox()
    for number in range(2 * BURST):
        outbox.remark(shop(number), NOON)
    tell_all(outbox, NOON)
    outbox.node_is(NodeState("active"))

    assert outbox.due(NOON) == (AnnotateNode(NodeState("active")),)

"""What is new is told once, what has left is forgotten late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import NO_ADVICE, Advice
from accel.core.events import AdviceGone, AdviceListed, AdviceSeen, NamespaceName, PodUid, Subject
from accel.sources.advice_book import AdviceBook

A, B, SHOP = PodUid("a"), PodUid("b"), NamespaceName("a")
OFF = Advice(accelerate=False)


def test_what_is_known_is_no_news() -> None:
    book = AdviceBook()

    assert book.see(A, OFF) == AdviceSeen(A, OFF)
    assert book.see(A, OFF) is None
    assert book.see(A, NO_ADVICE) == AdviceSeen(A, NO_ADVICE)


def test_who_left_stays_until_the_second_sweep() -> None:
    book = AdviceBook()
    book.see(A, OFF)
    book.leave(A)
    book.leave(B)  # who was never here

    assert book.sweep() == ()
    assert book.all() == AdviceListed({A: OFF})
    book.leave(A)  # said twice
    assert book.sweep() == (AdviceGone(A),)
    assert book.all() == AdviceListed({})
    assert book.sweep() == ()


def test_who_comes_back_stays() -> None:
    book = AdviceBook()
    for sweeps in (0, 1):
        book.see(A, OFF)
        book.leave(A)
        for _ in range(sweeps):
            book.sweep()
        book.see(A, OFF)

        assert [book.sweep(), book.sweep(), book.sweep()] == [(), (), ()]


def test_a_list_is_of_one_kind() -> None:
    book = AdviceBook()
    book.see_all(PodUid, {A: OFF, B: NO_ADVICE})
    book.see_all(NamespaceName, {SHOP: NO_ADVICE})
    book.see_all(PodUid, {A: NO_ADVICE})
    book.sweep()

    assert book.sweep() == (AdviceGone(B),)
    assert book.all() == AdviceListed({A: NO_ADVICE, SHOP: NO_ADVICE})


subjects = st.sampled_from([A, B, SHOP])
steps = st.one_of(
    st.tuples(st.just("see"), subjects, st.sampled_from([OFF, NO_ADVICE])),
    st.tuples(st.just("leave"), subjects, st.just(OFF)),
    st.tuples(st.just("sweep"), st.just(A), st.just(OFF)),
)


@given(st.lists(steps))
def test_in_the_end_those_remain_who_came_last(story: list[tuple[str, Subject, Advice]]) -> None:
    """And folding what was told gives what is known, at every moment."""
    book = AdviceBook()
    there: dict[Subject, Advice] = {}
    folded: dict[Subject, Advice] = {}
    for step, subject, said in story:
        match step:
            case "see":
                there[subject] = said
                if book.see(subject, said) is not None:
                    folded[subject] = said
            case "leave":
                there.pop(subject, None)
                book.leave(subject)
            case "sweep":
                for gone in book.sweep():
                    del folded[gone.subject]
        assert book.all() == AdviceListed(folded)

    book.sweep()
    book.sweep()
    assert book.all() == AdviceListed(there)

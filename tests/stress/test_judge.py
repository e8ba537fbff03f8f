"""Scripts add up, and sentences are right: what the stress relies on, without a kernel."""

from __future__ import annotations

import pytest

from tests.stress.judge import Outage, Sentence, is_settled, judge
from tests.stress.script import DOWN, UP, Ending, Plot, Script, write_script
from tests.stress.table import CLIENT, FAR, NEAR, SERVER, Outcome, Row, State

PLOT = Plot(seed=7, workers=3, mean_bytes=20_000)
SCRIPTS = [write_script(PLOT, number) for number in range(400)]


def _ending(*endings: Ending) -> Script:
    return next(script for script in SCRIPTS if script.ending in endings)


def _row(outcome: Outcome, *, began: float = 10.0, ended: float = 20.0) -> Row:
    state = State.OPEN if outcome is Outcome.NONE else State.DONE
    return Row(0, began, ended, 5, 6, 4000, 104, outcome, state)


def _sentence(
    script: Script, client: Outcome, server: Outcome | None, *outages: Outage, resets: bool = True
) -> tuple[Sentence, str]:
    heard = _row(server) if server is not None else None
    judgement = judge(script, _row(client), heard, outages, passes_resets=resets)
    return judgement.sentence, judgement.kind


def test_scripts_are_the_same_at_both_ends_and_differ_from_each_other() -> None:
    assert [write_script(PLOT, number) for number in range(400)] == SCRIPTS
    assert len({str(script.parts) for script in SCRIPTS}) == len(SCRIPTS)
    assert {script.ending for script in SCRIPTS} == set(Ending)


@pytest.mark.parametrize("script", SCRIPTS[:100], ids=lambda script: str(script.number))
def test_no_script_waits_for_ever(script: Script) -> None:
    """Each end sends what it may, in turn, until all is sent, or one aborts."""
    sent, index = [0, 0], [0, 0]
    progress = True
    while progress:
        progress = False
        for way in (UP, DOWN):
            part, other = script.parts[way], script.parts[1 - way]
            ended = other.shuts and index[1 - way] == len(other.messages)
            while index[way] < len(part.messages) and part.aborts_at != index[way]:
                message = part.messages[index[way]]
                if sent[1 - way] + ended < message.after:
                    break
                sent[way] += message.size
                index[way] += 1
                progress = True
    aborter = script.ending.aborter
    if aborter is None:
        assert sent == [part.size for part in script.parts]
    else:
        assert index[aborter] == script.parts[aborter].aborts_at


def test_orderly_endings() -> None:
    script = _ending(Ending.BOTH_SHUT)
    whole = (Sentence.COMPLETE, "")
    assert _sentence(script, Outcome.COMPLETE, Outcome.COMPLETE) == whole
    fault = Sentence.FAULT
    assert _sentence(script, Outcome.RESET, Outcome.COMPLETE) == (fault, "reset")
    assert _sentence(script, Outcome.COMPLETE, Outcome.SHORT) == (fault, "lost bytes")
    assert _sentence(script, Outcome.REFUSED, None) == (fault, "refused")
    assert _sentence(script, Outcome.COMPLETE, None) == (fault, "unlike its script")


def test_scripted_resets() -> None:
    script = _ending(Ending.CLIENT_ABORTS)
    as_scripted = (Sentence.ABORTED, "")
    assert _sentence(script, Outcome.ABORTED, Outcome.RESET) == as_scripted
    assert _sentence(script, Outcome.ABORTED, None) == as_scripted
    # An end of file in its place is for sidecars that do not pass resets on.
    lost = (Sentence.FAULT, "lost bytes")
    assert _sentence(script, Outcome.ABORTED, Outcome.SHORT) == lost
    assert _sentence(script, Outcome.ABORTED, Outcome.SHORT, resets=False) == as_scripted
    assert _sentence(script, Outcome.RESET, Outcome.RESET) == (Sentence.FAULT, "reset")


@pytest.mark.parametrize("kind", [CLIENT, NEAR, FAR, SERVER])
def test_a_kill_explains_only_what_it_met(kind: int) -> None:
    script = _ending(Ending.CLIENT_CLOSES)
    route = script.route
    worker = (route.client, route.near, route.far, route.server)[kind]
    reset = (Sentence.FAULT, "reset")

    def sentence(outage: Outage) -> tuple[Sentence, str]:
        return _sentence(script, Outcome.RESET, Outcome.SHORT, outage)

    assert sentence(Outage(kind, worker, 15.0, 16.0)) == (Sentence.CUT, "")
    assert sentence(Outage(kind, worker, 15.0)) == (Sentence.CUT, "")
    assert sentence(Outage(kind, worker, 5.0, 9.0)) == reset
    assert sentence(Outage(kind, worker, 21.0, 22.0)) == reset
    assert sentence(Outage(kind, worker + 1, 15.0, 16.0)) == reset


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.EXTRA])
def test_nothing_explains_a_wrong_byte(outcome: Outcome) -> None:
    script = _ending(Ending.CLIENT_CLOSES)
    outage = Outage(SERVER, script.route.server, 0.0)
    wrong = (Sentence.FAULT, "wrong bytes")
    assert _sentence(script, Outcome.KILLED, outcome, outage) == wrong
    assert _sentence(script, outcome, Outcome.KILLED, outage) == wrong


def test_settled_when_both_ends_have_told() -> None:
    told, open_ = _row(Outcome.COMPLETE), _row(Outcome.NONE)
    assert is_settled(told, told, 20.0)
    assert not is_settled(open_, told, 99.0)
    assert not is_settled(told, open_, 99.0)
    # The server may still hear of it.
    assert not is_settled(told, None, 21.0)
    assert is_settled(told, None, 26.0)

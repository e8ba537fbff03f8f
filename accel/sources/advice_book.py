"""What is written on pods and namespaces, as one source knows it, and who has left of late."""

from __future__ import annotations

from collections.abc import Mapping

from accel.core.advice import Advice
from accel.core.events import AdviceGone, AdviceListed, AdviceSeen, Subject


class AdviceBook:
    """Says what is new, and forgets late.

    A pod's containers outlive what API server and kubelet know of it, by 0.8 s when it is
    deleted by force.  Were its advice gone before, they would be treated for that while as
    their annotations were at their start.  So a subject that left stays until the second
    sweep() after.

    Subjects on which nothing is written are kept as well: the runtime may have an
    annotation of theirs that was taken away since.
    """

    def __init__(self) -> None:
        self._said: dict[Subject, Advice] = {}
        self._leaving: set[Subject] = set()  # who left before the last sweep
        self._left: set[Subject] = set()  # who left since

    def see(self, subject: Subject, said: Advice) -> AdviceSeen | None:
        """This is written on it; None when that is known."""
        self._left.discard(subject)
        self._leaving.discard(subject)
        if self._said.get(subject) == said:
            return None
        self._said[subject] = said
        return AdviceSeen(subject, said)

    def leave(self, subject: Subject) -> None:
        """It is no more."""
        if subject in self._said and subject not in self._leaving:
            self._left.add(subject)

    def see_all(self, kind: type[Subject], found: Mapping[Subject, Advice]) -> None:
        """These are all of their kind there are."""
        for subject in self._said:
            if isinstance(subject, kind) and subject not in found:
                self.leave(subject)
        for subject, said in found.items():
            self.see(subject, said)

    def all(self) -> AdviceListed:
        return AdviceListed(dict(self._said))

    def sweep(self) -> tuple[AdviceGone, ...]:
        """Forget who had left before the last sweep."""
        gone = tuple(AdviceGone(subject) for subject in self._leaving)
        for event in gone:
            del self._said[event.subject]
        self._leaving, self._left = self._left, set()
        return gone

"""What every source promises; tests/contract/source.py holds each to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from accel.core.events import AdviceEvent, Event


class Source(Protocol):
    """Anything that tells which pods are on this node."""

    @property
    def name(self) -> str:
        """As in the settings: "processes"."""

    def events(self) -> AsyncGenerator[Event, None]:
        """Facts, from now until cancelled.

        The first is Listed: the source subscribes to changes, then lists, so that
        nothing falls between.  After it, folding all events gives the pods as they are
        now; a repeated event changes nothing, and Listed may come again at any time.

        Who asks for the next event is through with the last one: has folded it, and written
        the maps.  A source whose runtime waits for that (NRI) answers it then, or when it
        has waited long enough.  So act on an event before asking for another, and do not
        collect them.

        What a source cannot see for a while it does not report gone.  An error that
        it cannot repair leaves through here.  Close the generator (contextlib.aclosing)
        to let go of what it holds.
        """


class AdviceSource(Protocol):
    """Anything that tells what the annotations of pods and namespaces say now."""

    @property
    def name(self) -> str:
        """For people: "kubernetes"."""

    def events(self) -> AsyncGenerator[AdviceEvent, None]:
        """As Source.events(), and the first is AdviceListed.

        A pod's end is told late rather than early: its containers outlive what the API
        server knows of it (by 0.8 s when it is deleted by force), and would get back for
        that while what their annotations said when they began.
        """

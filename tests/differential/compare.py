"""Tells a story both ways and finds where they part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from accel.datapath.selftest import Facts
from tests.differential.calls import AnyCall, Option, Pause, Resume, Seen, Set, Signal, Step, Story
from tests.differential.stage import BLOCKED, CURTAIN, SKIPPED, Mode, Scene, Stage, Theatre

T = TypeVar("T")

AGAIN = 4  # tellings that show whether plain TCP itself is of one mind


@dataclass(frozen=True)
class Parting:
    """The first step at which the two ways differ.

    Attributes:
        at: How many steps came before it, those that made no sense included.
        steps: Those that did, up to and with this one; those of the curtain too.
    """

    mode: Mode
    facts: Facts
    story: Story
    at: int
    steps: tuple[Step, ...]
    plain: Scene
    accelerated: Scene

    @property
    def end(self) -> int:
        return self.steps[-1].end

    @property
    def call(self) -> AnyCall:
        return self.steps[-1].call

    def before(self, end: int | None, *kinds: type) -> bool:
        """Was there a call of these kinds, now or before, at this end?"""
        return any(isinstance(step.call, kinds) and step.end == end for step in self.steps)

    def last(self, end: int | None, kind: type[T]) -> T | None:
        """The latest call of this kind at this end, the present one included."""
        for step in reversed(self.steps):
            if step.end == end and isinstance(step.call, kind):
                return step.call
        return None

    def sets(self, end: int | None, *options: Option) -> bool:
        """Was one of these options set, now or before, at this end?"""
        return any(
            isinstance(step.call, Set) and step.call.option in options and step.end == end
            for step in self.steps
        )

    def returned(self, end: int | None) -> tuple[Seen | None, Seen | None]:
        """What a call of this end gave now, by TCP and accelerated; None while it sleeps."""
        return _returned(self.plain, self.steps[-1], end), _returned(
            self.accelerated, self.steps[-1], end
        )

    def __str__(self) -> str:
        return (
            f"{self.mode.value}, step {self.at + 1} of\n    {short(self.story)}\n"
            f"  by TCP      {short(self.plain)}\n"
            f"  accelerated {short(self.accelerated)}"
        )


def _returned(scene: Scene, step: Step, end: int | None) -> Seen | None:
    seen = [seen for woken, seen in scene.woken if woken == end]
    nothing_called = isinstance(step.call, Signal | Pause | Resume)
    if step.end == end and scene.seen != BLOCKED and not nothing_called:
        seen.append(scene.seen)
    return seen[0] if seen else None


def part(stage: Stage, mode: Mode, story: Story) -> Parting | None:
    """Where accelerated differs from plain TCP; None if nowhere.

    Plain TCP promises less than it usually does, so a difference counts only if it tells
    the same again and again, and never as accelerated.
    """
    plain = tell(stage.plain(mode), mode, story)
    parting = _first(stage, mode, story, plain)
    if parting is None:
        return None
    for _ in range(AGAIN):
        again = tell(stage.plain(mode), mode, story)
        if again[: parting.at + 1] != plain[: parting.at + 1]:
            return None
    return parting


def _first(stage: Stage, mode: Mode, story: Story, plain: Sequence[Scene]) -> Parting | None:
    accelerated = tell(stage.accelerated(mode), mode, story, until_unlike=plain)
    at = len(accelerated) - 1
    if accelerated[at] == plain[at]:
        return None
    told = zip((*story.steps, *CURTAIN), accelerated, strict=False)
    steps = tuple(step for step, scene in told if scene.seen != SKIPPED.seen)
    return Parting(mode, stage.facts, story, at, steps, plain[at], accelerated[at])


def tell(
    theatre: Theatre, mode: Mode, story: Story, until_unlike: Sequence[Scene] | None = None
) -> list[Scene]:
    """All scenes; or those up to the first that is not as the other telling's."""
    scenes: list[Scene] = []

    def going_on(scene: Scene) -> bool:
        scenes.append(scene)
        return until_unlike is None or scene == until_unlike[len(scenes) - 1]

    theatre.tell(story, mode.proxies, going_on, until_unlike or ())
    return scenes


def short(thing: object) -> str:
    """Its repr, without what is as by default: it still makes the same again."""
    match thing:
        case msgspec.Struct():
            shown = []
            for field in msgspec.structs.fields(thing):
                value = getattr(thing, field.name)
                if field.default is msgspec.NODEFAULT:
                    shown.append(short(value))
                elif value != field.default:
                    shown.append(f"{field.name}={short(value)}")
            return f"{type(thing).__name__}({', '.join(shown)})"
        case tuple():
            inside = ", ".join(short(item) for item in thing)
            return f"({inside},)" if len(thing) == 1 else f"({inside})"
    return str(thing) if hasattr(type(thing), "__members__") else repr(thing)

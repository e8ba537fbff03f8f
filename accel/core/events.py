"""Facts from sources, in the past tense.  Repeating one changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from accel.core.model import Pod


@dataclass(frozen=True, slots=True)
class PodSeen:
    """This pod exists and looks like this; whatever was known of it before is replaced."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class PodGone:
    """The pod with this network namespace is no more."""

    netns: int


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole truth at one moment: a pod that is not named here does not exist."""

    pods: tuple[Pod, ...]


Event = PodSeen | PodGone | Listed

"""Facts from sources, in the past tense.  Repeating one changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from accel.core.advice import Advice
from accel.core.model import Pod, PodKey


@dataclass(frozen=True, slots=True)
class PodSeen:
    """This pod exists and looks like this; whatever was known of it before is replaced."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class PodGone:
    """The pod with this key (Pod.key: its network namespace, if it has one) is no more."""

    key: PodKey


@dataclass(frozen=True, slots=True)
class Listed:
    """The whole truth at one moment: a pod that is not named here does not exist."""

    pods: tuple[Pod, ...]


Event = PodSeen | PodGone | Listed


@dataclass(frozen=True, slots=True)
class PodUid:
    """A pod, as advice names it.  As the runtime knows it: the API server's mirror of a
    static pod has another uid, and is no pod of the node's.  Its annotation
    `kubernetes.io/config.hash` has the runtime's, but anybody may write that on a pod."""

    uid: str


@dataclass(frozen=True, slots=True)
class NamespaceName:
    """A Kubernetes namespace, as advice names it."""

    name: str


Subject = PodUid | NamespaceName


@dataclass(frozen=True, slots=True)
class AdviceSeen:
    """The annotations of `subject` say this now; what they said before is replaced."""

    subject: Subject
    advice: Advice


@dataclass(frozen=True, slots=True)
class AdviceGone:
    """`subject` is no more, and its advice may be forgotten."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class AdviceListed:
    """All subjects at one moment, with what their annotations say."""

    advice: Mapping[Subject, Advice]


AdviceEvent = AdviceSeen | AdviceGone | AdviceListed

"""Several sources, one truth.

Each source is folded by itself, so that a late word of one undoes nothing that another
said, and one that lost its connection keeps its last word.  What they say together is a
function of where each of them stands, merged(), and so the same in whatever order they
were heard.

Until every source has listed, restrain() keeps what the kernel holds of those pods that
somebody may still speak up for, or against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from accel.core.advice import Advice
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
    Subject,
)
from accel.core.model import Pod, PodKey
from accel.core.plan import Pods, Want, fold

K = TypeVar("K")
V = TypeVar("V")

Advices = Mapping[Subject, Advice]


@dataclass(frozen=True, slots=True)
class PodVoice:
    """What one source of pods has said.

    Attributes:
        listed: It has told the whole truth once.
        given_up: Nobody waits for that any more.
        fresh: Of its pods those that it saw come, so that what their annotations said
            then is what they say.
    """

    pods: Pods = field(default_factory=dict)
    listed: bool = False
    given_up: bool = False
    fresh: frozenset[PodKey] = frozenset()


@dataclass(frozen=True, slots=True)
class AdviceVoice:
    """What one source of advice has said; as PodVoice."""

    advice: Advices = field(default_factory=dict)
    listed: bool = False
    given_up: bool = False


Voice = PodVoice | AdviceVoice


@dataclass(frozen=True, slots=True)
class Truth:
    """What every source has said, by its name; in each mapping the best source first."""

    pods: Mapping[str, PodVoice]
    advice: Mapping[str, AdviceVoice]


def expecting(pods: Iterable[str], advice: Iterable[str] = ()) -> Truth:
    """Nothing said yet.

    Args:
        pods: Names of the sources of pods.  Where two speak of one pod, the first wins.
        advice: Names of the sources of advice, likewise.  Each wins over what the source
            of a pod knows of its annotations, which may be as old as the pod.
    """
    return Truth({name: PodVoice() for name in pods}, {name: AdviceVoice() for name in advice})


def hear(truth: Truth, source: str, event: Event | AdviceEvent) -> Truth:
    """The truth after `source`, one of those expected, has said `event`."""
    match event:
        case PodSeen() | PodGone() | Listed():
            voice = _hear_of_pods(truth.pods[source], event)
            return replace(truth, pods={**truth.pods, source: voice})
        case AdviceSeen() | AdviceGone() | AdviceListed():
            advice = _hear_advice(truth.advice[source], event)
            return replace(truth, advice={**truth.advice, source: advice})


def give_up(truth: Truth, source: str) -> Truth:
    """Go on without the first list of `source`; what it says later counts as ever.

    What it may know alone is left in the kernel all the same.
    """
    return Truth(
        {n: replace(v, given_up=v.given_up or n == source) for n, v in truth.pods.items()},
        {n: replace(v, given_up=v.given_up or n == source) for n, v in truth.advice.items()},
    )


def awaited(truth: Truth) -> tuple[str, ...]:
    """The sources whose first list is waited for."""
    voices: tuple[tuple[str, Voice], ...] = (*truth.pods.items(), *truth.advice.items())
    return tuple(name for name, voice in voices if _is_awaited(voice))


def merged(truth: Truth) -> Pods:
    """The pods of all sources, each as the best source that knows it says.

    Two sources know the same pod by its network namespace or by its uid.
    """
    pods = {pod.key: pod for pod, _ in _best(truth)}
    advices: dict[Subject, Advice] = {}
    for voice in reversed(tuple(truth.advice.values())):
        advices |= voice.advice
    return {key: _advised(pod, advices) for key, pod in pods.items()} if advices else pods


def restrain(have: Want, wanted: Want, truth: Truth) -> Want:
    """What of `wanted` may be done already.

    A network namespace keeps what the kernel has for it, no less and no more,

    - of which nobody has spoken, until every source of pods has listed: an agent that
      starts knows nothing yet, while the pods go on;
    - which a better source, or an advisor, may still speak against, until that one has
      listed or was given up: nobody is to be trusted for a moment at each start.

    Args:
        have: What the kernel holds.
        wanted: want(merged(truth), policy).
    """
    everyone = all(voice.listed for voice in truth.pods.values())
    if everyone and not awaited(truth):
        return wanted
    best = tuple(_best(truth))
    spoken = {pod.netns for pod, _ in best}
    certain = {pod.netns for pod, is_certain in best if is_certain}

    def decided(netns: int) -> bool:
        return netns in certain or (everyone and netns not in spoken)

    return Want(
        pods=_chosen(have.pods, wanted.pods, lambda netns, _: decided(netns)),
        containers=_chosen(
            have.containers, wanted.containers, lambda _, entry: decided(entry.netns)
        ),
        addresses=_chosen(have.addresses, wanted.addresses, lambda _, netns: decided(netns)),
    )


def drift(told: Pods, listed: Pods) -> int:
    """How many pods a new list shows otherwise than the events before it: missed, still
    there though gone, or changed."""
    return sum(told.get(key) != listed.get(key) for key in told.keys() | listed.keys())


def _hear_of_pods(voice: PodVoice, event: Event) -> PodVoice:
    pods = fold(voice.pods, event)
    fresh = voice.fresh & pods.keys()
    match event:
        case PodSeen(pod) if voice.listed and pod.key not in voice.pods:
            fresh |= {pod.key}
    listed = voice.listed or isinstance(event, Listed)
    return replace(voice, pods=pods, fresh=fresh, listed=listed)


def _hear_advice(voice: AdviceVoice, event: AdviceEvent) -> AdviceVoice:
    match event:
        case AdviceSeen(subject, advice):
            return replace(voice, advice={**voice.advice, subject: advice})
        case AdviceGone(gone):
            return replace(voice, advice={s: a for s, a in voice.advice.items() if s != gone})
        case AdviceListed(listed):
            return replace(voice, advice=listed, listed=True)


def _is_awaited(voice: Voice) -> bool:
    return not (voice.listed or voice.given_up)


def _best(truth: Truth) -> Iterator[tuple[Pod, bool]]:
    """Each pod as its best source says, and whether nobody awaited may say otherwise."""
    known: set[PodKey] = set()
    better_awaited = False
    advice_awaited = any(_is_awaited(voice) for voice in truth.advice.values())
    for voice in truth.pods.values():
        own = [p for p in voice.pods.values() if not (p.key in known or p.uid in known)]
        for pod in own:
            advisable = bool(pod.uid) and pod.key not in voice.fresh
            yield pod, not (better_awaited or (advice_awaited and advisable))
        known |= {name for pod in own for name in (pod.key, pod.uid) if name}
        better_awaited |= _is_awaited(voice)


def _advised(pod: Pod, advices: Advices) -> Pod:
    own = advices.get(PodUid(pod.uid), pod.advice)
    namespace = advices.get(NamespaceName(pod.namespace), pod.namespace_advice)
    if (own, namespace) == (pod.advice, pod.namespace_advice):
        return pod
    return replace(pod, advice=own, namespace_advice=namespace)


def _chosen(
    have: Mapping[K, V], wanted: Mapping[K, V], decided: Callable[[K, V], bool]
) -> Mapping[K, V]:
    kept = {key: value for key, value in have.items() if not decided(key, value)}
    return MappingProxyType(
        kept | {key: value for key, value in wanted.items() if decided(key, value)}
    )

"""What annotations say of a pod and of its namespace: advice, read word for word or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PREFIX = "accel.dev/"
ACCELERATE = PREFIX + "accelerate"
TRUST_APPS = PREFIX + "trust-apps"

_WORDS = {"true": True, "false": False}
_SHOWN_CHARACTERS = 40  # of a value, which may have 256 KiB
_SHOWN_KEYS = 3


@dataclass(frozen=True, slots=True)
class Override:
    """What the settings of this node say of one pod, or of one namespace; None says nothing."""

    trust_apps: bool | None = None
    accelerate: bool | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """What the annotations of one pod, or of one namespace, say; None says nothing.

    Attributes:
        mistakes: What was said and not understood, for people.
    """

    trust_apps: bool | None = None
    accelerate: bool | None = None
    mistakes: tuple[str, ...] = ()


NO_ADVICE = Advice()


def read_advice(annotations: Mapping[str, str]) -> Advice:
    """The advice among all annotations of a pod, or of a namespace.

    A value that is neither "true" nor "false" counts as "false": whatever was meant, it
    switches nothing on, and no wider default takes its place.
    """
    if not any(key.startswith(PREFIX) for key in annotations):
        return NO_ADVICE
    return Advice(
        trust_apps=_word(annotations, TRUST_APPS),
        accelerate=_word(annotations, ACCELERATE),
        mistakes=tuple(_mistakes(annotations)),
    )


def _word(annotations: Mapping[str, str], key: str) -> bool | None:
    return _WORDS.get(annotations[key], False) if key in annotations else None


def _mistakes(annotations: Mapping[str, str]) -> Iterator[str]:
    for key in (ACCELERATE, TRUST_APPS):
        value = annotations.get(key, "true")
        if value not in _WORDS:
            shown = repr(value[:_SHOWN_CHARACTERS]) + "..." * (len(value) > _SHOWN_CHARACTERS)
            yield f'{key} is {shown}, neither "true" nor "false": taken for "false"'
    unknown = sorted(
        key for key in annotations if key.startswith(PREFIX) and key not in (ACCELERATE, TRUST_APPS)
    )
    if unknown:
        shown = ", ".join(key[:_SHOWN_CHARACTERS] for key in unknown[:_SHOWN_KEYS])
        more = f" and {len(unknown) - _SHOWN_KEYS} more" * (len(unknown) > _SHOWN_KEYS)
        yield f"{shown}{more}: not known, so ignored (known: {ACCELERATE}, {TRUST_APPS})"

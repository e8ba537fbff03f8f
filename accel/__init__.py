"""accel: messages between an application and its sidecar, without the TCP stack in between."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel.stream import events, pods

__all__ = ["events", "pods"]


def __getattr__(name: str) -> Any:
    """Imported when used: `import accel.bpf` must not pay for it."""
    if name in __all__:
        from accel import stream

        return getattr(stream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

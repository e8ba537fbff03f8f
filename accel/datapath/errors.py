"""What can go wrong with the data path, beside what accel.bpf already says."""

from __future__ import annotations

from accel.errors import AccelError


class DatapathError(AccelError):
    """The data path could not be loaded, found or steered."""


class NotRunning(DatapathError):
    """Nothing of ours is pinned where we were told to look."""


class UnknownPod(DatapathError):
    """No meshed pod of that name."""

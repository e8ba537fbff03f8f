"""Objects to look into are those of the loader's own tests."""

from __future__ import annotations

from tests.bpf.conftest import compiled, target

__all__ = ["compiled", "target"]

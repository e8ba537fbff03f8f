"""Objects that others compiled: what build/corpus/fetch brought from Debian's packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "accel-objects"


def packages() -> Mapping[str, tuple[Path, ...]]:
    """The objects of each package that was fetched, by "suite/package"."""
    return {
        f"{home.parent.name}/{home.name}": tuple(sorted(home.glob("*.o")))
        for home in sorted(_CACHE.glob("*/*"))
        if home.parent.name != "apt" and any(home.glob("*.o"))
    }


def every_package() -> pytest.MarkDecorator:
    """Parametrises a test by `package` (a name) and `objects` (paths)."""
    found = packages()
    missing = pytest.mark.skip("no objects of Debian's packages: build/corpus/fetch")
    return pytest.mark.parametrize(
        "objects",
        [pytest.param(objects, id=name) for name, objects in found.items()]
        or [pytest.param((), marks=missing)],
    )

"""Objects that others compiled open."""

from __future__ import annotations

from pathlib import Path

from accel.bpf import ObjectError, open_object
from tests.bpf.corpus import every_package


@every_package()
def test_objects_of_others_open(objects: tuple[Path, ...]) -> None:
    refused = {}
    for path in objects:
        try:
            open_object(path)
        except ObjectError as refusal:
            refused[path.name] = str(refusal)

    assert refused == {}

"""accel/datapath/layout.py held against the object that was built from bpf/accel.h."""

from __future__ import annotations

from typing import Any

import pytest

from accel.bpf import Struct, codec_for
from accel.cli.reasons import MEANINGS
from accel.datapath import layout
from accel.datapath.errors import DatapathError
from accel.datapath.generation import object_spec


@pytest.fixture(scope="module")
def btf() -> Any:
    try:
        found = object_spec().btf
    except DatapathError as error:
        pytest.skip(str(error))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("struct", "record", "size_bytes"),
    [
        ("pod", layout.PodValue, 8),
        ("container", layout.ContainerValue, 12),
        ("address", layout.AddressBytes, 16),
        ("connection_key", layout.ConnectionKey, 8),
        ("end", layout.End, None),
        ("direction", layout.Direction, None),
        ("connection", layout.Connection, None),
        ("listing", layout.Listing, None),
        ("event", layout.EventRecord, None),
    ],
)
def test_every_record_has_its_struct(
    btf: Any, struct: str, record: type[Any], size_bytes: int | None
) -> None:
    found = btf.find(struct, Struct)
    codec = codec_for(btf, found[0], record=record)
    zeros = bytes(codec.size)
    assert codec.pack(codec.unpack(zeros)) == zeros
    assert size_bytes in (None, codec.size)


def test_every_reason_has_a_meaning_and_no_other(btf: Any) -> None:
    reasons = [member.name for member in btf.struct("reasons").members]
    assert reasons[0] == "none"
    assert set(reasons[1:]) == set(MEANINGS)


def test_an_address_as_people_write_it() -> None:
    assert layout.address_bytes("10.0.0.1").bytes == bytes(10) + b"\xff\xff\x0a\0\0\1"
    for text in ("10.0.0.1", "fd00::1", "::1"):
        assert str(layout.address_bytes(text)) == text


def test_labels_are_what_tools_read() -> None:
    assert [hop.label for hop in layout.Hop] == ["app-sidecar", "sidecar-sidecar", "sidecar-app"]
    assert [way.label for way in layout.Way] == ["request", "response"]

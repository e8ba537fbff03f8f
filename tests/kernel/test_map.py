"""Maps on the running kernel."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from accel.bpf import uapi
from accel.bpf.cpu import count_cpus, possible_cpus
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.kinds import MapType
from accel.bpf.map import Map, kernel_name
from accel.bpf.program import Program
from accel.bpf.spec import MapSpec

pytestmark = pytest.mark.kernel

HASH = MapSpec("words", MapType.HASH, key_size=4, value_size=8, max_entries=64)
PER_CPU = MapSpec("counts", MapType.PERCPU_ARRAY, key_size=4, value_size=12, max_entries=2)
SOCKHASH = MapSpec("sockets", MapType.SOCKHASH, key_size=8, value_size=8, max_entries=4)
RINGBUF = MapSpec("events", MapType.RINGBUF, key_size=0, value_size=0, max_entries=5000)
DATA = MapSpec(
    ".rodata", MapType.ARRAY, 4, 6, 1, uapi.BPF_F_RDONLY_PROG, contents=b"secret", frozen=True
)

Make = Callable[[MapSpec], Map[bytes, Any]]


@pytest.fixture
def make() -> Iterator[Make]:
    """make(spec): a map that is closed after the test."""
    with ExitStack() as made:
        yield lambda spec: made.enter_context(Map.create(spec))


def key(number: int) -> bytes:
    return pack("=I", number)


def value(number: int) -> bytes:
    return pack("=Q", number)


def test_what_was_put_is_found(make: Make) -> None:
    words = make(HASH)
    words.update(key(1), value(10))

    assert words.lookup(key(1)) == value(10)
    assert words.lookup(key(2)) is None
    assert words.delete(key(1))
    assert not words.delete(key(1))
    assert list(words.items()) == []


def test_flags_of_update_are_obeyed(make: Make) -> None:
    words = make(HASH)
    with pytest.raises(BpfError, match="ENOENT"):
        words.update(key(1), value(1), uapi.BPF_EXIST)
    words.update(key(1), value(1), uapi.BPF_NOEXIST)
    with pytest.raises(BpfError, match="EEXIST"):
        words.update(key(1), value(2), uapi.BPF_NOEXIST)


def test_a_full_map_says_how_to_get_a_larger_one(make: Make) -> None:
    words = make(replace(HASH, max_entries=1))
    words.update(key(1), value(1))

    with pytest.raises(BpfError, match=r"update map words: .* \(E2BIG\)") as caught:
        words.update(key(2), value(2))
    assert caught.value.remedy is not None
    assert "max_entries" in caught.value.remedy


def test_bytes_of_the_wrong_length_never_reach_the_kernel(make: Make) -> None:
    """It would read beyond them."""
    words = make(HASH)
    with pytest.raises(ShapeError, match="key of map words: got 3 bytes, expected 4"):
        words.lookup(b"abc")
    with pytest.raises(ShapeError, match="value of map words: got 9 bytes, expected 8"):
        words.update(key(1), bytes(9))


@pytest.mark.parametrize("entries", [0, 1, 63, 3000])
def test_all_ways_of_reading_everything_agree(make: Make, entries: int) -> None:
    words = make(replace(HASH, max_entries=4096))
    for number in range(entries):
        words.update(key(number), value(number * number))
    expected = {key(number): value(number * number) for number in range(entries)}

    assert dict(words.items()) == expected
    assert dict(words.lookup_batch()) == expected
    assert set(words.keys()) == set(expected)
    assert sorted(words.values()) == sorted(expected.values())


def test_keys_may_be_deleted_while_iterating(make: Make) -> None:
    words = make(HASH)
    for number in range(40):
        words.update(key(number), value(number))

    seen = []
    for found in words.keys():  # noqa: SIM118
        words.delete(found)
        seen.append(found)

    assert sorted(seen) == sorted(key(number) for number in range(40))
    assert list(words.keys()) == []


def test_iteration_survives_the_next_key_vanishing(make: Make) -> None:
    """Keys that stay come exactly once, though the kernel starts over in between."""
    words = make(HASH)
    for number in range(40):
        words.update(key(number), value(number))
    order = list(words.keys())
    victims = set(order[1::3])

    seen = []
    for position, found in enumerate(words.keys()):
        if position == 0:
            for victim in victims:
                words.delete(victim)
        seen.append(found)

    assert len(seen) == len(set(seen))
    assert set(order) - victims <= set(seen)


def test_iteration_gives_up_on_a_map_that_never_stands_still(make: Make) -> None:
    """Whoever replaces all keys faster than we step keeps us from the end."""
    words = make(replace(HASH, max_entries=2))
    fresh = iter(range(10**6))

    def replace_all() -> None:
        for found in list(words.keys()):
            words.delete(found)
        for _ in range(2):
            words.update(key(next(fresh)), value(0))

    replace_all()
    with pytest.raises(BpfError, match=r"iterate over map words: .*EAGAIN"):  # noqa: PT012
        for _ in words.keys():  # noqa: SIM118
            replace_all()


def test_per_cpu_values_are_tuples(make: Make) -> None:
    counts = make(PER_CPU)
    cpus = possible_cpus()
    values = tuple(bytes([cpu]) * 12 for cpu in range(cpus))
    counts.update(key(1), values)

    assert counts.lookup(key(1)) == values
    assert counts.lookup(key(0)) == (bytes(12),) * cpus
    assert dict(counts.lookup_batch()) == dict(counts.items())
    with pytest.raises(ShapeError, match="one per CPU"):
        counts.update(key(1), values + values)


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3", 4), ("0-3,8,10-11", 7)])
def test_lists_of_cpus_are_counted(text: str, count: int) -> None:
    assert count_cpus(text) == count


def test_a_sockhash_is_read_as_cookies(make: Make) -> None:
    """SO_COOKIE of the socket in the map, and keys to walk over; there is no batch."""
    sockets = make(SOCKHASH)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        sockets.update(b"the key!", value(client.fileno()))
        cookie = client.getsockopt(socket.SOL_SOCKET, 57, 8)

        assert sockets.lookup(b"the key!") == cookie
        assert list(sockets.keys()) == [b"the key!"]
        assert sockets.lookup_batch() == [(b"the key!", cookie)]


def test_a_ring_buffer_gets_a_size_the_kernel_takes(make: Make) -> None:
    """A power of two of whole pages; key and value types are for readers only."""
    events = make(replace(RINGBUF, value_size=8))

    assert events.info().max_entries == 8192
    assert events.info().value_size == 0


def test_initial_contents_are_there_and_frozen(make: Make) -> None:
    data = make(DATA)

    assert data.lookup(bytes(4)) == b"secret"
    with pytest.raises(BpfError, match="EPERM"):
        data.update(bytes(4), b"public")


def test_a_map_of_maps_is_created_from_its_template(make: Make) -> None:
    outer = make(MapSpec("outer", MapType.HASH_OF_MAPS, 4, 4, 2, inner=replace(HASH, name="inner")))
    inner = make(HASH)
    outer.update(key(1), pack("=I", inner.fileno()))

    assert outer.lookup(key(1)) == pack("=I", inner.info().id)


def test_types_the_kernel_refuses_are_left_out(make: Make) -> None:
    """A type id without BTF, and a name with letters the kernel does not take."""
    words = make(replace(HASH, name="wörter/2026-and-more", key_type_id=3, value_type_id=4))

    assert words.info().name == "w_rter_2026-and"[:15].replace("-", "_")


@pytest.mark.parametrize(
    ("name", "kept"),
    [("a", b"a"), (".rodata", b".rodata"), ("a-b", b"a_b"), ("x" * 20, b"x" * 15)],
)
def test_names_are_made_to_fit(name: str, kept: bytes) -> None:
    assert kernel_name(name) == kept


def test_a_type_no_kernel_has_is_named() -> None:
    with pytest.raises(BpfError, match=r"create map words: .*EINVAL") as caught:
        Map.create(replace(HASH, type=9999))
    assert caught.value.remedy == "run a kernel with maps of type 9999: this one has none"


def test_a_pin_outlives_its_map(make: Make, bpffs: Path) -> None:
    words = make(HASH)
    words.update(key(1), value(1))
    words.pin(bpffs / "words")
    number = words.info().id
    words.close()

    with Map.from_pin(bpffs / "words") as again:
        assert again.info().id == number
        assert again.lookup(key(1)) == value(1)
    with Map.from_pin(bpffs / "words", spec=HASH) as again:
        assert again.name == "words"
    (bpffs / "words").unlink()


def test_every_difference_of_a_pin_is_named(make: Make, bpffs: Path) -> None:
    make(HASH).pin(bpffs / "words")
    other = MapSpec("words", MapType.LRU_HASH, 8, 16, 32, flags=uapi.BPF_F_NO_PREALLOC)

    with pytest.raises(ShapeError) as caught:
        Map.from_pin(bpffs / "words", spec=other)
    assert caught.value.differences == (
        "type is HASH, expected LRU_HASH",
        "key_size is 4, expected 8",
        "value_size is 8, expected 16",
        "max_entries is 64, expected 32",
        "flags is 0x0, expected 0x1",
    )
    assert caught.value.remedy is not None


def test_what_we_add_at_creation_is_no_difference(make: Make, bpffs: Path) -> None:
    """A ring buffer's rounded size, and that variables can be mapped."""
    variables = replace(DATA, name=".data", flags=0, frozen=False)
    for name, spec in {"events": RINGBUF, "data": variables}.items():
        make(spec).pin(bpffs / name)
        Map.from_pin(bpffs / name, spec=spec).close()


def test_a_pin_of_another_kind_is_refused(make: Make, bpffs: Path) -> None:
    make(HASH).pin(bpffs / "words")
    with pytest.raises(ShapeError, match="it is a map, expected a program"):
        Program.from_pin(bpffs / "words")


def test_pinning_in_the_wrong_place_says_where_to(make: Make, tmp_path: Path, bpffs: Path) -> None:
    words = make(HASH)
    with pytest.raises(BpfError) as caught:
        words.pin(tmp_path / "words")
    assert "in a bpf file system" in str(caught.value.remedy)
    with pytest.raises(BpfError) as caught:
        words.pin(bpffs / "no" / "words")
    assert caught.value.remedy == f"create the directory {bpffs / 'no'}"
    with pytest.raises(BpfError) as caught:
        words.pin(bpffs / "a.b")
    assert caught.value.remedy == "choose a name without a dot"
    with pytest.raises(BpfError) as caught:
        Map.from_pin(bpffs / "nothing")
    assert caught.value.errno == errno.ENOENT
    words.pin(bpffs / "words")
    with pytest.raises(BpfError, match="EEXIST"):
        words.pin(bpffs / "words")


def test_typed_needs_types(make: Make) -> None:
    with pytest.raises(ObjectError, match="map words has no BTF"):
        make(HASH).typed()


def test_it_is_readable_and_closes_once(make: Make) -> None:
    words = make(HASH)
    assert repr(words) == "<Map words: HASH, 4 -> 8 bytes, at most 64>"
    number = words.fileno()
    words.close()
    words.close()

    assert words.closed
    assert "closed" in repr(words)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)

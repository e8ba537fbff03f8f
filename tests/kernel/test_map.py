"""Maps on the running kernel."""

from __future__ import annotations

import errno
import gc
import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from struct import pack
from typing import Any, NamedTuple

import pytest

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.cpu import count_cpus, list_cpus, online_cpus, possible_cpus
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import mov
from accel.bpf.errors import BpfError, NotSupported, ObjectError, ShapeError
from accel.bpf.format import btf as b
from accel.bpf.format.insn import EXIT, Instruction
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.loading.program import Program
from accel.bpf.maps import batch as map_batch
from accel.bpf.maps.arena import Arena
from accel.bpf.maps.create import adapted
from accel.bpf.maps.map import BatchError, Map, Redirect, differences, iter_maps, kernel_name
from accel.bpf.maps.special_fields import special_field
from accel.bpf.spec import MapSpec
from tests.bpf.handmade import PTR, TYPE_TAG, Builder
from tests.kernel.conftest import LoadProgram

pytestmark = pytest.mark.kernel

HASH = MapSpec("words", MapType.HASH, key_size=4, value_size=8, max_entries=64)
PER_CPU = MapSpec("counts", MapType.PERCPU_ARRAY, key_size=4, value_size=12, max_entries=2)
SOCKHASH = MapSpec("sockets", MapType.SOCKHASH, key_size=8, value_size=8, max_entries=4)
RINGBUF = MapSpec("events", MapType.RINGBUF, key_size=0, value_size=0, max_entries=5000)
DATA = MapSpec(
    ".rodata", MapType.ARRAY, 4, 6, 1, uapi.BPF_F_RDONLY_PROG, contents=b"secret", frozen=True
)

DEVMAP_HASH = MapSpec("devices", MapType.DEVMAP_HASH, 4, 4, max_entries=2)
LEAVE = Instruction(EXIT, 0, 0, 0, 0)
LOOPBACK = 1  # interface index, in every network namespace

Make = Callable[[MapSpec], Map[bytes, Any]]


# Kinds younger than the oldest kernels these tests run on.
SINCE = {
    MapType.RINGBUF: (5, 8),
    MapType.INODE_STORAGE: (5, 10),
    MapType.TASK_STORAGE: (5, 11),
    MapType.BLOOM_FILTER: (5, 16),
    MapType.USER_RINGBUF: (6, 1),
    MapType.CGRP_STORAGE: (6, 2),
    MapType.ARENA: (6, 9),
}


def needs(*kinds: int) -> None:
    for kind in kinds:
        if kind in SINCE and probe.map_type(kind) is probe.Answer.NO:
            kind = MapType(kind)
            raise NotSupported(f"maps of type {kind.name}", SINCE[kind])


@pytest.fixture
def make() -> Iterator[Make]:
    """make(spec): a map that is closed after the test."""
    with ExitStack() as made:

        def create(spec: MapSpec) -> Map[bytes, Any]:
            needs(spec.type)
            return made.enter_context(Map.create(spec))

        yield create


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
    devices = make(DEVMAP_HASH)  # of a kind that is walked from key to key
    fresh = iter(range(10**6))

    def replace_all() -> None:
        for found in list(devices.keys()):
            devices.delete(found)
        for _ in range(2):
            devices.update(key(next(fresh)), key(LOOPBACK))

    replace_all()
    with pytest.raises(BpfError, match=r"iterate over map devices: .*EAGAIN"):  # noqa: PT012
        for _ in devices.keys():  # noqa: SIM118
            replace_all()


def test_walking_from_key_to_key_survives_it_too(make: Make) -> None:
    devices = make(replace(DEVMAP_HASH, max_entries=64))
    for number in range(40):
        devices.update(key(number), key(LOOPBACK))
    order = list(devices.keys())
    victims = set(order[1::3])

    seen = []
    for position, found in enumerate(devices.keys()):
        if position == 0:
            for victim in victims:
                devices.delete(victim)
        seen.append(found)

    assert len(seen) == len(set(seen))
    assert set(order) - victims <= set(seen)


def test_a_large_hash_is_not_remembered_while_iterating(make: Make) -> None:
    """Memory for some elements at a time, whatever the number of keys."""
    if not probe.lookup_batch():
        raise NotSupported("reading a hash in batches", (5, 6))
    words = make(replace(HASH, max_entries=50_000))
    words.update_batch((key(number), value(number)) for number in range(50_000))

    tracemalloc.start()
    try:
        assert sum(1 for _ in words.keys()) == 50_000  # noqa: SIM118
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


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


def test_lists_of_cpus_are_listed() -> None:
    assert list_cpus("0-1,8,10-11\n") == (0, 1, 8, 10, 11)
    assert set(online_cpus()) <= set(range(possible_cpus()))


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
    with pytest.raises(BpfError, match=r"create map words, a 9999: .*EINVAL") as caught:
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


# --- batches -------------------------------------------------------------------------------


def test_many_are_written_and_deleted_at_a_time(make: Make) -> None:
    words = make(replace(HASH, max_entries=4096))

    assert words.update_batch((key(n), value(n)) for n in range(3000)) == 3000
    assert dict(words.items()) == {key(n): value(n) for n in range(3000)}
    assert words.delete_batch(key(n) for n in range(0, 6000, 2)) == 1500
    assert set(words.keys()) == {key(n) for n in range(1, 3000, 2)}
    assert words.update_batch([]) == 0


def test_a_failed_batch_says_how_much_was_done(make: Make) -> None:
    words = make(replace(HASH, max_entries=1500))
    with pytest.raises(
        BatchError, match=r"update map words, after \d+ elements: .*E2BIG"
    ) as caught:
        words.update_batch((key(n), value(n)) for n in range(3000))

    assert caught.value.done == len(list(words.keys())) == 1500


def test_batches_obey_flags_the_kernel_has_none_for(make: Make) -> None:
    """BPF_NOEXIST is unknown to its batches: they are then written one by one."""
    words = make(HASH)
    words.update(key(2), value(0))
    with pytest.raises(BatchError, match="EEXIST") as caught:
        words.update_batch([(key(n), value(n)) for n in range(5)], uapi.BPF_NOEXIST)

    assert caught.value.done == 2
    assert words.lookup(key(1)) == value(1)
    assert words.lookup(key(2)) == value(0)


def test_kinds_without_batches_are_done_one_by_one(make: Make) -> None:
    devices = make(replace(DEVMAP_HASH, max_entries=8))

    assert devices.update_batch((key(n), key(LOOPBACK)) for n in range(6)) == 6
    assert devices.delete_batch([key(0), key(9), key(1)]) == 2
    assert set(devices.keys()) == {key(n) for n in range(2, 6)}
    with pytest.raises(BatchError, match="after 4 elements") as caught:
        devices.update_batch((key(n), key(LOOPBACK)) for n in range(10, 20))
    assert caught.value.done == 4
    assert len(devices.lookup_batch()) == 8
    assert len([e for chunk in devices.lookup_and_delete_batch() for e in chunk]) == 8
    assert devices.lookup_batch() == []


def test_taking_everything_out(make: Make) -> None:
    words = make(replace(HASH, max_entries=4096))
    words.update_batch((key(n), value(n)) for n in range(3000))

    taken = [element for chunk in words.lookup_and_delete_batch() for element in chunk]

    assert sorted(taken) == sorted((key(n), value(n)) for n in range(3000))
    assert list(words.keys()) == []


@pytest.mark.parametrize("spec", [HASH, DEVMAP_HASH, replace(HASH, type=MapType.LRU_HASH)])
def test_taking_one_out(make: Make, spec: MapSpec) -> None:
    """In one step, or in two where the kernel has none."""
    words = make(spec)
    held = value(5) if spec.value_size == 8 else key(LOOPBACK)
    words.update(key(1), held)

    assert words.lookup_and_delete(key(1)) == held
    assert words.lookup_and_delete(key(1)) is None


def test_batches_of_large_values_stay_small() -> None:
    shape = map_batch.Shape(key_size=4, value_bytes=1 << 20, max_entries=10_000, name="large")
    assert shape.room == 3


# --- kinds ---------------------------------------------------------------------------------


def test_a_queue_and_a_stack(make: Make) -> None:
    for kind, first in ((MapType.QUEUE, 1), (MapType.STACK, 2)):
        pile = make(MapSpec("pile", kind, 0, 4, 2))
        assert pile.pop() is None
        assert pile.peek() is None
        pile.push(key(1))
        pile.push(key(2))
        with pytest.raises(BpfError, match=r"push to map pile: .*E2BIG"):
            pile.push(key(3))
        assert pile.peek() == key(first)
        assert pile.pop() == key(first)
        pile.push(key(4))
        pile.push(key(5), uapi.BPF_EXIST)
        assert {pile.pop(), pile.pop(), pile.pop()} >= {key(5), None}


def test_a_bloom_filter(make: Make) -> None:
    seen = make(MapSpec("seen", MapType.BLOOM_FILTER, 0, 4, 100, map_extra=3))
    seen.push(key(7))

    assert seen.may_contain(key(7))
    assert sum(seen.may_contain(key(n)) for n in range(1000, 1100)) < 50
    assert seen.info().map_extra == 3


def test_a_trie(make: Make) -> None:
    """A key is the prefix's length in bits, then its bytes."""
    routes = make(MapSpec("routes", MapType.LPM_TRIE, 8, 8, 16, uapi.BPF_F_NO_PREALLOC))
    routes.update(pack("=I4B", 8, 10, 0, 0, 0), value(1))
    routes.update(pack("=I4B", 16, 10, 1, 0, 0), value(2))

    assert routes.lookup(pack("=I4B", 32, 10, 1, 2, 3)) == value(2)
    assert routes.lookup(pack("=I4B", 32, 10, 9, 2, 3)) == value(1)
    assert len(routes.lookup_batch()) == 2
    assert routes.lookup_and_delete(pack("=I4B", 16, 10, 1, 0, 0)) == value(2)


def test_programs_go_in_and_ids_come_out(make: Make, load_program: LoadProgram) -> None:
    program = load_program(ProgramType.SOCKET_FILTER, mov(0, 0), LEAVE)
    programs = make(MapSpec("programs", MapType.PROG_ARRAY, 4, 4, 3))
    programs.update(key(1), program)
    typed = programs.typed()

    assert programs.lookup(key(1)) == pack("=I", program.id)
    assert typed.lookup(1) == program.id
    assert typed.lookup(2) is None
    typed.update(2, program)
    assert dict(typed.items()) == {1: program.id, 2: program.id}
    assert typed.delete(1)
    with pytest.raises(ValueError, match="value of map programs: None has no descriptor"):
        typed.update(1, None)


def test_maps_of_maps_hand_out_their_maps(make: Make) -> None:
    words = make(HASH)
    for kind in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
        outer = make(MapSpec("outer", kind, 4, 4, 2, inner=replace(HASH, name="inner")))
        outer.update(key(1), words)

        assert outer.lookup(key(1)) == pack("=I", words.info().id)
        with outer.inner(key(1)) as found:  # type: ignore[union-attr]
            assert found.info().id == words.info().id
            found.update(key(5), value(6))
        assert words.lookup(key(5)) == value(6)
        assert outer.inner(key(0)) is None
    with pytest.raises(BpfError, match="HASH holds no maps"):
        words.inner(key(1))


def test_inner_maps_are_typed_as_their_template_is() -> None:
    types, number = _integers()
    inner = replace(HASH, value_size=4, key_type_id=number, value_type_id=number)
    outer = MapSpec("outer", MapType.HASH_OF_MAPS, 4, 4, 2, inner=inner)
    with Map.create(outer, btf=types) as maps, Map.create(inner, btf=types) as one:
        maps.update(key(3), one)
        with maps.inner(key(3)) as found:  # type: ignore[union-attr]
            found.typed().update(1, 2)
        assert one.typed().lookup(1) == 2


def test_maps_of_maps_need_a_template() -> None:
    with pytest.raises(BpfError) as caught:
        Map.create(MapSpec("outer", MapType.HASH_OF_MAPS, 4, 4, 2))
    assert caught.value.remedy == "say what maps it holds: its spec has no `inner`"


def test_cgroups_and_devices_and_cpus(make: Make, cgroup: Path) -> None:
    groups = make(MapSpec("groups", MapType.CGROUP_ARRAY, 4, 4, 2))
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        groups.typed().update(0, directory)
    finally:
        os.close(directory)
    devices = make(MapSpec("devices", MapType.DEVMAP, 4, 8, 2)).typed()
    devices.update(1, (LOOPBACK, 0))
    plain = make(MapSpec("devices", MapType.DEVMAP, 4, 4, 2)).typed()
    plain.update(0, LOOPBACK)
    cpus = make(MapSpec("cpus", MapType.CPUMAP, 4, 8, possible_cpus())).typed()
    cpus.update(0, Redirect(192))

    assert devices.lookup(1) == Redirect(LOOPBACK, 0)
    assert plain.lookup(0) == LOOPBACK
    assert cpus.lookup(0) == Redirect(target=192, program=0)


def test_a_sockmap_takes_sockets(make: Make) -> None:
    sockets = make(MapSpec("sockets", MapType.SOCKMAP, 4, 8, 2)).typed()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        sockets.update(1, client)
        cookie = client.getsockopt(socket.SOL_SOCKET, 57, 8)

        assert sockets.lookup(1) == int.from_bytes(cookie, "little")
    small = make(replace(SOCKHASH, value_size=4))
    with pytest.raises(
        BpfError, match=r"a SOCKHASH tells a socket's cookie only if .* is 8: .*ENOSPC"
    ):
        small.lookup(bytes(8))


def test_storages_are_keyed_by_descriptors(cgroup: Path, tmp_path: Path) -> None:
    types, number = _integers()
    with ExitStack() as held:
        btf_fd = held.enter_context(_loaded(types))
        directory = held.enter_context(Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)))
        process = held.enter_context(Fd(os.pidfd_open(os.getpid())))
        file = held.enter_context((tmp_path / "file").open("w"))
        udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        owners: dict[MapType, Any] = {
            MapType.SK_STORAGE: udp,
            MapType.TASK_STORAGE: process,
            MapType.INODE_STORAGE: file,
            MapType.CGRP_STORAGE: directory,
        }
        needs(*owners)
        for kind, owner in owners.items():
            spec = MapSpec("notes", kind, 4, 4, 0, uapi.BPF_F_NO_PREALLOC, 0, None, number, number)
            notes = held.enter_context(Map.create(spec, btf=types, btf_fd=btf_fd))
            typed = notes.typed()
            typed.update(owner, 42)
            assert typed.lookup(owner) == 42
            assert notes.lookup(owner) == key(42)
            assert typed.delete(owner.fileno())
            assert typed.lookup(owner) is None
            with pytest.raises(BpfError, match=f"{kind.name} cannot be walked from user space"):
                list(typed.keys())


def test_an_arena_is_memory() -> None:
    needs(MapType.ARENA)
    spec = MapSpec("arena", MapType.ARENA, 0, 0, 16, contents=b"hello")
    with Map.create(spec, contents_offset=4096) as shared:
        with Arena(shared) as arena:
            assert arena.address == shared.spec.map_extra != 0
            assert bytes(arena.memory[4096:4101]) == b"hello"
            arena.memory[0:2] = b"ab"
            left = arena.memory[:2]
        with pytest.raises(ValueError, match="released"):
            arena.memory[0]
        assert bytes(left) == b"ab"
        left.release()
        with Arena(shared) as again:
            assert bytes(again.memory[:2]) == b"ab"
            assert repr(again) == f"<Arena of 65536 bytes at {arena.address:#x}>"
        with pytest.raises(BpfError, match="ERANGE"):
            Map.create(spec, contents_offset=16 * 4096)


def test_an_arena_where_its_definition_says(make: Make) -> None:
    shared = make(MapSpec("arena", MapType.ARENA, 0, 0, 4, map_extra=0x1_2345_0000_000))
    with Arena(shared) as arena:
        assert arena.address == 0x1_2345_0000_000
        with Arena(shared) as again:
            arena.memory[1] = 7
            assert again.memory[1] == 7
        other = make(replace(shared.spec, name="other"))
        with pytest.raises(BpfError, match=r"map arena other into memory: .*EEXIST"):
            Arena(other)


@pytest.mark.parametrize(
    "spec",
    [
        MapSpec("test", MapType.STACK_TRACE, 4, 80, 4),
        MapSpec("test", MapType.XSKMAP, 4, 4, 4),
        MapSpec("test", MapType.REUSEPORT_SOCKARRAY, 4, 8, 4),
        MapSpec("test", MapType.CGROUP_STORAGE, 16, 8, 0),
        MapSpec("test", MapType.PERCPU_CGROUP_STORAGE, 16, 8, 0),
        MapSpec("test", MapType.LRU_PERCPU_HASH, 4, 8, 4),
        MapSpec("test", MapType.PERCPU_HASH, 4, 8, 4),
    ],
    ids=lambda spec: MapType(spec.type).name,
)
def test_kinds_that_programs_fill_are_read(make: Make, spec: MapSpec) -> None:
    empty = make(spec)

    assert list(empty.keys()) in ([], [key(n) for n in range(4)])
    if spec.type != MapType.XSKMAP:
        assert empty.lookup(bytes(spec.key_size)) is None
        assert empty.lookup_batch() == []


@pytest.mark.parametrize(
    ("spec", "use", "message"),
    [
        (MapSpec("m", MapType.QUEUE, 0, 4, 1), lambda m: m.lookup(b""), "a QUEUE has no keys"),
        (MapSpec("m", MapType.STACK, 0, 4, 1), lambda m: list(m.keys()), "a STACK has no keys"),
        (MapSpec("m", MapType.QUEUE, 0, 4, 1), lambda m: m.may_contain(key(1)), "peek() or pop()"),
        (MapSpec("m", MapType.BLOOM_FILTER, 0, 4, 1), lambda m: m.pop(), "use may_contain()"),
        (MapSpec("m", MapType.BLOOM_FILTER, 0, 4, 1), lambda m: m.peek(), "use may_contain()"),
        (MapSpec("m", MapType.BLOOM_FILTER, 0, 4, 1), lambda m: m.delete(b""), "no keys: use push"),
        (RINGBUF, lambda m: m.update(b"", b""), "a RINGBUF is a stream of records"),
        (RINGBUF, lambda m: list(m.items()), "read them with RingBuffer"),
        (HASH, lambda m: m.push(value(1)), "a HASH has keys"),
        (HASH, lambda m: m.pop(), "a HASH has keys"),
        (HASH, lambda m: m.may_contain(value(1)), "a HASH has keys"),
        (PER_CPU, lambda m: m.delete(key(0)), "a PERCPU_ARRAY keeps all its elements"),
        (PER_CPU, lambda m: m.delete_batch([key(0)]), "keeps all its elements"),
        (PER_CPU, lambda m: m.lookup_and_delete(key(0)), "keeps all its elements"),
        (PER_CPU, lambda m: list(m.lookup_and_delete_batch()), "keeps all its elements"),
        (
            MapSpec("m", MapType.STACK_TRACE, 4, 80, 4),
            lambda m: m.update(key(0), bytes(80)),
            "a STACK_TRACE is written by programs alone",
        ),
        (
            MapSpec("m", MapType.PERF_EVENT_ARRAY, 4, 4, 1),
            lambda m: m.lookup(key(0)),
            "read its records with PerfBuffer",
        ),
        (
            MapSpec("m", MapType.CGROUP_ARRAY, 4, 4, 1),
            lambda m: m.lookup(key(0)),
            "a CGROUP_ARRAY does not tell what it holds",
        ),
        (
            MapSpec("m", MapType.XSKMAP, 4, 4, 1),
            lambda m: m.lookup(key(0)),
            "an XSKMAP does not tell what it holds",
        ),
        (
            MapSpec("m", MapType.ARENA, 0, 0, 1),
            lambda m: m.lookup(b""),
            "an ARENA is memory: map it with Arena",
        ),
    ],
)
def test_what_a_kind_cannot_do_is_said_by_name(
    make: Make, spec: MapSpec, use: Callable[[Map[Any, Any]], object], message: str
) -> None:
    limited = make(spec)
    with pytest.raises(BpfError) as caught:
        use(limited)
    assert message in str(caught.value)


def test_record_types_never_reach_the_kernel() -> None:
    """They are for readers; the kernel refuses a ring buffer with a value size or type."""
    types, number = _integers()
    with _loaded(types) as btf_fd:
        for kind in (MapType.RINGBUF, MapType.USER_RINGBUF, MapType.PERF_EVENT_ARRAY):
            needs(kind)
            spec = MapSpec("events", kind, 0, 12, 0, value_type_id=number)
            with Map.create(spec, btf=types, btf_fd=btf_fd) as events:
                assert events.info().btf_id == 0
                assert events.record_codec().unpack(key(3)) == 3
                assert differences(events.info(), spec) == ()


def test_a_perf_event_array_has_room_for_every_cpu(make: Make) -> None:
    events = make(MapSpec("events", MapType.PERF_EVENT_ARRAY, 0, 0, 0))
    assert events.info().max_entries == possible_cpus()


# --- types ---------------------------------------------------------------------------------


def _integers() -> tuple[b.Btf, int]:
    builder = Builder()
    number = builder.integer("int", 4, signed=True)
    return b.parse(builder.build()), number


def _loaded(types: b.Btf) -> Fd:
    return syscall.btf_load(types.sanitised(frozenset(b.BtfFeature)), "load BTF for a test")


class Colour(IntEnum):
    RED = 0
    GREEN = 5


class Point(NamedTuple):
    x: int
    colour: Colour


@pytest.fixture
def points() -> Iterator[Map[bytes, Any]]:
    """A hash of struct point, which the kernel has the types of; and of the process, no more."""
    builder = Builder()
    number = builder.integer("unsigned int", 4)
    colour = builder.enum("colour", [("RED", 0), ("GREEN", 5)])
    point = builder.struct("point", 8, [("x", number, 0), ("colour", colour, 32)])
    types = b.parse(builder.build())
    spec = replace(HASH, name="points", key_type_id=number, value_type_id=point)
    with _loaded(types) as btf_fd, Map.create(spec, btf_fd=btf_fd) as made:
        yield made


def test_a_foreign_map_is_typed_by_the_kernels_own_copy(
    points: Map[bytes, Any], bpffs: Path
) -> None:
    points.pin(bpffs / "points")
    with (
        Map.from_pin(bpffs / "points") as pinned,
        Map.from_id(points.info().id) as numbered,
    ):
        pinned.typed().update(1, (7, 5))

        assert numbered.typed().lookup(1) == (7, 5)
        assert repr(numbered.typed().lookup(1)) == "point(x=7, colour=5)"
        assert points.typed(value_record=Point).lookup(1) == Point(7, Colour.GREEN)


def test_per_cpu_values_are_typed() -> None:
    types, number = _integers()
    spec = replace(PER_CPU, value_size=4, key_type_id=number, value_type_id=number)
    with Map.create(spec, btf=types) as counts:
        typed = counts.typed()
        typed.update(1, tuple(range(possible_cpus())))

        assert typed.lookup(1) == tuple(range(possible_cpus()))
        assert dict(typed.lookup_batch())[0] == (0,) * possible_cpus()


def test_values_with_locks() -> None:
    """The lock is no part of the record, and BPF_F_LOCK is for such values only."""
    builder = Builder()
    number = builder.integer("unsigned int", 4)
    lock = builder.struct("bpf_spin_lock", 4, [("val", number, 0)])
    pair = builder.struct("pair", 12, [("lock", lock, 0), ("a", number, 32), ("b", number, 64)])
    types = b.parse(builder.build())
    spec = MapSpec("pairs", MapType.HASH, 4, 12, 8, key_type_id=number, value_type_id=pair)
    with (
        _loaded(types) as btf_fd,
        Map.create(spec, btf=types, btf_fd=btf_fd) as pairs,
        Map.create(HASH) as words,
    ):
        typed = pairs.typed()
        typed.update(1, (2, 3), uapi.BPF_NOEXIST)
        typed.update(1, (4, 5), uapi.BPF_EXIST | uapi.BPF_F_LOCK)
        assert typed.lookup(1, uapi.BPF_F_LOCK) == (4, 5)
        assert typed.update_batch([(2, (6, 7))], uapi.BPF_F_LOCK) == 1
        assert dict(typed.lookup_batch(uapi.BPF_F_LOCK)) == {1: (4, 5), 2: (6, 7)}
        with pytest.raises(BpfError, match="EINVAL"):
            words.lookup(key(1), uapi.BPF_F_LOCK)


# --- what the kernel says ------------------------------------------------------------------


def test_what_the_kernel_says(points: Map[bytes, Any], make: Make) -> None:
    info = points.info()
    frozen = make(DATA).info()

    assert (info.key_type_id, info.value_type_id) == (1, 3)
    assert info.btf_id > 0
    assert info.is_frozen is False
    assert info.memory_bytes is not None
    assert info.memory_bytes > 0
    assert frozen.is_frozen is True
    assert frozen.btf_id == 0


def test_all_maps_of_the_machine(make: Make) -> None:
    mine = {make(HASH).info().id, make(PER_CPU).info().id}
    found = {info.id: info.name for info in iter_maps() if info.id in mine}

    assert sorted(found.values()) == ["counts", "words"]
    with pytest.raises(BpfError, match=r"open the map with id \d+: .*ENOENT"):
        Map.from_id(2**31)


def test_what_the_kernel_adds_is_no_difference(make: Make) -> None:
    for spec in (
        MapSpec("devices", MapType.DEVMAP, 4, 4, 2),
        DEVMAP_HASH,
        MapSpec("recent", MapType.LRU_HASH, 4, 4, 101, uapi.BPF_F_NO_COMMON_LRU),
        MapSpec("seen", MapType.BLOOM_FILTER, 0, 4, 100, map_extra=3),
        MapSpec("readable", MapType.HASH, 4, 4, 1, uapi.BPF_F_RDONLY),
        MapSpec("events", MapType.PERF_EVENT_ARRAY, 0, 0, 0),
        MapSpec("arena", MapType.ARENA, 0, 0, 1),
    ):
        assert differences(make(spec).info(), spec) == ()


def test_map_extra_is_a_difference(make: Make) -> None:
    seen = make(MapSpec("seen", MapType.BLOOM_FILTER, 0, 4, 100, map_extra=3))
    other = MapSpec("seen", MapType.BLOOM_FILTER, 0, 4, 100, map_extra=4)

    assert differences(seen.info(), other) == ("map_extra is 0x3, expected 0x4",)


def test_maps_open_by_id_may_be_checked(make: Make) -> None:
    words = make(HASH)
    with pytest.raises(ShapeError, match="key_size is 4, expected 8"):
        Map.from_id(words.info().id, spec=replace(HASH, key_size=8))


def test_adapting_twice_changes_nothing() -> None:
    for spec in (RINGBUF, DATA, PER_CPU, MapSpec("e", MapType.PERF_EVENT_ARRAY, 0, 8, 0)):
        assert adapted(adapted(spec)) == adapted(spec)


# --- what is given up at creation --------------------------------------------------------------------


def _value_types(*, locked: bool) -> tuple[b.Btf, int, int]:
    """Types, and those of a key of 4 bytes and of a value of 8."""
    builder = Builder()
    number = builder.integer("unsigned int", 4)
    inner = builder.struct("bpf_spin_lock" if locked else "plain", 4, [("val", number, 0)])
    value = builder.struct("value", 8, [("inner", inner, 0), ("n", number, 32)])
    return b.parse(builder.build()), number, value


def test_types_the_kernel_refuses_are_given_up_and_told() -> None:
    """Here for values of another size."""
    types, number, value = _value_types(locked=False)
    spec = replace(HASH, value_size=16, key_type_id=number, value_type_id=value)
    with _loaded(types) as btf_fd:
        with Map.create(spec, btf=types, btf_fd=btf_fd) as words:
            assert words.info().btf_id == 0
            (remark,) = words.remarks
            assert remark.startswith("map words is without its types: create map words")
        holder = MapSpec("holder", MapType.ARRAY_OF_MAPS, 4, 4, 1, inner=spec)
        with Map.create(holder, btf=types, btf_fd=btf_fd) as holds:
            assert holds.remarks == (remark,)


def test_types_that_matter_are_not_given_up() -> None:
    """An LRU hash has no locks: it is not made with values whose locks are mere bytes."""
    types, number, value = _value_types(locked=True)
    spec = MapSpec("recent", MapType.LRU_HASH, 4, 8, 4, key_type_id=number, value_type_id=value)
    with _loaded(types) as btf_fd, pytest.raises(BpfError, match="create map recent"):
        Map.create(spec, btf=types, btf_fd=btf_fd)


def test_fields_the_kernel_gives_a_meaning_to_are_found() -> None:
    """In arrays, in structs and behind tags; a pointer without one is a number."""
    builder = Builder()
    number = builder.integer("unsigned int", 4)
    timer = builder.struct("bpf_timer", 16, [("opaque", number, 0)])
    several = builder.struct("several", 32, [("timers", builder.array(timer, 2), 0)])
    tag = builder.add(TYPE_TAG, "kptr", number)
    pointer, plain = builder.add(PTR, "", tag), builder.add(PTR, "", number)
    types = b.parse(builder.build())

    assert special_field(types, several) == "bpf_timer"
    assert special_field(types, pointer) == "kptr"
    assert special_field(types, plain) is None
    assert special_field(types, number) is None


# --- what a map cannot be ---------------------------------------------------------------------------


def test_streams_take_no_batches(make: Make) -> None:
    with pytest.raises(BpfError, match="update map events: a RINGBUF is a stream of records"):
        make(RINGBUF).update_batch([])


def test_constants_must_be_frozen(make: Make) -> None:
    """What the verifier knew would otherwise be anyone's to change."""
    thawed = make(replace(DATA, contents=None, frozen=False))
    assert differences(thawed.info(), DATA) == ("it is not frozen, expected a frozen one",)
    assert differences(make(DATA).info(), DATA) == ()


def test_a_view_of_an_arena_keeps_its_address() -> None:
    if probe.map_type(MapType.ARENA) is probe.Answer.NO:
        raise NotSupported("arenas", (6, 9))
    with Map.create(MapSpec("arena", MapType.ARENA, 0, 0, 1)).typed() as arena:
        gc.collect()
        with Arena(arena) as memory:
            assert memory.address == arena.spec.map_extra

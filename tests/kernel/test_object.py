"""An object from its file to its sockets and back, and the ways it can fail."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import pytest

from accel.bpf.door import probe, syscall
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, ObjectError, ShapeError, VerifierRejected
from accel.bpf.format import btf as b
from accel.bpf.format.btf import BtfFeature
from accel.bpf.kinds import MapType
from accel.bpf.links.cgroup import attach_cgroup
from accel.bpf.links.sockets import attach_sk_msg
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.object import Object, load
from accel.bpf.loading.operands import put_maps
from accel.bpf.maps.map import Map
from accel.bpf.maps.perfbuf import PerfBuffer
from accel.bpf.maps.ringbuf import RingBuffer
from accel.bpf.maps.variable import with_variables
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import MapReference, MapSpec, ObjectSpec
from accel.errors import AccelError

pytestmark = pytest.mark.kernel


class Key(NamedTuple):
    port: int
    limit: int


@pytest.fixture
def spec(loading_object: Path) -> ObjectSpec:
    return open_object(loading_object)


@pytest.fixture
def obj(spec: ObjectSpec) -> Iterator[Object]:
    with load(with_variables(spec.with_max_entries(sockets=32), limit=9)) as loaded:
        yield loaded


@contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    """This process in the cgroup, and back in its former one afterwards."""
    mount = cgroup.parent
    former = next(
        line.partition("::")[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (mount / former.strip("/") / "cgroup.procs").write_text(str(os.getpid()))


def test_everything_it_defines_is_there(obj: Object) -> None:
    assert set(obj.programs) == {"track", "pass"}
    assert set(obj.maps) == {"sockets", "events", "inserted", ".bss", ".data", ".rodata"}
    assert set(obj.variables) == {"limit", "seen", "answer"}
    assert repr(obj) == "<Object loading: 2 programs, 6 maps, 3 variables>"
    assert obj.maps["sockets"].info().max_entries == 32
    assert obj.variables["limit"].get() == 9
    assert obj.variables["answer"].get() == 42


def test_it_does_its_work(obj: Object, cgroup: Path) -> None:
    """Two ends of a connection enter the sockhash, a message passes, all of it is seen."""
    attach_sk_msg(obj.programs["pass"], obj.maps["sockets"])
    with (
        attach_cgroup(obj.programs["track"], cgroup),
        RingBuffer(obj.maps["events"]) as ring,
        inside(cgroup),
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        client.send(b"hello")
        assert accepted.recv(10) == b"hello"
        ports = {client.getsockname()[1], server.getsockname()[1]}
        sockets = obj.maps["sockets"].typed(key_record=Key)

        assert set(sockets.keys()) == {Key(port, 9) for port in ports}
        records = ring.drain()
        assert {int.from_bytes(r[:4], sys.byteorder) for r in records} == ports
        # SO_RCVBUF is what CO-RE found at sock.sk_rcvbuf.
        option = client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert obj.variables["answer"].get() == option
    assert obj.variables["seen"].get() >= 2
    counts = obj.maps["inserted"].typed().lookup(0)
    assert counts is not None
    assert sum(counts) == 2


def test_the_kernel_may_be_lent(spec: ObjectSpec) -> None:
    with Kernel() as kernel:
        with load(spec, kernel=kernel, programs=["track"]) as obj:
            assert set(obj.programs) == {"track"}
        with load(spec, kernel=kernel, programs=["track"]) as again:
            assert again.programs["track"].tag


def test_only_what_is_asked_for_is_loaded(spec: ObjectSpec) -> None:
    with load(spec, programs=["track"]) as obj:
        assert set(obj.programs) == {"track"}
    with pytest.raises(ObjectError, match="loading has no program nosuch"):
        load(spec, programs=["nosuch", "track"])


def test_existing_maps_take_the_place_of_its_own(spec: ObjectSpec) -> None:
    """They are used, and stay open."""
    with Map.create(spec.maps["sockets"]) as mine:
        with load(spec, maps={"sockets": mine}) as obj:
            assert obj.maps["sockets"] is mine
        assert not mine.closed
    with pytest.raises(ObjectError, match="loading has no map nosuch"):
        load(spec, maps={"nosuch": mine})


def test_existing_maps_must_fit(spec: ObjectSpec) -> None:
    smaller = replace(spec.maps["sockets"], max_entries=2)
    with (
        Map.create(smaller) as mine,
        pytest.raises(ShapeError, match="max_entries is 2, expected 64"),
    ):
        load(spec, maps={"sockets": mine})


def test_the_other_byte_order_is_refused(spec: ObjectSpec) -> None:
    other = "big" if sys.byteorder == "little" else "little"
    with pytest.raises(ObjectError, match=f"for {other}-endian machines") as caught:
        load(replace(spec, byteorder=other))  # type: ignore[arg-type]
    assert caught.value.remedy is not None


def test_a_refusal_names_the_source_line(spec: ObjectSpec) -> None:
    with pytest.raises(VerifierRejected) as caught:
        load(spec, programs=["careless"])

    error = caught.value
    assert error.program == "careless"
    assert error.source is not None
    assert error.source.startswith("loading.bpf.c:")
    assert "bpf_map_lookup_elem(&inserted" in error.source
    assert error.source in str(error)
    assert "R0" in error.line


def test_a_field_no_kernel_has_is_named(spec: ObjectSpec) -> None:
    """Not the helper number that stands where its offset should."""
    with pytest.raises(VerifierRejected) as caught:
        load(spec, programs=["wishes"])

    assert "sk_wishes" in caught.value.line
    assert "195896080" not in caught.value.line
    assert "loading.bpf.c:" in str(caught.value.source)


def test_an_iterator_no_kernel_has_is_named(spec: ObjectSpec) -> None:
    with pytest.raises(BpfError, match="no function bpf_iter_no_such_thing"):
        load(spec, programs=["nowhere"])


def test_types_the_kernel_refuses_are_done_without(spec: ObjectSpec) -> None:
    """A struct whose member lies outside of it passes our reader, not the kernel's.

    Maps and programs work all the same, and a remark has the kernel's reason.
    """
    assert spec.btf is not None
    key = spec.btf.find("key", b.Struct)
    assert key is not None
    raw = bytearray(spec.btf.raw)
    size = raw.index(_header_of(spec.btf, "key")) + 8
    raw[size : size + 4] = (4).to_bytes(4, spec.byteorder)

    with load(replace(spec, btf=b.parse(bytes(raw))), programs=["track"]) as obj:
        assert any("load the BTF of loading: " in remark for remark in obj.remarks)
        assert any("Member" in remark for remark in obj.remarks)
        assert obj.programs["track"].info().btf_id == 0


def test_remarks_come_with_an_error_too(spec: ObjectSpec) -> None:
    """They may well be why."""
    assert spec.btf is not None
    raw = bytearray(spec.btf.raw)
    size = raw.index(_header_of(spec.btf, "key")) + 8
    raw[size : size + 4] = (4).to_bytes(4, spec.byteorder)

    with pytest.raises(VerifierRejected) as caught:
        load(replace(spec, btf=b.parse(bytes(raw))), programs=["careless"])
    assert any("load the BTF of loading: " in note for note in caught.value.__notes__)


def _header_of(btf: b.Btf, name: str) -> bytes:
    """struct btf_type of a struct of two members and 8 bytes."""
    offset = btf.raw.index(b"\0" + name.encode() + b"\0") + 1
    header_bytes = int.from_bytes(btf.raw[4:8], btf.byteorder)
    strings = int.from_bytes(btf.raw[16:20], btf.byteorder) + header_bytes
    words = (offset - strings, 4 << 24 | 2, 8)
    return b"".join(word.to_bytes(4, btf.byteorder) for word in words)


def test_an_older_kernel_gets_types_in_older_words(
    spec: ObjectSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it knows is asked only once it has refused."""
    assert spec.btf is not None
    known = frozenset({BtfFeature.FUNC})
    older = spec.btf.sanitised(known)
    load_into_kernel = syscall.btf_load

    def btf_load(data: bytes, action: str) -> Fd:
        if data != older:
            raise BpfError(action, errno.EINVAL)
        return load_into_kernel(data, action)

    monkeypatch.setattr(probe, "btf_features", lambda: known)
    monkeypatch.setattr(syscall, "btf_load", btf_load)
    with load(spec, programs=["track"]) as obj:
        # Sections in older words are no types that a data map can have.
        assert {remark.partition(" is without its types")[0] for remark in obj.remarks} == {
            f"map {name}" for name in (".bss", ".data", ".rodata")
        }
        assert obj.programs["track"].info().btf_id


def test_constants_live_with_every_program(spec: ObjectSpec) -> None:
    """Also with one that has none left in its instructions, so that tools find them."""
    assert {reference.map for reference in spec.programs["pass"].map_references} == {".data"}
    with load(spec, programs=["pass"]) as obj:
        expected = {obj.maps[name].info().id for name in (".data", ".rodata")}
        assert set(obj.programs["pass"].map_ids()) == expected


def test_an_object_may_lack_types(spec: ObjectSpec) -> None:
    """Stripped of BTF: maps and programs without CO-RE still load."""
    maps = {
        name: replace(blueprint, key_type_id=0, value_type_id=0)
        for name, blueprint in spec.maps.items()
    }
    bare = replace(spec, btf=None, maps=maps)
    with load(bare, programs=["track"]) as obj:
        assert dict(obj.variables) == {}
    with pytest.raises(ObjectError, match="has no BTF"):
        with_variables(bare, limit=1)


def test_closing_twice_is_fine(spec: ObjectSpec) -> None:
    obj = load(spec)
    obj.close()
    obj.close()

    assert "closed" in repr(obj)
    assert obj.maps["sockets"].closed


def test_descriptors_go_where_references_point(spec: ObjectSpec) -> None:
    """The map itself in the first slot, the offset in its value in the second."""
    code = bytearray((bytes([0x18]) + bytes(15)) * 2)
    with Map.create(spec.maps["sockets"]) as mine:
        references = (MapReference(0, "sockets", None), MapReference(2, "sockets", 12))
        poisoned = put_maps(code, references, {"sockets": mine}, ["sockets"])
        number = mine.fileno().to_bytes(4, sys.byteorder)

    assert poisoned == {}
    assert code[4:8] == code[20:24] == number
    assert code[12:16] == bytes(4)
    assert code[28:32] == (12).to_bytes(4, sys.byteorder)


def test_a_map_that_is_not_created_is_named(spec: ObjectSpec) -> None:
    """As long as no instruction that runs refers to it, it is not missed."""
    maps = {**spec.maps, "inserted": replace(spec.maps["inserted"], autocreate=False)}
    without = replace(spec, maps=maps)
    with load(without, programs=["pass"]) as obj:
        assert "inserted" not in obj.maps
    with pytest.raises(VerifierRejected) as caught:
        load(without, programs=["track"])
    assert caught.value.line == "map inserted is referred to, but was not created"


# --- too few descriptors -----------------------------------------------------------------------------


def _load(spec: ObjectSpec) -> None:
    load(spec).close()


def _refuse(spec: ObjectSpec) -> None:
    with pytest.raises(VerifierRejected):
        load(spec, programs=["careless"])


def _read_ring(spec: ObjectSpec) -> None:
    with Map.create(spec.maps["events"]) as events, RingBuffer(events):
        pass


def _read_perf(_: ObjectSpec) -> None:
    events = MapSpec("events", MapType.PERF_EVENT_ARRAY, 4, 4, 0)
    with Map.create(events) as made, PerfBuffer(made):
        pass


@contextmanager
def descriptors(free: int) -> Iterator[None]:
    """So many can be opened."""
    available = (number for number in count() if not Path(f"/proc/self/fd/{number}").exists())
    limit = next(islice(available, free, None))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("work", [_load, _refuse, _read_ring, _read_perf])
def test_too_few_descriptors_are_an_error_of_ours(
    spec: ObjectSpec, work: Callable[[ObjectSpec], None]
) -> None:
    """However few: it is told in our words, and nothing stays open."""
    work(spec)
    for free in range(100):
        before = os.listdir("/proc/self/fd")
        try:
            with descriptors(free):
                work(spec)
            break
        except AccelError:
            gc.collect()
            assert os.listdir("/proc/self/fd") == before
    else:
        raise AssertionError("it never works")
    assert free > 0

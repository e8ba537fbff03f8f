"""The life of the data path: load or adopt, attach, hand over, remove.

Order matters, and is always the same: maps and sk_msg first, then the guard, then
sock_ops, so that no socket ever enters a sockhash without a program, or unguarded; and
never the other way back while sockets are in it (see remove()).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from accel import bpf
from accel.bpf import Link, Map, Program
from accel.datapath.datapath import Datapath
from accel.datapath.errors import DatapathError
from accel.datapath.generation import PROGRAMS, Generation, generations, running


@dataclass(frozen=True, slots=True)
class Constants:
    """What the programs are told of this kernel when they are loaded; see maps.h."""

    charges_rmem: bool
    one_queue: bool = False
    max_queued_messages: int = 256


def load(generation: Generation, constants: Constants) -> bpf.Object:
    """Load the programs, those of the sockhashes on them; nothing is attached to a cgroup yet."""
    spec = bpf.with_variables(
        generation.spec,
        charges_rmem=int(constants.charges_rmem),
        one_queue=int(constants.one_queue),
        max_queued_messages=constants.max_queued_messages,
    )
    loaded = bpf.load(spec)
    try:
        for sockhash in ("sockets", "one_queue_sockets"):
            bpf.attach_sk_msg(loaded.programs["accel_redirect"], loaded.maps[sockhash])
        if constants.one_queue:
            bpf.attach_sk_skb(loaded.programs["accel_pass"], loaded.maps["one_queue_sockets"])
    except BaseException:
        loaded.close()
        raise
    return loaded


def start(bpffs: Path, cgroup: Path, constants: Constants, max_connections: int) -> Datapath:
    """Bring the data path to life below `cgroup`, or adopt the one that lives there.

    Whatever an earlier agent pinned goes on without a gap: the same generation is
    adopted as it is; another's link is moved to our program, and its sockets finish
    on its own programs and maps.

    Raises:
        DatapathError: The pins belong to another cgroup.
        BpfError: The kernel refused; nothing new stays behind.
    """
    _remove_husks(bpffs)
    ours = Generation.ours(bpffs, max_connections)
    older = [g for g in generations(bpffs) if g.directory != ours.directory]
    try:
        if not ours.is_pinned():
            _pin_new(ours, constants)
        datapath = open_generation(ours)
        try:
            _take_over_switches(datapath, older)
            datapath.expect_no_reader()
            _attach(ours, older, cgroup)
        except BaseException:
            datapath.close()
            raise
    except BaseException:
        if ours.directory.exists() and not ours.link.exists():
            ours.remove()
        raise
    for generation in older:
        generation.remove()
    return datapath


def open_running(bpffs: Path) -> Datapath:
    """The data path that an agent left pinned.

    Raises:
        NotRunning: Nothing is pinned there.
        DatapathError: Another version of accel pinned it.
    """
    generation = running(bpffs)
    if generation.directory != Generation.ours(bpffs, generation.max_connections).directory:
        raise DatapathError(
            f"open {generation.directory}: pinned by another version of accel",
            remedy="use that version's accel, or restart the agent with this one",
        )
    return open_generation(generation)


def open_generation(generation: Generation) -> Datapath:
    """Open the pins of a generation of our own version."""
    spec = generation.spec
    with ExitStack() as opened:
        maps = {
            name: opened.enter_context(
                Map.from_pin(generation.map(name), spec=map_spec, btf=spec.btf)
            )
            for name, map_spec in spec.maps.items()
        }
        looker = opened.enter_context(Program.from_pin(generation.program("accel_look")))
        datapath = Datapath(generation, maps, looker)
        opened.pop_all()
        return datapath


def remove(bpffs: Path) -> int:
    """Take acceleration off the node without losing a byte.

    From the next message on everything goes by TCP, no further socket enters, and
    the pins go.  Sockets stay in the sockhash until they close: taking one out drops
    what waits in its queue (sock_map_unref(), every version).  The kernel frees
    programs and maps with the last of them.

    Returns:
        How many accelerated connections still live on.

    Raises:
        NotRunning: Nothing is pinned there.
    """
    running(bpffs)
    draining = 0
    for generation in list(generations(bpffs)):
        # Detached first: if we are killed half way, the next start finds a husk and throws
        # it away, switches and all.
        _detach(generation.link)
        with _if_ours(generation) as datapath:
            if datapath is not None:
                datapath.pause()
                draining += datapath.count_accepted()
        _detach(generation.guard)
        generation.remove()
    return draining


def _detach(pin: Path) -> None:
    if pin.exists():
        with Link.from_pin(pin) as link:
            link.detach()


def _remove_husks(bpffs: Path) -> None:
    """Drop generations that are attached to nothing: their cgroup was removed, or start()
    or remove() was killed half way."""
    for generation in list(generations(bpffs)):
        if not _is_attached(generation):
            generation.remove()


def _is_attached(generation: Generation) -> bool:
    if not generation.link.exists():
        return False
    with Link.from_pin(generation.link) as link:
        return bool(link.info().cgroup_id)


def _pin_new(ours: Generation, constants: Constants) -> None:
    if ours.directory.exists():  # an agent died half way through this
        ours.remove()
    with load(ours, constants) as loaded:
        try:
            ours.directory.mkdir(parents=True)
        except OSError as e:
            raise DatapathError(
                f"create {ours.directory}: {e.strerror}",
                remedy=f"mount a BPF file system there: mount -t bpf bpf {ours.directory.parent}",
            ) from e
        for name in ours.spec.maps:
            loaded.maps[name].pin(ours.map(name))
        for name in PROGRAMS:
            loaded.programs[name].pin(ours.program(name))


def _take_over_switches(datapath: Datapath, older: list[Generation]) -> None:
    for generation in older:
        with _if_ours(generation) as other:
            if other is not None:
                datapath.copy_switches(other)


def _attach(ours: Generation, older: list[Generation], cgroup: Path) -> None:
    attached = [pinned for pinned in (ours, *older) if pinned.link.exists()]
    for pinned in attached:
        with Link.from_pin(pinned.link) as link:
            if link.info().cgroup_id != cgroup.stat().st_ino:
                raise DatapathError(
                    f"attach to {cgroup}: {pinned.link} is attached to another cgroup",
                    remedy="run `accel remove` first, or give this agent its own --bpffs",
                )
    if not ours.guard.exists():
        _attach_new(ours, "accel_guard", cgroup, ours.guard)
    if not attached:
        _attach_new(ours, "accel_sockops", cgroup, ours.link)
    elif attached[0] is not ours:
        with (
            Program.from_pin(ours.program("accel_sockops")) as program,
            Link.from_pin(attached[0].link) as link,
        ):
            link.update(program)
        attached[0].link.rename(ours.link)


def _attach_new(ours: Generation, name: str, cgroup: Path, pin: Path) -> None:
    attach_type = ours.spec.programs[name].attach_type  # a pinned program does not tell
    with (
        Program.from_pin(ours.program(name)) as program,
        bpf.attach_cgroup(program, cgroup, attach_type=attach_type) as link,
    ):
        link.pin(pin)


@contextmanager
def _if_ours(generation: Generation) -> Iterator[Datapath | None]:
    """Open a generation if its layout is known to this version."""
    bpffs = generation.directory.parent
    same = Generation.ours(bpffs, generation.max_connections).object_id == generation.object_id
    if not same or not generation.is_pinned():
        yield None
        return
    with open_generation(generation) as datapath:
        yield datapath

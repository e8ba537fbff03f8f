"""Neighbours that do what they may, but not what anybody hopes: other BPF users, odd programs."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from functools import partial
from itertools import count

import pytest

from accel import bpf
from accel.bpf import AttachType, Map, MapSpec, MapType, Program, ProgramType
from accel.bpf.door.probe import mov
from accel.bpf.format.insn import CALL, EXIT, LD_IMM64, PSEUDO_MAP_FD, Instruction
from accel.datapath import datapath
from accel.datapath.layout import Hop, Way
from tests.kernel.conftest import LoadProgram
from tests.kernel.datapath.bed import (
    Bed,
    Side,
    Socket,
    begin,
    eventually,
    exchange,
    read,
    read_to_end,
    some_bytes,
    wait_for,
    write,
)

pytestmark = pytest.mark.kernel

# --- other BPF users ---------------------------------------------------------------------

SOCK_MAP_UPDATE, CB_FLAGS_SET = 53, 59  # helpers
ACTIVE_ESTABLISHED_CB, PASSIVE_ESTABLISHED_CB = 4, 5

RETURN = Instruction(EXIT, 0, 0, 0, 0)
SAVE_CONTEXT = Instruction(0xBF, 6, 1, 0, 0)  # r6 = r1
RESTORE_CONTEXT = Instruction(0xBF, 1, 6, 0, 0)
LOAD_OP = Instruction(0x61, 2, 1, 0, 0)  # r2 = context->op


def _call(helper: int) -> Instruction:
    return Instruction(CALL, 0, 0, 0, helper)


def _unless(op: int, skip: int) -> Instruction:
    """`if r2 != op goto +skip`"""
    return Instruction(0x55, 2, 0, skip, op)


def _sock_ops(load_program: LoadProgram, *body: Instruction, result: int = 1) -> Program:
    return load_program(
        ProgramType.SOCK_OPS,
        SAVE_CONTEXT,
        *body,
        mov(0, result),
        RETURN,
        attach_type=AttachType.CGROUP_SOCK_OPS,
    )


def _taker(load_program: LoadProgram, sockets: Map[bytes, bytes]) -> Program:
    """Puts each connecting socket into a sockmap of its own."""
    insert = (
        Instruction(0x62, 10, 0, -4, 0),  # *(u32 *)(r10 - 4) = 0, the key
        Instruction(LD_IMM64, 2, PSEUDO_MAP_FD, 0, sockets.fileno()),
        Instruction(0, 0, 0, 0, 0),
        Instruction(0xBF, 3, 10, 0, 0),
        Instruction(0x07, 3, 0, 0, -4),
        mov(4, 0),
        _call(SOCK_MAP_UPDATE),
    )
    return _sock_ops(load_program, LOAD_OP, _unless(ACTIVE_ESTABLISHED_CB, len(insert)), *insert)


def test_socket_taken_by_another_sockmap_user(bed: Bed, load_program: LoadProgram) -> None:
    """A program of the cgroup below runs first; a socket has room for one sk_msg program."""
    bed.trust()
    passes = load_program(ProgramType.SK_MSG, mov(0, 1), RETURN)
    with (
        Map.create(MapSpec("others", MapType.SOCKMAP, 4, 4, 4)) as sockets,
        bpf.attach_cgroup(_taker(load_program, sockets), bed.a.app.cgroup),
    ):
        bpf.attach_sk_msg(passes, sockets)
        client, server = bed.pair(bed.a.app, bed.a.sidecar)
        exchange(client, server)
        assert bed.reason(client) == "socket_taken"
        assert bed.redirected() == 0
        eventually(lambda: bed.enrolled() == 0)
        bed.assert_forgotten()


def _deaf(load_program: LoadProgram) -> Program:
    """Switches off what others want to be told of a new socket."""
    clear = (RESTORE_CONTEXT, mov(2, 0), _call(CB_FLAGS_SET))
    return _sock_ops(
        load_program,
        LOAD_OP,
        _unless(ACTIVE_ESTABLISHED_CB, len(clear)),
        *clear,
        RESTORE_CONTEXT,
        LOAD_OP,
        _unless(PASSIVE_ESTABLISHED_CB, len(clear)),
        *clear,
    )


def test_callbacks_switched_off_by_another_program(
    bed: Bed, load_program: LoadProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells of the close: the agent's sweep finds what is left."""
    bed.trust()
    with bpf.attach_cgroup(_deaf(load_program), bed.network.cgroup):
        client, server = bed.pair(bed.a.app, bed.a.sidecar)
        exchange(client, server)
        alone, _ = bed.pair(bed.a.app, bed.a.app)
        alone.send(b"x")
    assert bed.redirected() == 1
    bed.close_sockets()
    assert len(bed.datapath.connections()) == 2
    assert bed.datapath.sweep() == 0  # too young to tell
    monkeypatch.setattr(datapath, "_SWEEP_AFTER_NS", 0)
    live_client, live_server = bed.pair(bed.a.app, bed.a.sidecar)
    eventually(lambda: bed.datapath.sweep() == 0 and len(bed.datapath.connections()) == 1)
    exchange(live_client, live_server)
    assert bed.redirected() == 2
    bed.assert_forgotten()


def test_program_that_says_no(bed: Bed, load_program: LoadProgram) -> None:
    """0 voids the replies of all programs; we reply nothing."""
    bed.trust()
    with bpf.attach_cgroup(_sock_ops(load_program, result=0), bed.network.cgroup):
        client, server = bed.pair(bed.a.app, bed.a.sidecar)
        exchange(client, server)
        assert [bed.redirected(way=way) for way in Way] == [1, 1]
    bed.assert_forgotten()


# --- odd programs -----------------------------------------------------------------------------

CHURN = 5_000


def _reset(sock: Socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_storm_of_connections_that_are_reset(bed: Bed) -> None:
    bed.trust()
    with bed.a.sidecar.listen() as listener:
        for _ in range(CHURN // 250):
            for number, client in enumerate(bed.a.app.sockets(250)):
                begin(client, listener.getsockname())
                with listener.accept()[0] as server:
                    if number % 3:
                        client.send(b"x")
                    if number % 2:
                        _reset(server)
                    _reset(client)
    assert bed.datapath.statistics().accepted == CHURN
    bed.assert_forgotten()


def test_blocking_flag_flips_while_bytes_flow(bed: Bed) -> None:
    """Of a trusted app that sends and of the sidecar that reads."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    data = some_bytes(8 << 20, 80)
    done = False

    def flip() -> None:
        for number in count():
            for sock in (client, server):
                os.set_blocking(sock.fileno(), bool(number % 2))
            if done:
                return

    flipping = Side(flip)
    sending = Side(partial(write, client, data))
    try:
        assert read(server, len(data)) == data
        sending.join()
    finally:
        done = True
        flipping.join()


def test_close_while_another_thread_sends(bed: Bed) -> None:
    """What arrived is the beginning of what was sent; the sender hears what TCP would say."""
    bed.trust()
    data = some_bytes(16_384, 81)
    with bed.a.sidecar.listen() as listener:
        for number in range(100):
            client, server = bed.connect(bed.a.app, listener)
            sending = Side(partial(_send_until_refused, client, data))
            took = read(server, 1 + number * 1_000)
            server.close()
            sending.join()
            _assert_repeats(data, took)
            client.close()
    assert bed.redirected() > 0
    bed.assert_forgotten()


def _assert_repeats(data: bytes, took: bytes) -> None:
    """`took` is `data` again and again, up to anywhere."""
    assert (data * (len(took) // len(data) + 1)).startswith(took)


def _send_until_refused(sock: Socket, data: bytes) -> None:
    try:
        while True:
            write(sock, data)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise


def test_shutdown_while_another_thread_sends(bed: Bed) -> None:
    bed.trust()
    data = some_bytes(16_384, 82)
    with bed.a.sidecar.listen() as listener:
        for _ in range(100):
            client, server = bed.connect(bed.a.app, listener)
            reading = Side(partial(read_to_end, server))
            sending = Side(partial(_send_until_refused, client, data))
            eventually(lambda: bed.redirected() > 0)
            client.shutdown(socket.SHUT_RDWR)
            sending.join()
            client.close()
            took = reading.join()
            assert took is not None
            _assert_repeats(data, took)
            server.close()
    bed.assert_forgotten()


# Two threads that send: which of them a byte is from is in its highest bit.
OF_FIRST, OF_SECOND = (bytes(range(start, start + 128)) for start in (0, 128))
RECORD_BYTES = 512


def _stream_of(alphabet: bytes, seed: int) -> bytes:
    return some_bytes(3_000 * RECORD_BYTES, seed).translate(alphabet * 2)


def _send_in_records(sock: Socket, stream: bytes) -> None:
    for at in range(0, len(stream), RECORD_BYTES):
        write(sock, stream[at : at + RECORD_BYTES])


def _read_in_pieces(sock: Socket, pieces: list[bytes]) -> None:
    """To the end of file, keeping what each recv() gave."""
    while True:
        wait_for(sock, select.POLLIN)
        with suppress(BlockingIOError):
            piece = sock.recv(RECORD_BYTES)
            if not piece:
                return
            pieces.append(piece)


def _are_merged(first: bytes, second: bytes, readings: list[list[bytes]]) -> bool:
    """Can what the readers got, each in its order, be put in an order that has both streams
    in theirs?"""
    split = [
        [(piece.translate(None, OF_SECOND), piece.translate(None, OF_FIRST)) for piece in pieces]
        for pieces in readings
    ]
    # How many pieces of each reader were put in place, and how far the streams got by that.
    reached = {(0,) * len(readings): (0, 0)}
    for _ in range(sum(map(len, readings))):
        further = {}
        for done, (at_first, at_second) in reached.items():
            for reader, placed in enumerate(done):
                if placed == len(split[reader]):
                    continue
                mine, yours = split[reader][placed]
                if first.startswith(mine, at_first) and second.startswith(yours, at_second):
                    one_more = (*done[:reader], placed + 1, *done[reader + 1 :])
                    further[one_more] = (at_first + len(mine), at_second + len(yours))
        reached = further
    return (len(first), len(second)) in reached.values()


@pytest.mark.parametrize("readers", [1, 2])
def test_two_threads_send_and_some_read(bed: Bed, readers: int) -> None:
    """No byte of either is lost, doubled or out of its order.  That a record stays whole,
    TCP does not promise: it may take a part of one, and cuts where a segment is full."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    streams = _stream_of(OF_FIRST, 83), _stream_of(OF_SECOND, 84)
    senders = [Side(partial(_send_in_records, client, stream)) for stream in streams]
    readings: list[list[bytes]] = [[] for _ in range(readers)]
    sides = [Side(partial(_read_in_pieces, server, pieces)) for pieces in readings]
    for sender in senders:
        sender.join()
    client.shutdown(socket.SHUT_WR)
    for side in sides:
        side.join()
    assert _are_merged(*streams, readings)
    assert bed.redirected() > 0


SEND = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'theirs' * 1000)"


def test_socket_shared_with_another_process(bed: Bed) -> None:
    """What a socket may do goes by who made it, whoever holds it now."""
    bed.trust()
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    client.send(b"ours")
    arguments = [sys.executable, "-I", "-S", "-c", SEND, str(client.fileno())]
    subprocess.run(arguments, pass_fds=[client.fileno()], check=True)
    client.send(b"ours again")
    expected = b"ours" + b"theirs" * 1000 + b"ours again"
    assert read(server, len(expected)) == expected
    assert bed.by_tcp() == 0
    assert bed.datapath.statistics().traffic[Hop.APP_SIDECAR, Way.REQUEST].bytes_redirected == len(
        expected
    )
    server.close()
    assert read_to_end(client) == b""

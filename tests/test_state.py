"""What the agent writes down, and who may be the agent of a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from accel import state
from accel.errors import LinuxError

WRITTEN = state.AgentState(
    pid=42,
    version="0.1.0",
    started_at="2026-01-01T00:00:00+00:00",
    source="processes",
    cgroup="/sys/fs/cgroup",
    era="fixed",
    strategy={"app-sidecar": {"request": state.PathState(True, None)}},
    pods=(
        state.PodState(
            name="netns:4026532511",
            netns=4026532511,
            profile="istio",
            accelerated=True,
            trust_apps=False,
            containers=(state.ContainerState(7, "sidecar", "envoy"),),
            addresses=("10.0.0.1", "::1"),
            notes=("a note",),
        ),
    ),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state.write(tmp_path, WRITTEN)
    assert state.read(tmp_path) == WRITTEN
    assert os.listdir(tmp_path) == ["agent.json"]


def test_nothing_is_read_where_no_agent_wrote(tmp_path: Path) -> None:
    assert state.read(tmp_path) is None
    assert state.read(tmp_path / "missing") is None


def test_a_later_version_may_add_to_it(tmp_path: Path) -> None:
    added = msgspec.to_builtins(WRITTEN) | {"mood": "good"}
    (tmp_path / "agent.json").write_bytes(msgspec.json.encode(added))
    assert state.read(tmp_path) == WRITTEN


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}", b'{"pid": "x"}', b"\xff"])
def test_what_is_not_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "agent.json").write_bytes(content)
    with pytest.raises(LinuxError, match=r"agent\.json") as refused:
        state.read(tmp_path)
    assert "restart the agent" in str(refused.value.remedy)


def test_it_can_be_forgotten_twice(tmp_path: Path) -> None:
    state.write(tmp_path, WRITTEN)
    for _ in range(2):
        state.forget(tmp_path)
        assert state.read(tmp_path) is None


def test_one_agent_a_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "run" / "accel"
    assert state.agent_pid(run_dir) is None
    with state.only_agent(run_dir):
        assert state.agent_pid(run_dir) == os.getpid()
        with pytest.raises(LinuxError, match="another one runs"), state.only_agent(run_dir):
            pass
        assert state.agent_pid(run_dir) == os.getpid()
    assert state.agent_pid(run_dir) is None
    with state.only_agent(run_dir):
        pass


def test_the_lock_goes_with_the_process_however_it_ends(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from accel import state
with state.only_agent(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "agent.lock").read_text() != ""
    assert state.agent_pid(tmp_path) is None
    with state.only_agent(tmp_path):
        assert state.agent_pid(tmp_path) == os.getpid()


def test_an_agent_that_has_only_just_come_has_no_pid_yet(tmp_path: Path) -> None:
    with state.only_agent(tmp_path):
        (tmp_path / "agent.lock").write_text("")
        assert state.agent_pid(tmp_path) == 0


@pytest.mark.parametrize("wrong", ["file", "file/below"])
def test_a_directory_that_cannot_be_made(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(LinuxError, match="run directory") as refused,
        state.only_agent(tmp_path / wrong),
    ):
        pass
    assert "--run-dir" in str(refused.value.remedy)
    assert state.agent_pid(tmp_path / wrong) is None

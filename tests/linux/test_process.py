"""/proc/PID: recorded texts, and this very process."""

import os
import subprocess

import pytest

from accel.linux import process


def test_stat_survives_any_name() -> None:
    text = "4242 (a) b (c 7) S 1 4242 4242 0 -1 4194560 88 0 0 0 1 2 0 0 20 0 1 0 164222 1 2 3"

    assert process.parse_stat(text) == ("a) b (c 7", 164222)


def test_uids_are_real_effective_saved_and_file_system() -> None:
    status = "Name:\tenvoy\nUmask:\t0022\nUid:\t0\t1337\t1337\t1338\nGid:\t0\t0\t0\t0\n"

    assert process.parse_uids(status) == (0, 1337, 1337, 1338)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/usr/local/bin/envoy", "envoy"),
        ("/usr/local/bin/envoy (deleted)", "envoy"),
        ("/memfd:envoy (deleted)", "memfd:envoy"),
        ("/opt/with space/linkerd2-proxy", "linkerd2-proxy"),
    ],
)
def test_the_executables_name(target: str, name: str) -> None:
    assert process.exe_name(target) == name


def test_reading_oneself() -> None:
    me = process.read(os.getpid())

    assert me is not None
    assert (me.pid, me.uid) == (os.getpid(), os.geteuid())
    assert me.exe == os.path.basename(os.readlink("/proc/self/exe"))
    assert os.getpid() in process.iter_pids()


def test_a_process_that_is_gone_is_none() -> None:
    child = subprocess.Popen(["true"])
    child.wait()

    assert process.read(child.pid) is None


def test_a_zombie_runs_no_program() -> None:
    child = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # closed at exit, before anyone waits
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert process.read(child.pid) is None
    child.stdout.close()
    child.wait()


def test_a_status_cut_short_counts_as_gone() -> None:
    with pytest.raises(process.VANISHED):
        process.parse_uids("Name:\tx\n")

"""cgroup v2: recorded mount tables, and how paths are found in them."""

import errno
import os
from pathlib import Path

import pytest

from accel.errors import LinuxError
from accel.linux import cgroup
from accel.linux.cgroup import Mount

UNIFIED = "31 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 master:1 - cgroup2 cgroup2 rw\n"
)
CONTAINER = "88 80 0:26 /../../.. /host\\040sys/cgroup ro - cgroup2 cgroup2 rw\n"
BOUND = "88 80 0:26 /kubepods/pod1 /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "mounts"),
    [
        (UNIFIED, [Mount(Path("/sys/fs/cgroup"))]),
        (HYBRID, [Mount(Path("/sys/fs/cgroup/unified"))]),
        (CONTAINER, [Mount(Path("/host sys/cgroup"), "/../../..")]),
        (BOUND, [Mount(Path("/sys/fs/cgroup"), "/kubepods/pod1")]),
        (HYBRID.splitlines()[1], []),
        ("", []),
    ],
)
def test_mounts_in_a_mountinfo(mountinfo: str, mounts: list[Mount]) -> None:
    assert list(cgroup.iter_mounts(mountinfo)) == mounts


@pytest.mark.parametrize(
    ("root", "path", "directory"),
    [
        ("/", "/", "/cg"),
        ("/", "/kubepods/pod1/abc", "/cg/kubepods/pod1/abc"),
        ("/", "/../other", None),  # beside our cgroup namespace: names untold
        ("/kubepods", "/kubepods/pod1", "/cg/pod1"),
        ("/kubepods", "/kubepods", "/cg"),
        ("/kubepods", "/kubepods-other/pod1", None),
        ("/kubepods", "/system.slice", None),
        ("/../..", "/../../system.slice/x", "/cg/system.slice/x"),
        ("/../..", "/../sibling", None),
        ("/../..", "/../..", "/cg"),
    ],
)
def test_a_cgroups_directory(root: str, path: str, directory: str | None) -> None:
    located = Mount(Path("/cg"), root).locate(path)

    assert located == (None if directory is None else Path(directory))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/kubepods/pod1\n", "/kubepods/pod1"),
        ("9:name=systemd:/a\n4:memory:/b\n0::/c:d\n", "/c:d"),
        ("4:memory:/only-v1\n", None),
        ("", None),
    ],
)
def test_the_v2_path_of_a_process(text: str, path: str | None) -> None:
    assert cgroup.parse_path(text) == path


def test_no_hierarchy_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(HYBRID.splitlines()[0])

    with pytest.raises(LinuxError, match="cgroup v2") as caught:
        cgroup.find_mount(str(tmp_path))
    assert caught.value.remedy is not None


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENODEV, cgroup.NoCgroup2), (errno.EPERM, LinuxError)]
)
def test_no_mount_of_our_own(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[LinuxError]
) -> None:
    """No kernel of a distribution lacks cgroup v2, so its answer is made up here."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    def find() -> Mount:
        raise LinuxError("none", remedy="mount one")

    monkeypatch.setattr(cgroup, "_call", refuse)
    monkeypatch.setattr(cgroup, "find_mount", find)
    with pytest.raises(LinuxError, match=os.strerror(number)) as caught:
        cgroup.hierarchy()
    assert type(caught.value) is kind
    assert caught.value.remedy == "mount one"


def test_the_id_is_the_inode_and_what_is_gone_has_none(tmp_path: Path) -> None:
    assert cgroup.cgroup_id(tmp_path) == tmp_path.stat().st_ino
    assert cgroup.cgroup_id(tmp_path / "gone") is None
    assert cgroup.members(tmp_path) == ()
    assert cgroup.path_of(2**22 + 1) is None


def test_members_outside_our_pid_namespace_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("0\n17\n42\n")

    assert cgroup.members(tmp_path) == (17, 42)


def test_a_mount_of_something_else_is_not_the_whole(tmp_path: Path) -> None:
    assert not Mount(tmp_path).is_whole


def test_our_own_path_is_readable() -> None:
    assert cgroup.path_of(os.getpid()) is not None or not list(
        cgroup.iter_mounts(Path("/proc/self/mountinfo").read_text())
    )

"""Directories that come and go below one."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

import anyio
import pytest

from accel.errors import LinuxError
from accel.linux import inotify
from accel.linux.inotify import Change, DirectoryTree
from tests.patience import scaled

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def changes(tree: DirectoryTree, *expected: Change) -> None:
    """Wait until all of them have been told."""
    missing = set(expected)
    with anyio.fail_after(scaled(30)):
        while missing:
            missing -= set(await tree.changes())


async def test_directories_come_and_go_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    with DirectoryTree(tmp_path) as tree:
        (tmp_path / "a/b/c").mkdir()
        await changes(tree, Change(tmp_path / "a/b/c", made=True))
        (tmp_path / "a/b/c/d").mkdir()
        (tmp_path / "a/b/c/d").rmdir()
        await changes(tree, Change(tmp_path / "a/b/c/d"))


async def test_what_is_made_in_a_new_directory_is_told_however_fast(tmp_path: Path) -> None:
    with DirectoryTree(tmp_path) as tree:
        (tmp_path / "pod/container/inner").mkdir(parents=True)
        names = ("pod", "pod/container", "pod/container/inner")
        await changes(tree, *(Change(tmp_path / name, made=True) for name in names))


async def test_files_say_nothing(tmp_path: Path) -> None:
    with DirectoryTree(tmp_path) as tree:
        (tmp_path / "file").touch()
        (tmp_path / "directory").mkdir()
        assert await tree.changes() == (Change(tmp_path / "directory", made=True),)


async def test_what_is_lost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was made meanwhile is watched; to fill the kernel's queue would take a minute."""
    overflow = struct.pack("=iIII", -1, 0x4000, 0, 0)
    read = os.read
    with DirectoryTree(tmp_path) as tree:
        (tmp_path / "early").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", lambda fd, size: read(fd, size) and overflow)
            assert set(await tree.changes()) == {
                Change(None),
                Change(tmp_path / "early", made=True),
            }
        (tmp_path / "early/late").mkdir()
        await changes(tree, Change(tmp_path / "early/late", made=True))


def test_no_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LinuxError, match="No such file"):
        DirectoryTree(tmp_path / "none")


def test_too_many_watches_are_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        inotify_init1 = staticmethod(inotify._libc.inotify_init1)

        @staticmethod
        def inotify_add_watch(*_: object) -> int:
            ctypes.set_errno(errno.ENOSPC)
            return -1

    monkeypatch.setattr(inotify, "_libc", Full)
    with pytest.raises(LinuxError, match="No space") as failure:
        DirectoryTree(tmp_path)
    assert failure.value.remedy is not None
    assert "max_user_watches" in failure.value.remedy

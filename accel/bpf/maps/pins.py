"""Maps that ask for a pin under their name (LIBBPF_PIN_BY_NAME).

Whoever loads first creates and pins such a map; whoever comes later uses that one, if it is
what they need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from errno import EEXIST, EIO, ENOENT
from functools import partial
from pathlib import Path
from typing import Any

from accel.bpf.door.pin import unpin
from accel.bpf.errors import BpfError, ObjectError, ShapeError
from accel.bpf.format.btf import Btf
from accel.bpf.maps.map import Map
from accel.bpf.spec import MapSpec
from accel.errors import AccelError


def path_of(directory: str | os.PathLike[str], name: str) -> Path:
    """Where a map of that name is pinned: bpf file systems reserve names with a dot.

    Raises:
        ObjectError: The name would lead elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ObjectError(f"nothing can be pinned under the name {name!r}")
    return Path(directory, name.replace(".", "_"))


def find_or_pin(
    spec: MapSpec,
    directory: str | os.PathLike[str],
    btf: Btf | None,
    create: Callable[[], Map[Any, Any]],
    undo: ExitStack,
) -> tuple[Map[Any, Any], bool]:
    """The map pinned under the spec's name, or else a new one, pinned there.

    Args:
        undo: Takes a new pin away again, and the directory made for it, as far as they are
            still ours; what it cannot take away is a note on the error it is closed with.

    Returns:
        The map, and whether it is new.

    Raises:
        ObjectError: Nothing can be pinned under the map's name.
        ShapeError: What is pinned there is not what the spec says; every difference is named.
        BpfError: The map cannot be opened, created or pinned.
    """
    path = path_of(directory, spec.name)
    try:
        return Map.from_pin(path, spec=spec, btf=btf), False
    except BpfError as error:
        if error.errno != ENOENT:
            raise
    _make_directory(path.parent, undo)
    created = create()
    try:
        number = created.info().id
        created.pin(path)
    except BaseException as error:
        created.close()
        if not isinstance(error, BpfError) or error.errno != EEXIST:
            raise
    else:
        undo.push(_stepping_back(partial(_unpin_ours, path, number)))
        return created, True
    # Somebody pinned theirs since we looked: then theirs it is.
    return Map.from_pin(path, spec=spec, btf=btf), False


def _make_directory(directory: Path, undo: ExitStack) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.absolute().parent, undo)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return
    except OSError as error:
        raise BpfError(f"create the directory {directory}", error.errno or EIO) from error
    undo.push(_stepping_back(partial(_remove, directory)))


def _stepping_back(step: Callable[[], None]) -> Callable[[Any, BaseException | None, Any], None]:
    """`step`, for the way out of a failed load(), whose error stays the one that is raised."""

    def leave(_kind: Any, error: BaseException | None, _traceback: Any) -> None:
        try:
            step()
        except (AccelError, OSError) as failure:
            if error is None:
                raise
            error.add_note(f"left behind: {failure}")

    return leave


def _unpin_ours(path: Path, number: int) -> None:
    """Remove the pin of the map with that id; another's in its place stays."""
    try:
        with Map.from_pin(path) as found:
            is_ours = found.info().id == number
    except ShapeError:  # a program or a link
        return
    except BpfError as error:
        if error.errno == ENOENT:
            return
        raise
    if is_ours:
        unpin(path)


def _remove(directory: Path) -> None:
    with suppress(FileNotFoundError):
        directory.rmdir()

"""Objects that others compiled: what bpftool loads we load, to the same instructions.

A program's tag is the kernel's hash of its instructions as they were loaded, with
descriptors of maps left out: equal tags say that both loaders relocated alike.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from accel.bpf import BpfError, ObjectError, ShapeError, load, open_object
from tests.bpf.corpus import every_package
from tests.patience import scaled

pytestmark = pytest.mark.kernel

# bpftool pins what it loads, and libbpf what asks for it: all in a file system that goes
# with the mount namespace.
_BPFTOOL = """
mount -t bpf bpf /sys/fs/bpf && mkdir /sys/fs/bpf/o || exit 99
bpftool prog loadall "$1" /sys/fs/bpf/o >&2 || exit 1
for pin in /sys/fs/bpf/o/*; do
    [ -e "$pin" ] && echo "$(basename "$pin") $(bpftool -j prog show pinned "$pin")"
done
exit 0
"""


class Verdict(NamedTuple):
    """What a loader made of an object: tags by program, or why not."""

    tags: dict[str, str]
    refusal: str | None


def ask_bpftool(path: Path) -> Verdict:
    """bpftool's verdict, in a mount namespace of its own."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _BPFTOOL, "sh", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=scaled(120),
    )
    assert done.returncode in (0, 1), done.stderr
    if done.returncode:
        return Verdict({}, done.stderr.strip() or "refused")
    tags = {}
    for line in done.stdout.splitlines():
        name, _, facts = line.partition(" ")
        tags[name] = json.loads(facts)["tag"]
    return Verdict(tags, None)


def ask_us(path: Path) -> Verdict:
    """Our own verdict; only an honest refusal is caught."""
    try:
        with load(open_object(path)) as loaded:
            tags = {name: program.tag for name, program in loaded.programs.items()}
    except (ObjectError, BpfError, ShapeError) as refusal:
        return Verdict({}, str(refusal))
    return Verdict(tags, None)


@every_package()
def test_what_bpftool_loads_we_load_alike(objects: tuple[Path, ...]) -> None:
    if shutil.which("bpftool") is None:
        pytest.skip("needs bpftool")
    refused, different = {}, {}
    for path in objects:
        theirs = ask_bpftool(path)
        if theirs.refusal is not None:
            ask_us(path)  # may go either way, but by no other exception
            continue
        ours = ask_us(path)
        if ours.refusal is not None:
            refused[path.name] = ours.refusal
        else:
            odd = {
                name: (tag, ours.tags.get(name))
                for name, tag in theirs.tags.items()
                if ours.tags.get(name) != tag
            }
            if odd:
                different[path.name] = odd

    assert refused == {}
    assert different == {}

"""What the guest finds in its file system.

Everything lies where it lies on the host (Python, the virtual environment, the
project, libraries), so a command means the same in both.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import modules
from cpio import Tree, walk
from kernels import Unpacked

HERE = Path(__file__).resolve().parent

# Taken along where the host has them.
PROGRAMS = (
    "bpftool", "ip", "ip6tables", "ip6tables-restore", "ip6tables-save", "iptables",
    "iptables-legacy", "iptables-restore", "iptables-save", "nft", "nginx", "ss", "tc", "tcpdump",
    # busybox's of these would run busybox's ip and the like, whatever PATH has.
    "bash", "env", "mount", "nsenter", "setpriv", "setsid", "sh", "sysctl", "timeout", "umount",
    "unshare", "xargs",
    "sleep",  # the tests run it under another name
)  # fmt: skip
# Loaded by those programs by name, so that ldd does not tell.
PLUGINS = ("/usr/lib/*/xtables/*.so", "/usr/lib/*/libgcc_s.so.1", "/usr/lib/nginx/modules/*.so")
FILES = (
    "/etc/group",
    "/etc/nginx/mime.types",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
)

# Of the standard library and of site-packages: large, and no use without a compiler, a
# screen or a network.
NOT_NEEDED = frozenset(
    {
        "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
        "test", "tkinter", "turtledemo",
        "ast_serialize", "grimp", "importlinter", "mypy", "mypyc", "pip", "pkg_resources",
        "ruff", "setuptools",
    }
)  # fmt: skip
NOT_NEEDED_FILES = re.compile(
    r"/config-3[^/]*/|/lib-dynload/_(test|tkinter|xx)|__mypyc\.|\.opt-[12]\.pyc$|\.a$"
)
# Of the project.
NOT_OURS = frozenset(
    {".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".venv", "__pycache__"}
)


@dataclass(frozen=True)
class Python:
    """Where a virtual environment and the interpreter under it keep their parts."""

    venv: Path
    interpreter: Path
    library: Path  # the standard library
    packages: Path  # site-packages


def inspect_python(venv: Path) -> Python:
    """Asks the environment's own interpreter."""
    question = (
        "import json, sys, sysconfig; print(json.dumps("
        "[sys._base_executable, sysconfig.get_path('stdlib'), sysconfig.get_path('purelib')]))"
    )
    answer = subprocess.run(
        [venv / "bin" / "python", "-c", question], check=True, capture_output=True, text=True
    )
    interpreter, library, packages = (Path(part) for part in json.loads(answer.stdout))
    return Python(venv, interpreter, library, packages)


def base(python: Python, cache: Path) -> Path:
    """Programs, Python and libraries: kept for as long as none of them changes."""
    recipe = [*HERE.glob("*.py"), HERE / "init", Path("/etc/ld.so.cache")]
    programs = [Path(found) for name in PROGRAMS if (found := shutil.which(name, path=_path()))]
    busybox = Path(shutil.which("busybox") or "busybox")
    plugins = [path for pattern in PLUGINS for path in Path("/").glob(pattern[1:])]
    plugins += [Path(name) for name in FILES if Path(name).exists()]
    library = [*walk(python.library, NOT_NEEDED), *walk(python.packages, NOT_NEEDED)]
    library = [path for path in library if not _is_left_out(path)]
    binaries = [python.interpreter, busybox, *programs]
    files = [*binaries, *plugins, *library, *_of_the_environment(python)]

    target = cache / f"base-{_fingerprint([*files, *recipe])}.cpio"
    if not target.exists():
        tree = Tree()
        _add_skeleton(tree)
        for path in [*files, *_needed_libraries(files)]:
            tree.add_file(_in_guest(path), path)
        _add_python_links(tree, python)
        _add_applets(tree, busybox)
        _replace_old(target, "base-*.cpio")
        tree.write(target)
    return target


def _path() -> str:
    """Also where an ordinary user's PATH has no administrator's programs."""
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _is_left_out(path: Path) -> bool:
    return bool(NOT_NEEDED_FILES.search(str(path)))


def _of_the_environment(python: Python) -> list[Path]:
    """Its console scripts, but none of the large programs that some packages put there."""
    scripts = (path for path in (python.venv / "bin").iterdir() if not path.is_symlink())
    small = [path for path in scripts if path.is_file() and path.stat().st_size < 1 << 20]
    return [python.venv / "pyvenv.cfg", *small]


def _fingerprint(files: Iterable[Path]) -> str:
    """Of names, sizes and times; contents are not read."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _replace_old(target: Path, pattern: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for old in target.parent.glob(pattern):
        old.unlink()


def _in_guest(path: Path) -> PurePosixPath:
    """The same path, its directory without links: /lib is /usr/lib since Debian 12."""
    return PurePosixPath(os.path.realpath(path.parent)) / path.name


def _needed_libraries(files: Iterable[Path]) -> set[Path]:
    """What ldd finds for those of the files that are ELF."""
    binaries = [str(path) for path in files if path.open("rb").read(4) == b"\x7fELF"]
    told = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False)
    found = re.findall(r"(?:=> |^\t)(/\S+) \(0x", told.stdout, re.MULTILINE)
    return {Path(name) for name in found}


def _add_skeleton(tree: Tree) -> None:
    for top in ("bin", "sbin", "lib", "lib64"):
        tree.add_link(PurePosixPath("/", top), f"usr/{top}")
    for mounted in ("dev", "proc", "run", "sys", "usr/lib64"):
        tree.add_directory(PurePosixPath("/", mounted))
    for data in ("etc", "root", "var/lib/nginx", "var/log/nginx"):
        tree.add_directory(PurePosixPath("/", data))
    for scratch in ("tmp", "var/tmp"):
        tree.add_directory(PurePosixPath("/", scratch), mode=0o1777)
    tree.add_link(PurePosixPath("/var/run"), "/run")
    tree.add_bytes(PurePosixPath("/etc/hosts"), b"127.0.0.1 localhost\n::1 localhost\n")
    tree.add_device(PurePosixPath("/dev/console"), major=5, minor=1)
    tree.add_file(PurePosixPath("/init"), HERE / "init")


def _add_python_links(tree: Tree, python: Python) -> None:
    """python, python3, ...: straight to the interpreter, whatever lies between on the host."""
    for path in (python.venv / "bin").glob("python*"):
        if path.is_symlink():
            tree.add_link(_in_guest(path), str(_in_guest(python.interpreter)))


def _add_applets(tree: Tree, busybox: Path) -> None:
    """busybox stands in for every program that the host's own are not taken along for."""
    listed = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True)
    for place in listed.stdout.split():
        name = PurePosixPath(place).name
        folders = ("sbin", "bin")
        if not any(PurePosixPath("/usr", folder, name) in tree for folder in folders):
            kind = "sbin" if "sbin" in place else "bin"
            tree.add_link(PurePosixPath("/usr", kind, name), str(_in_guest(busybox)))


def modules_of(kernel: Unpacked, cache: Path) -> Path:
    """Modules and settings: kept beside the base, one for each kernel."""
    assert kernel.modules is not None
    sources = [HERE / "modules.py", HERE / "cpio.py", Path(__file__), kernel.image]
    target = cache / f"modules-{kernel.release}-{_fingerprint(sources)}.cpio"
    if not target.exists():
        tree = Tree()
        modules.pack(tree, kernel.modules, kernel.release)
        if kernel.settings is not None:
            tree.add_file(PurePosixPath("/boot", kernel.settings.name), kernel.settings)
        _replace_old(target, f"modules-{kernel.release}-*.cpio")
        tree.write(target)
    return target


def project(top: Path, venv: Path, setup: str, command: Sequence[str], scratch: Path) -> Path:
    """The project tree and the command: made anew for each run.

    Args:
        setup: Shell commands that run first; one that fails keeps the command from running.
    """
    tree = Tree()
    for path in walk(top, NOT_OURS):
        tree.add_file(_in_guest(path), path)
    script = (
        f"PATH={shlex.quote(str(venv / 'bin'))}:$PATH\nset -e\n{setup}\n"
        f"cd {shlex.quote(str(top))} && exec {shlex.join(command)}\n"
    )
    tree.add_bytes(PurePosixPath("/guest/command"), script.encode())
    target = scratch / "project.cpio"
    tree.write(target)
    return target

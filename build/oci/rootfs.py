"""Debian's Python and nothing more, as a directory.

Packages are unpacked, never installed: none of their scripts runs, so what only those
scripts need (a shell, dpkg, awk) stays away.
"""

import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from failure import Failure

PACKAGES = ("base-files", "python3")

# Depended on for scripts that run when something is installed, or for what is left out below.
_NOT_NEEDED = frozenset(
    {
        "debconf", "dpkg", "install-info", "mawk", "perl-base", "readline-common",
        "libdb5.3", "libdb5.3t64", "libgdbm6", "libncursesw6", "libnsl2", "libreadline8",
        "libreadline8t64", "libsqlite3-0", "libtinfo6", "libtirpc3", "libtirpc3t64",
    }
)  # fmt: skip

# The copyright files stay: their licences ask for it, and name those in common-licenses.
_LEFT_OUT = re.compile(
    r"""
    usr/share/ (?! doc/ | common-licenses/ )
    | usr/share/doc/ (?! [^/]+/copyright$ )
    | etc/ (?! debian_version$ | os-release$ )
    | usr/s?bin/ (?! python3(\.\d+)?$ )
    | var/
    | usr/lib/valgrind/
    | usr/lib/[^/]+/gconv/        # character sets of iconv(3); Python has its own
    # Of the standard library: what is for developers, and for people at a terminal.
    | usr/lib/python3(\.\d+)?/ (test | idlelib | lib2to3 | ensurepip | venv | pydoc_data
        | distutils | turtledemo | config-3[^/]* | curses | dbm | sqlite3)/
    | usr/lib/python3\.\d+/lib-dynload/ (nis | readline | _curses | _curses_panel | _dbm
        | _gdbm | _sqlite3 | _test\w* | xx\w*)\.
    """,
    re.VERBOSE,
)

_SKELETON = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/local/bin")
_LINKS = {
    **{top: f"usr/{top}" for top in ("bin", "sbin", "lib", "lib64")},
    "var/run": "/run",
}
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\n",
}

# Where scanners look for what an image without dpkg is made of.
_INVENTORY = PurePosixPath("var/lib/dpkg/status.d")


@dataclass(frozen=True)
class Python:
    """The image's interpreter."""

    version: str  # as in "3.11"
    packages: Path  # where Debian's looks for modules of the machine's owner


def unpack(archives: Collection[Path], root: Path) -> Python:
    """Make the root filesystem.

    Args:
        archives: The packages that were fetched; not all are needed.

    Raises:
        Failure: There is no interpreter among them.
    """
    for name in _SKELETON:
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name, target in _LINKS.items():
        if not target.startswith("/"):
            (root / target).mkdir(parents=True, exist_ok=True)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    for package in _needed({archive: _fields(archive) for archive in archives}).items():
        _unpack(*package, root)
    return _python(root)


def compile_modules(root: Path) -> None:
    """Compile all of Python's modules: at run time nothing can be written.

    By the image's own interpreter, from a seed, in one process: so the bytes are the same
    each time.  Times of sources are not compared, as they are not the sources' own; what the
    interpreter needs for this very work (-B) would be written with such times.

    Raises:
        Failure: The interpreter does not run, or a module is none.
    """
    command = (
        *("chroot", str(root), "/usr/bin/python3", "-B", "-m", "compileall", "-q", "-f"),
        *("--invalidation-mode", "unchecked-hash", "/usr/lib", "/usr/local/lib"),
    )
    _run(command, "compile Python's modules in the image")


def try_out(root: Path) -> None:
    """Does it start there?

    Raises:
        Failure: It does not.
    """
    _run(("chroot", str(root), "/usr/local/bin/accel", "--version"), "run accel in the image")


def _run(command: tuple[str, ...], what: str) -> None:
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Failure(
            f"{what}: exit status {done.returncode}: {' / '.join(said) or 'no word'}",
            "run it as root (it uses chroot), on a machine of the packages' architecture",
        )


def _fields(archive: Path) -> dict[str, str]:
    """What a package says of itself, by the names of its fields."""
    told = subprocess.run(["dpkg-deb", "-f", archive], check=True, capture_output=True, text=True)
    return dict(re.findall(r"^([\w-]+): (.*(?:\n .*)*)", told.stdout, re.MULTILINE))


def _needed(every: Mapping[Path, dict[str, str]]) -> dict[Path, dict[str, str]]:
    """Those that PACKAGES depend on, when what is not needed is taken away."""
    by_name = {fields["Package"]: archive for archive, fields in every.items()}
    reached: set[str] = set()
    waiting = list(PACKAGES)
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in reached | _NOT_NEEDED:
            reached.add(name)
            fields = every[by_name[name]]
            asked = f"{fields.get('Pre-Depends', '')}, {fields.get('Depends', '')}"
            waiting += re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", asked)
    return {by_name[name]: every[by_name[name]] for name in sorted(reached)}


def _unpack(archive: Path, fields: Mapping[str, str], root: Path) -> None:
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
        ) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as members,
    ):
        for member in members:
            path = _merged(PurePosixPath(member.name))
            if not _LEFT_OUT.match(str(path)):
                _write(members, member, root / path, root)
    inventory = root / _INVENTORY
    inventory.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (inventory / fields["Package"]).write_text(text)


def _merged(path: PurePosixPath) -> PurePosixPath:
    """Where /lib is a link to /usr/lib, what packages have in /lib is below the latter."""
    first, *rest = path.parts or (".",)
    return PurePosixPath("usr", first, *rest) if first in _LINKS and rest else path


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path) -> None:
    """One entry; directories come about by themselves, so that none is left empty."""
    if not (member.isreg() or member.issym() or member.islnk()) or path.is_symlink():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        shutil.copy2(root / _merged(PurePosixPath(member.linkname)), path)
    else:
        content = members.extractfile(member)
        assert content is not None  # it is a regular file
        path.write_bytes(content.read())
        path.chmod(stat.S_IMODE(member.mode) & 0o755)


def _python(root: Path) -> Python:
    found = [path.name.removeprefix("python") for path in (root / "usr/lib").glob("python3.*")]
    if len(found) != 1 or not (root / "usr/bin/python3").exists():
        raise Failure(
            f"unpack Debian's Python: found {', '.join(found) or 'none'}",
            "say which release of Debian this is to whoever keeps build/oci/rootfs.py",
        )
    packages = root / "usr/local/lib" / f"python{found[0]}" / "dist-packages"
    return Python(found[0], packages)

"""The kernel modules that travel, and what modprobe needs to find them.

Packages carry no modules.dep (depmod writes it when they are installed), so it is
made here from the modules themselves.  They travel uncompressed: busybox loads no
compressed ones on every kernel.
"""

import fnmatch
import lzma
import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cpio import Tree

# Below kernel/ of the modules directory; what they depend on comes along.
WANTED = (
    # What kTLS asks for by name, "gcm(aes)", and so is in no module's list of dependencies.
    "arch/x86/crypto/aesni-intel",
    "arch/x86/crypto/ghash-clmulni-intel",
    "crypto/aes_generic",
    "crypto/ctr",
    "crypto/gcm",
    "crypto/ghash-generic",
    "crypto/seqiv",
    "drivers/net/dummy",
    "drivers/net/veth",
    "net/bridge/bridge",
    "net/ipv4/netfilter/*",
    "net/ipv4/*_diag",
    "net/ipv6/netfilter/*",
    "net/netfilter/nf_*",
    "net/netfilter/nft_*",
    "net/netfilter/x_tables",
    "net/netfilter/xt_*",
    "net/netlink/netlink_diag",
    "net/packet/*",
    "net/sched/*",
    "net/tls/*",
    "net/unix/*",
)


@dataclass(frozen=True)
class Module:
    """A module as the file says it is; names with underscores, as in /proc/modules."""

    name: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    place: PurePosixPath  # relative to the modules directory


def pack(tree: Tree, modules: Path, release: str) -> None:
    """Add the wanted modules to `tree`, with modules.dep and modules.alias."""
    home = PurePosixPath("/usr/lib/modules", release)
    chosen = _chosen(modules)
    for module in chosen.values():
        tree.add_bytes(home / module.place, module.data)
    tree.add_bytes(home / "modules.dep", _dependencies(chosen).encode())
    tree.add_bytes(home / "modules.alias", _aliases(chosen).encode())
    builtin = modules / "modules.builtin"
    if builtin.exists():
        tree.add_file(home / builtin.name, builtin)


def _chosen(modules: Path) -> dict[str, Module]:
    """The wanted modules and, transitively, what they depend on; by name."""
    files = {_name(path): path for path in sorted(modules.rglob("*.ko*"))}
    pending = [name for name, path in files.items() if _is_wanted(path.relative_to(modules))]
    chosen: dict[str, Module] = {}
    while pending:
        name = pending.pop()
        if name not in chosen:
            chosen[name] = _read(files[name], modules)
            pending += chosen[name].depends
    return dict(sorted(chosen.items()))


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _is_wanted(place: Path) -> bool:
    stem = str(place.parent / place.name.partition(".")[0])
    return any(fnmatch.fnmatchcase(stem, f"kernel/{pattern}") for pattern in WANTED)


def _read(path: Path, modules: Path) -> Module:
    data = path.read_bytes()
    place = path.relative_to(modules)
    if path.suffix == ".xz":
        data = lzma.decompress(data)
        place = place.with_suffix("")
    facts = [fact.partition("=") for fact in _modinfo(data).decode().split("\0")]
    return Module(
        name=_name(path),
        data=data,
        depends=tuple(
            name.replace("-", "_")
            for key, _, value in facts
            if key == "depends"
            for name in value.split(",")
            if name
        ),
        aliases=tuple(value for key, _, value in facts if key == "alias"),
        place=PurePosixPath(place),
    )


def _modinfo(data: bytes) -> bytes:
    """The .modinfo section of an ELF64 little-endian file: key=value, each ended by NUL."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + size * i) for i in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        if data[names + name :].startswith(b".modinfo\0"):
            return data[offset : offset + length]
    return b""


def _dependencies(chosen: dict[str, Module]) -> str:
    """modules.dep: every module after the ones it needs, read from right to left."""
    lines = []
    for module in chosen.values():
        needed = [str(chosen[name].place) for name in _all_needed(module, chosen)]
        lines.append(f"{module.place}: {' '.join(needed)}".rstrip())
    return "\n".join(lines) + "\n"


def _all_needed(module: Module, chosen: dict[str, Module]) -> list[str]:
    ordered: list[str] = []
    for name in module.depends:
        for below in (name, *_all_needed(chosen[name], chosen)):
            if below in ordered:
                ordered.remove(below)
            ordered.append(below)
    return ordered


def _aliases(chosen: dict[str, Module]) -> str:
    lines = [f"alias {alias} {m.name}" for m in chosen.values() for alias in m.aliases]
    return "\n".join(lines) + "\n"

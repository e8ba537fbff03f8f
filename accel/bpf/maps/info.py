"""What the kernel says of its maps: by descriptor, by id, or all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.ids import iter_by_id
from accel.bpf.format import btf as b


class MapInfo(NamedTuple):
    """What the kernel says of a map.

    Attributes:
        id: Unique until reboot.
        name: As the kernel keeps it: at most 15 characters.
        type: A BPF_MAP_TYPE_* number.
        key_size, value_size: Bytes.
        flags: BPF_F_*.
        map_extra: As at creation; 0 too on a kernel before 5.16.
        btf_id: Of the BTF it was created with; 0 without any.
        key_type_id, value_type_id: Its types in that BTF; 0 without any.
        kernel_value_type_id: Of a struct_ops map, in the kernel's or a module's BTF.
        interface: Index of the device it was offloaded to; 0 for none.
        memory_bytes: What the kernel reckons it occupies; None where /proc does not tell.
        is_frozen: User space can no longer write it; None where /proc does not tell.
    """

    id: int
    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    map_extra: int = 0
    btf_id: int = 0
    key_type_id: int = 0
    value_type_id: int = 0
    kernel_value_type_id: int = 0
    interface: int = 0
    memory_bytes: int | None = None
    is_frozen: bool | None = None


def map_info(fd: Fd, name: str) -> MapInfo:
    """What the kernel says of the map behind `fd`; `name` is for the error message."""
    raw = syscall.obj_get_info_by_fd(fd, uapi.MapInfo, f"ask about map {name}")
    told = _told_by_proc(fd)
    return MapInfo(
        id=raw.id,
        name=raw.name.decode("ascii", "replace"),
        type=raw.type,
        key_size=raw.key_size,
        value_size=raw.value_size,
        max_entries=raw.max_entries,
        flags=raw.map_flags,
        map_extra=raw.map_extra,
        btf_id=raw.btf_id,
        key_type_id=raw.btf_key_type_id,
        value_type_id=raw.btf_value_type_id,
        kernel_value_type_id=raw.btf_vmlinux_value_type_id,
        interface=raw.ifindex,
        memory_bytes=told.get("memlock"),
        is_frozen=bool(told["frozen"]) if "frozen" in told else None,
    )


def _told_by_proc(fd: Fd) -> dict[str, int]:
    """Decimal fields of the map's fdinfo: bpf_map_show_fdinfo(), kernel/bpf/syscall.c."""
    try:
        with open(f"/proc/self/fdinfo/{fd.fileno()}", encoding="ascii") as file:
            text = file.read()
    except OSError:
        return {}
    fields = (line.split(":") for line in text.splitlines())
    return {field[0]: int(field[1]) for field in fields if field[1].strip().isdecimal()}


def map_by_id(number: int) -> Fd:
    """A descriptor of the map with that id.

    Raises:
        BpfError: ENOENT when there is none; EPERM without CAP_SYS_ADMIN.
    """
    return syscall.get_fd_by_id(uapi.MapGetFdById, number, f"open the map with id {number}")


def iter_maps() -> Iterator[MapInfo]:
    """Every map on this machine, by id; one that goes meanwhile is left out.

    Raises:
        BpfError: Listing needs CAP_SYS_ADMIN.
    """
    return iter_by_id(
        uapi.MapGetNextId,
        uapi.MapGetFdById,
        "list BPF maps",
        lambda fd, number: map_info(fd, f"with id {number}"),
    )


def loaded_types(btf_id: int) -> b.Btf:
    """The BTF of that id, as it was loaded into the kernel with an object.

    Raises:
        BpfError: There is none, or it may not be opened (CAP_SYS_ADMIN).
        ObjectError: It builds on the kernel's own types: a module's.
    """
    action = f"read the BTF with id {btf_id}"
    with syscall.get_fd_by_id(uapi.BtfGetFdById, btf_id, action) as fd:
        # Not btf_info(): before Linux 5.11 a BTF has no name to ask for (E2BIG).
        size = syscall.obj_get_info_by_fd(fd, uapi.BtfInfo, action).btf_size
        return b.parse(syscall.btf_data(fd, size, action))

"""Making maps of specs, and comparing maps with specs."""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from mmap import PAGESIZE
from typing import NamedTuple

from accel.bpf import ages
from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.cpu import possible_cpus
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.format.btf import Btf
from accel.bpf.kinds import MapType
from accel.bpf.maps.info import MapInfo
from accel.bpf.maps.limits import a_type, type_name
from accel.bpf.maps.special_fields import special_field
from accel.bpf.maps.views import MAPS_OF_MAPS
from accel.bpf.spec import MapSpec

# Types whose creation refuses BTF for key and value: those without map_check_btf
# in their map_ops (map_check_no_btf(), kernel/bpf/syscall.c).  A struct_ops map has
# its type from the kernel, and an arena and ring buffers have types for readers only.
_WITHOUT_BTF = frozenset(
    {
        MapType.PROG_ARRAY,
        MapType.PERF_EVENT_ARRAY,
        MapType.STACK_TRACE,
        MapType.CGROUP_ARRAY,
        MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS,
        MapType.DEVMAP,
        MapType.DEVMAP_HASH,
        MapType.SOCKMAP,
        MapType.SOCKHASH,
        MapType.CPUMAP,
        MapType.XSKMAP,
        MapType.REUSEPORT_SOCKARRAY,
        MapType.QUEUE,
        MapType.STACK,
        MapType.STRUCT_OPS,
        MapType.RINGBUF,
        MapType.USER_RINGBUF,
        MapType.BLOOM_FILTER,
        MapType.ARENA,
        MapType.INSN_ARRAY,
    }
)

_RINGS = (MapType.RINGBUF, MapType.USER_RINGBUF)

# What a map may differ in from its spec.  Ours are added at creation; the descriptor's
# (bpf_map_flags_retain_permanent()) and those that only describe the call are not kept.
_FLAGS_OF_OURS = uapi.BPF_F_MMAPABLE | uapi.BPF_F_NUMA_NODE
_FLAGS_NOT_KEPT = (
    uapi.BPF_F_RDONLY | uapi.BPF_F_WRONLY | uapi.BPF_F_VTYPE_BTF_OBJ_FD | uapi.BPF_F_TOKEN_FD
)

_UNNAMEABLE = r"[^A-Za-z0-9_.]"
_LOG_BYTES = 16 * 1024

# What a field, flag or type the kernel does not know is answered with: E2BIG for fields
# beyond its struct (bpf_check_uarg_tail_zero()), the others for what it looks at.
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, errno.E2BIG)


class Types(NamedTuple):
    """Which BTF describes a map that is to be created.

    Attributes:
        btf: The object's, loaded; its spec's type ids refer to it.
        kernel_value: Of a struct_ops map: the kernel's type of its value.
        module: The BTF that `kernel_value` refers to; None for the kernel's own.
        described: What `btf` is of, to look for types that cannot be given up.
    """

    btf: Fd | None = None
    kernel_value: int = 0
    module: Fd | None = None
    described: Btf | None = None


class Created(NamedTuple):
    """A new map, and in words what the kernel refused of it."""

    fd: Fd
    remarks: tuple[str, ...] = ()


def adapted(spec: MapSpec) -> MapSpec:
    """The spec as the running kernel wants it.

    A ring buffer's size must be a power of two of whole pages, and pages differ
    between machines; it has neither keys nor values, whatever types its
    definition gives them for readers (ringbuf_map_alloc(), kernel/bpf/ringbuf.c),
    nor has an arena.  The keys and values of a perf event array are CPU numbers and
    descriptors, and it needs one for each CPU.
    """
    if spec.type in _RINGS:
        size = max(PAGESIZE, 1 << max(spec.max_entries - 1, 0).bit_length())
        return replace(spec, max_entries=size, key_size=0, value_size=0)
    if spec.type == MapType.ARENA:
        return replace(spec, flags=spec.flags | uapi.BPF_F_MMAPABLE, key_size=0, value_size=0)
    if spec.type == MapType.PERF_EVENT_ARRAY:
        entries = spec.max_entries or possible_cpus()
        return replace(spec, max_entries=entries, key_size=4, value_size=4)
    is_data = spec.type == MapType.ARRAY and spec.contents is not None
    if is_data and not spec.frozen and probe.mmapable_arrays():
        return replace(spec, flags=spec.flags | uapi.BPF_F_MMAPABLE)
    return spec


def differences(info: MapInfo, spec: MapSpec) -> tuple[str, ...]:
    """Everything in which a map in the kernel is not what `spec` describes.

    What the kernel or this package adds by itself at creation is no difference.
    """
    wanted = adapted(spec)
    ignored = _FLAGS_OF_OURS | _FLAGS_NOT_KEPT
    if spec.type in (MapType.DEVMAP, MapType.DEVMAP_HASH):
        ignored |= uapi.BPF_F_RDONLY_PROG  # dev_map_alloc(), kernel/bpf/devmap.c
    pairs = [
        ("type", type_name(info.type), type_name(wanted.type)),
        ("key_size", info.key_size, wanted.key_size),
        ("value_size", info.value_size, wanted.value_size),
        ("max_entries", info.max_entries, _max_entries_kept(wanted)),
        ("flags", f"{info.flags & ~ignored:#x}", f"{wanted.flags & ~ignored:#x}"),
        ("map_extra", f"{info.map_extra:#x}", f"{wanted.map_extra:#x}"),
    ]
    different = [f"{name} is {has}, expected {want}" for name, has, want in pairs if has != want]
    if spec.frozen and info.is_frozen is False:
        # What the verifier reads from it as constants, its owner could still change.
        different.append("it is not frozen, expected a frozen one")
    return tuple(different)


def _max_entries_kept(spec: MapSpec) -> int:
    """An LRU without a common list has as many for each CPU: htab_map_alloc()."""
    if spec.flags & uapi.BPF_F_NO_COMMON_LRU and spec.type in (
        MapType.LRU_HASH,
        MapType.LRU_PERCPU_HASH,
    ):
        cpus = possible_cpus()
        return -(-spec.max_entries // cpus) * cpus
    return spec.max_entries


def create(spec: MapSpec, types: Types) -> Created:
    """Create the map an adapted spec describes, giving up first its types, then its name.

    Neither changes what the map does, and either may be what an older kernel
    or a map type refuses.  If that does not help, the first refusal is raised.  Types that
    do change it, as those with a lock, are not given up.

    Raises:
        BpfError: The kernel refused; in its own words where it has any (Linux 7.2).
    """
    if spec.inner is None:
        return _create_around(spec, types, None)
    inner = create(adapted(spec.inner), types)
    with inner.fd:
        made = _create_around(spec, types, inner.fd)
    return Created(made.fd, inner.remarks + made.remarks)


def _create_around(spec: MapSpec, types: Types, inner: Fd | None) -> Created:
    attr = _request(spec, types, inner)
    action = f"create map {spec.name}"
    try:
        return Created(_try(spec, attr, action))
    except BpfError as error:
        if error.errno not in _REFUSALS:
            raise _named(spec, error) from None
        refusal = error
    given_up = []
    less = _request(spec, types, inner)
    if attr.btf_value_type_id and not _needs_types(spec, types):
        given_up.append("types")
        less = _request(spec, types._replace(btf=None), inner)
    for concession in (*given_up, "name"):
        if concession == "name":
            given_up.append(concession)
            less.map_name = b""
        try:
            fd = _try(spec, less, action)
        except BpfError as error:
            if error.errno not in _REFUSALS:
                raise _named(spec, error) from None
        else:
            without = " and ".join(f"its {part}" for part in given_up)
            return Created(fd, (f"map {spec.name} is without {without}: {refusal}",))
    created, log = syscall.map_create_log(attr, _LOG_BYTES)
    if created is not None:
        return Created(created)
    raise _explained(spec, refusal, log)


def _try(spec: MapSpec, attr: uapi.MapCreate, action: str) -> Fd:
    return probe.within_memlock(lambda: syscall.map_create(attr, action), map_type=spec.type)


def _needs_types(spec: MapSpec, types: Types) -> bool:
    """Whether the map would be another one without them."""
    return (
        types.described is not None
        and special_field(types.described, spec.value_type_id) is not None
    )


def _request(spec: MapSpec, types: Types, inner: Fd | None) -> uapi.MapCreate:
    attr = uapi.MapCreate(
        map_type=spec.type,
        key_size=spec.key_size,
        value_size=spec.value_size,
        max_entries=spec.max_entries,
        map_flags=spec.flags,
        map_extra=spec.map_extra,
        map_name=kernel_name(spec.name),
    )
    if inner is not None:
        attr.inner_map_fd = inner.fileno()
    if spec.numa_node is not None:
        attr.numa_node = spec.numa_node
        attr.map_flags |= uapi.BPF_F_NUMA_NODE
    if types.kernel_value:
        attr.btf_vmlinux_value_type_id = types.kernel_value
        if types.btf is not None:  # looked at even so: map_create(), kernel/bpf/syscall.c
            attr.btf_fd = types.btf.fileno()
        if types.module is not None:
            attr.value_type_btf_obj_fd = types.module.fileno()
            attr.map_flags |= uapi.BPF_F_VTYPE_BTF_OBJ_FD
    elif types.btf is not None and spec.type not in _WITHOUT_BTF and spec.value_type_id:
        attr.btf_fd = types.btf.fileno()
        attr.btf_key_type_id = spec.key_type_id
        attr.btf_value_type_id = spec.value_type_id
    return attr


def _named(spec: MapSpec, error: BpfError) -> BpfError:
    """The error with the map's kind in it."""
    return BpfError(
        f"create map {spec.name}, {a_type(spec.type)}", error.errno, remedy=error.remedy
    )


def _explained(spec: MapSpec, refusal: BpfError, log: str) -> BpfError:
    error = _named(spec, refusal)
    lines = log.strip().splitlines()
    action = f"{error.action}: {lines[-1].strip()}" if lines else error.action
    return BpfError(action, error.errno, remedy=_remedy(spec) or error.remedy)


def _remedy(spec: MapSpec) -> str | None:
    """What would help a map that was refused, if anything is known to."""
    if probe.map_type(spec.type) is probe.Answer.NO:
        since = ages.in_words(ages.MAP_TYPE_SINCE.get(spec.type))
        return f"run a kernel with maps of type {type_name(spec.type)}{since}: this one has none"
    if spec.type in MAPS_OF_MAPS and spec.inner is None:
        return "say what maps it holds: its spec has no `inner`"
    is_linked = spec.type == MapType.STRUCT_OPS and spec.flags & uapi.BPF_F_LINK
    if is_linked and probe.struct_ops_links() is probe.Answer.NO:
        since = ages.in_words(ages.STRUCT_OPS_LINK_SINCE)
        return f'put it in SEC(".struct_ops"), or run a kernel that attaches it by link{since}'
    return None


def kernel_name(name: str) -> bytes:
    """A name the kernel takes: 15 of letters, digits, "_" and "." (bpf_obj_name_cpy())."""
    return re.sub(_UNNAMEABLE, "_", name).encode("ascii")[: uapi.BPF_OBJ_NAME_LEN - 1]

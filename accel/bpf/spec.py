"""The blueprint of an object: what its file says, before any kernel is involved.

Everything here is frozen.  `opener.open_object()` makes specs out of bytes;
`dataclasses.replace()`, or the `with_` methods, change them; `object.load()`
makes kernel objects out of them.  Type ids refer to `ObjectSpec.btf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Literal

from accel.bpf.errors import ObjectError

if TYPE_CHECKING:
    from accel.bpf.format.btf import Btf


@dataclass(frozen=True, slots=True)
class StructOps:
    """A table of kernel callbacks, `struct tcp_congestion_ops` for one, that programs fill.

    Attributes:
        type_name: The kernel's struct, without flavour.
        type_id: The object's own version of that struct.
        functions: (member number, program's name) of each callback given.
        is_link: It takes effect as a link (SEC(".struct_ops.link")).
    """

    type_name: str
    type_id: int
    functions: tuple[tuple[int, str], ...]
    is_link: bool


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map to be created.

    Attributes:
        type: A BPF_MAP_TYPE_* number, as in uapi.MapType.
        key_size, value_size: Bytes.
        flags: BPF_F_* as the object asks for them.
        key_type_id, value_type_id: BTF types of key and value; 0 when not given.  A ring
            buffer or perf event array with a value type has records of that type.
        pin_by_name: The object asks for LIBBPF_PIN_BY_NAME.
        contents: Initial bytes of a data section's only value, of an arena, or of a
            struct_ops; None for other maps.
        frozen: The kernel must refuse later writes from user space (.rodata).
        inner: Template of the inner maps of a map-in-map.
        values: (slot, name) of the maps that a map of maps, or programs that a program
            array, holds from the start.
        tags: Declaration tags of the definition.
        extra: What follows the known fields of a definition in the section "maps"; other
            loaders gave these bytes meanings of their own.
        autocreate: False for SEC("?.struct_ops").
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    map_extra: int = 0
    numa_node: int | None = None
    key_type_id: int = 0
    value_type_id: int = 0
    pin_by_name: bool = False
    contents: bytes | None = None
    frozen: bool = False
    inner: MapSpec | None = None
    values: tuple[tuple[int, str], ...] = ()
    tags: tuple[str, ...] = ()
    extra: bytes = b""
    struct_ops: StructOps | None = None
    autocreate: bool = True


@dataclass(frozen=True, slots=True)
class VariableSpec:
    """One global variable: `size` bytes at `offset` of what the map `map` holds.

    That is the only value of a data map, or an arena.
    """

    name: str
    map: str
    offset: int
    size: int
    type_id: int


@dataclass(frozen=True, slots=True)
class MapReference:
    """The 16-byte load instruction at `index` wants a map.

    Attributes:
        index: Instruction index in 8-byte units.
        value_offset: None for the map itself (BPF_PSEUDO_MAP_FD); otherwise the
            byte offset into its value (BPF_PSEUDO_MAP_VALUE).
    """

    index: int
    map: str
    value_offset: int | None


class ExternKind(StrEnum):
    """What of the kernel an object may refer to by name."""

    KCONFIG = "kconfig"
    """A setting of the kernel's build, CONFIG_HZ, or LINUX_KERNEL_VERSION."""
    SYMBOL = "ksym"
    """The address of anything in /proc/kallsyms."""
    VARIABLE = "typed ksym"
    """The address of a variable that the kernel's BTF knows."""
    FUNCTION = "kfunc"
    """A kernel function to be called."""


@dataclass(frozen=True, slots=True)
class ExternSpec:
    """Something of the kernel's that the object refers to.

    Attributes:
        type_id: The object's type of the variable or value; of a function its Func; 0 for
            a SYMBOL.
        weak: The object can do without.
        offset, size: Where in the map ".kconfig" a KCONFIG is; else 0.
    """

    name: str
    kind: ExternKind
    type_id: int
    weak: bool
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class ExternReference:
    """The instruction at `index`, a call or a 16-byte load, wants the extern's address or id.

    KCONFIG externs have no references: they are values of the map ".kconfig".
    """

    index: int
    extern: str


class CoreKind(IntEnum):
    """enum bpf_core_relo_kind, include/uapi/linux/bpf.h."""

    FIELD_BYTE_OFFSET = 0
    FIELD_BYTE_SIZE = 1
    FIELD_EXISTS = 2
    FIELD_SIGNED = 3
    FIELD_LSHIFT_U64 = 4
    FIELD_RSHIFT_U64 = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUMVAL_EXISTS = 10
    ENUMVAL_VALUE = 11
    TYPE_MATCHES = 12


@dataclass(frozen=True, slots=True)
class CoreRelocation:
    """What the instruction at `index` needs to know about the running kernel's types.

    Attributes:
        access: Path from the type, as in "0:1:2"; see libbpf's relo_core.c.
    """

    index: int
    type_id: int
    access: str
    kind: CoreKind


@dataclass(frozen=True, slots=True)
class FuncInfo:
    """The BTF function that starts at instruction `index`."""

    index: int
    type_id: int


@dataclass(frozen=True, slots=True)
class LineInfo:
    """The source line of the instructions from `index` on; offsets into BTF's strings."""

    index: int
    file_off: int
    line_off: int
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class JumpTable:
    """Where indirect jumps of a program may lead.

    The kernel takes it as a map of type BPF_MAP_TYPE_INSN_ARRAY that one program only can
    use, so it is none of the object's maps; see jump_tables.py.

    Attributes:
        targets: The instruction that each slot stands for, in 8-byte units.
        references: Loads of its address; the map they name is this.
    """

    name: str
    targets: tuple[int, ...]
    references: tuple[MapReference, ...]


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """One program, its subprograms appended and in-object calls resolved.

    Attributes:
        section: As written in SEC().
        type: A BPF_PROG_TYPE_* number; 0 when the section's name says nothing, and then
            somebody has to say before it can be loaded.
        attach_type: The expected BPF_* attach type, or None where the type has none.
        attach_target: The name after the slash of a tracing section ("bpf_map_elem" of
            "iter/bpf_map_elem"), or None.
        instructions: Little- or big-endian as the object, 8 bytes each.
        autoload: False for SEC("?...").
    """

    name: str
    section: str
    type: int
    attach_type: int | None
    attach_target: str | None
    instructions: bytes
    map_references: tuple[MapReference, ...] = ()
    core_relocations: tuple[CoreRelocation, ...] = ()
    func_info: tuple[FuncInfo, ...] = ()
    line_info: tuple[LineInfo, ...] = ()
    flags: int = 0
    autoload: bool = True
    extern_references: tuple[ExternReference, ...] = ()
    jump_tables: tuple[JumpTable, ...] = ()


@dataclass(frozen=True)
class ObjectSpec:
    """Everything an object file defines.  Pure data; holds no descriptor.

    Attributes:
        kernel_version: What the section "version" says, as LINUX_VERSION_CODE; 0 without one.
        externs: By name.
        remarks: What of the file was left out, and why, in words; nothing a program needs.
    """

    name: str
    byteorder: Literal["little", "big"]
    license: str
    programs: Mapping[str, ProgramSpec] = field(repr=False)
    maps: Mapping[str, MapSpec] = field(repr=False)
    variables: Mapping[str, VariableSpec] = field(repr=False)
    btf: Btf | None = field(repr=False)
    kernel_version: int = 0
    externs: Mapping[str, ExternSpec] = field(default_factory=dict, repr=False)
    remarks: tuple[str, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return (
            f"<ObjectSpec {self.name}: {len(self.programs)} programs, {len(self.maps)} maps, "
            f"{len(self.variables)} variables>"
        )

    def with_max_entries(self, /, **sizes: int) -> ObjectSpec:
        """A copy in which the named maps hold that many entries.

        Raises:
            ObjectError: The object has no map of that name.
        """
        maps = dict(self.maps)
        for name, entries in sizes.items():
            if name not in maps:
                raise ObjectError(f"{self.name} has no map {name!r}")
            maps[name] = replace(maps[name], max_entries=entries)
        return replace(self, maps=maps)

    def with_program(
        self,
        name: str,
        *,
        type: int | None = None,
        attach_type: int | None = None,
        target: str | None = None,
        flags: int | None = None,
        autoload: bool | None = None,
    ) -> ObjectSpec:
        """A copy in which one program is of another kind; what is None stays as it was.

        Args:
            type: A BPF_PROG_TYPE_* number: needed where the section's name says none.
            attach_type: A BPF_* attach type.
            target: What it is for, as ProgramSpec.attach_target: a function, an iterator.
            flags: BPF_F_* of BPF_PROG_LOAD, BPF_F_SLEEPABLE for one.
            autoload: Whether load() loads it when not told otherwise.

        Raises:
            ObjectError: The object has no program of that name.
        """
        if name not in self.programs:
            raise ObjectError(f"{self.name} has no program {name!r}")
        old = self.programs[name]
        new = replace(
            old,
            type=old.type if type is None else type,
            attach_type=old.attach_type if attach_type is None else attach_type,
            attach_target=old.attach_target if target is None else target,
            flags=old.flags if flags is None else flags,
            autoload=old.autoload if autoload is None else autoload,
        )
        return replace(self, programs={**self.programs, name: new})

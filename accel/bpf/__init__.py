"""A BPF loader: object files become maps, programs and links in the kernel.

The life of an object has four verbs, and no others:

open    bytes of an ELF file -> ObjectSpec.  Pure: no kernel, no privilege, the
        same on every machine (opener.py and what it imports).
load    ObjectSpec -> Object: maps created, variables set, CO-RE relocations
        done against the running kernel, programs verified (object.py).
attach  a Program to a cgroup, a sockhash or an iterator -> Link (link.py).
close   every holder of a descriptor is a context manager; what is pinned or
        attached outlives it.

    spec = open_object("counter.bpf.o").with_max_entries(sockets=1024)
    with load(with_variables(spec, limit=9)) as obj:
        attach_sk_msg(obj.programs["pass"], obj.maps["sockets"])
        with attach_cgroup(obj.programs["track"], "/sys/fs/cgroup/web"):
            ...

One module knows the system call (syscall.py) and one its layouts (uapi.py).
What the kernel can do is found by trying (probe.py), never by its version.
Whatever goes wrong is an error from errors.py that says what was tried, what
the kernel answered and what would help.

What does not belong here: anything about pods, proxies or meshes.  This
package could be published on its own.
"""

from accel.bpf.btf import Btf, Struct
from accel.bpf.codec import Codec, codec_for
from accel.bpf.errors import (
    BpfError,
    NotSupported,
    ObjectError,
    ShapeError,
    VerifierRejected,
)
from accel.bpf.kernel_btf import KernelBtf
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.link import (
    Link,
    LinkInfo,
    attach_cgroup,
    attach_iter,
    attach_sk_msg,
    detach_sk_msg,
    read_iter,
)
from accel.bpf.map import Map, MapInfo
from accel.bpf.object import Object, load
from accel.bpf.opener import open_object
from accel.bpf.pin import on_bpffs, unpin
from accel.bpf.program import Program, ProgramInfo, iter_programs
from accel.bpf.ringbuf import RingBuffer
from accel.bpf.spec import MapSpec, ObjectSpec, ProgramSpec, VariableSpec
from accel.bpf.variable import Variable, Variables, with_variables

__all__ = [
    "AttachType",
    "BpfError",
    "Btf",
    "Codec",
    "KernelBtf",
    "Link",
    "LinkInfo",
    "Map",
    "MapInfo",
    "MapSpec",
    "MapType",
    "NotSupported",
    "Object",
    "ObjectError",
    "ObjectSpec",
    "Program",
    "ProgramInfo",
    "ProgramSpec",
    "ProgramType",
    "RingBuffer",
    "ShapeError",
    "Struct",
    "Variable",
    "VariableSpec",
    "Variables",
    "VerifierRejected",
    "attach_cgroup",
    "attach_iter",
    "attach_sk_msg",
    "codec_for",
    "detach_sk_msg",
    "iter_programs",
    "load",
    "on_bpffs",
    "open_object",
    "read_iter",
    "unpin",
    "with_variables",
]

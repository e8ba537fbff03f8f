"""Attaching to functions and tracepoints of the kernel by BTF id, and to other programs.

What a tracing program is for is settled when it is loaded; attaching only starts it.
"""

from __future__ import annotations

import errno

from accel.bpf.door import syscall, uapi
from accel.bpf.errors import BpfError
from accel.bpf.links.link import Link
from accel.bpf.loading.program import Program
from accel.bpf.loading.targets import function_id


def attach_tracing(program: Program, *, cookie: int = 0) -> Link:
    """Start an fentry, fexit, fmod_ret, tp_btf or lsm program, and an freplace one.

    An freplace program takes the place of the function it was loaded for; attach_freplace()
    puts it into another program.

    Args:
        cookie: What bpf_get_attach_cookie() gives to the program (Linux 5.19).

    Raises:
        BpfError: EBUSY when the function has another program that tolerates no second.
    """
    action = f"attach program {program.name} to what it was loaded for"
    what = f"of program {program.name}"
    if program.attach_type:
        attr = uapi.LinkCreate(prog_fd=program.fileno(), attach_type=program.attach_type)
        attr.tracing.cookie = cookie
        try:
            return Link(syscall.link_create(attr, action), what)
        except BpfError as error:
            # Links of tracing came by another command before 5.19, and without a cookie.
            if error.errno != errno.EINVAL or cookie:
                raise _explain(error) from None
    elif cookie:
        raise BpfError(
            action,
            errno.EINVAL,
            remedy="give a cookie to a program that was loaded here: the kernel does not tell the "
            "attach type of one opened from a pin",
        )
    try:
        return Link(syscall.raw_tracepoint_open(None, program, 0, action), what)
    except BpfError as error:
        raise _explain(error) from None


def attach_raw_tracepoint(program: Program, name: str, *, cookie: int = 0) -> Link:
    """Run a program at a tracepoint, with the tracepoint's arguments as the kernel has them.

    Args:
        program: A RAW_TRACEPOINT or RAW_TRACEPOINT_WRITABLE.
        name: "sys_enter": without what stands before the slash in tracefs.
        cookie: What bpf_get_attach_cookie() gives to the program (Linux 6.10).

    Raises:
        BpfError: ENOENT when there is no such tracepoint; EINVAL when it writes more than
            a writable tracepoint has.
    """
    action = f"attach program {program.name} to raw tracepoint {name}"
    try:
        fd = syscall.raw_tracepoint_open(name, program, cookie, action)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        raise BpfError(
            action,
            error.errno,
            remedy="name a tracepoint of this kernel, without its subsystem: sched_switch, not "
            "sched/sched_switch; those of modules need the module",
        ) from None
    return Link(fd, f"of program {program.name} to raw tracepoint {name}")


def attach_freplace(program: Program, target: Program, function: str) -> Link:
    """Put an extension in the place of a function of another program.

    Args:
        program: An EXT program, loaded for a function with the same parameters.
        target: A program loaded with its types.
        function: A global function of it, or its entry.

    Raises:
        BpfError: ENOENT when `target` tells of no such function; EBUSY when it was
            replaced already; EINVAL when the parameters differ.
    """
    action = f"attach program {program.name} to function {function} of program {target.name}"
    attr = uapi.LinkCreate(prog_fd=program.fileno(), target_fd=target.fileno())
    attr.tracing.target_btf_id = function_id(target, function, action)
    try:
        fd = syscall.link_create(attr, action)
    except BpfError as error:
        raise _explain(error) from None
    return Link(fd, f"of program {program.name} to function {function} of program {target.name}")


def _explain(error: BpfError) -> BpfError:
    if error.errno == errno.EBUSY:
        remedy = "close the link that has the function, or this program's own, if it has one"
    elif error.errno == errno.EOPNOTSUPP:
        remedy = "run a kernel built with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y"
    elif error.errno == errno.E2BIG:
        remedy = "detach one of the programs the function has: there is room for 38"
    else:
        return error
    return BpfError(error.action, error.errno, remedy=remedy)

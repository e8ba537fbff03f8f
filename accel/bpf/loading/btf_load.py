"""BPF_BTF_LOAD: an object's types, in words the running kernel understands."""

from __future__ import annotations

from errno import EINVAL

from accel.bpf.door import probe, syscall
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.format.btf import Btf, BtfFeature

_LOG_BYTES = 64 * 1024


def load_btf(btf: Btf, name: str) -> Fd:
    """Give the kernel an object's types.

    They are tried as they are; which features a kernel lacks is asked only of one that
    refuses them.

    Args:
        name: Of the object, for messages.

    Raises:
        BpfError: The kernel refused them, for the reason in the message.
    """
    action = f"load the BTF of {name}"
    data = btf.sanitised(frozenset(BtfFeature))
    try:
        return probe.within_memlock(lambda: syscall.btf_load(data, action))
    except BpfError as error:
        if error.errno != EINVAL:
            raise
        refusal = error
    older = btf.sanitised(probe.btf_features())
    if older != data:
        data = older
        try:
            return syscall.btf_load(data, action)
        except BpfError as error:
            refusal = error
    fd, log = syscall.btf_load_log(data, _LOG_BYTES, action)
    if fd is not None:
        return fd
    lines = log.strip().splitlines()
    if not lines:
        raise refusal
    raise BpfError(f"{action}: {lines[-1].strip()}", refusal.errno)

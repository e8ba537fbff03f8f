"""One mutant's trial: everything that is done to an object short of the kernel.

Run as a module it is the worker: it limits its own memory, opens one mutant after the
other, and writes a line of JSON for each that broke a promise.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from accel.bpf import BpfError, KernelBtf, ObjectError, ObjectSpec, open_object
from accel.bpf.format.btf import BtfFeature
from accel.bpf.format.codec import codec_for
from accel.bpf.loading.relocate import relocate
from accel.cli.object_facts import facts_of
from tests.fuzz.mutation import Subject

MEMORY_BYTES = 512 << 20
SECONDS = 5


class TooSlow(BaseException):
    """A mutant took longer than SECONDS."""


def try_object(data: bytes, kernel: KernelBtf | None) -> None:
    """Open an object and ask for all that a user would; ObjectError is a fine answer.

    Args:
        kernel: Types to relocate against; None leaves that out.
    """
    try:
        spec = open_object(data)
    except ObjectError:
        return
    repr(spec)
    _use_types(spec)
    with suppress(ObjectError):
        facts_of(spec, "", len(data), with_relocations=True)
    for program in spec.programs.values():
        if kernel is None or spec.btf is None or not program.core_relocations:
            continue
        try:
            relocate(program, spec.btf, kernel, spec.byteorder)
        except ObjectError:
            continue


def _use_types(spec: ObjectSpec) -> None:
    if spec.btf is None:
        return
    spec.btf.sanitised(frozenset())
    spec.btf.sanitised(frozenset(BtfFeature))
    ids = [variable.type_id for variable in spec.variables.values()]
    ids += [i for m in spec.maps.values() for i in (m.key_type_id, m.value_type_id)]
    for type_id in ids:
        try:
            codec = codec_for(spec.btf, type_id, byteorder=spec.byteorder)
            if codec.size <= 1 << 20:
                codec.unpack(bytes(codec.size))
        except ObjectError:
            continue


@contextmanager
def _deadline() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def complaint_about(data: bytes, kernel: KernelBtf | None) -> str | None:
    """What this mutant brought about that it must not; None when all is well."""
    try:
        with _deadline():
            try_object(data, kernel)
    except (Exception, TooSlow) as broken:  # noqa: BLE001 - that is what is looked for
        where = traceback.extract_tb(broken.__traceback__)
        inside = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in where][-3:]
        return f"{type(broken).__name__}: {str(broken)[:200]} ({' > '.join(inside)})"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--keep", type=Path, help="directory for the offending mutants")
    parser.add_argument("--no-kernel", action="store_true")
    parser.add_argument("--as-they-are", action="store_true", help="change nothing")
    parser.add_argument("objects", nargs="+", type=Path)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    subjects = [Subject(path.name, path.read_bytes()) for path in chosen.objects]
    kernel = None
    if not chosen.no_kernel:
        try:
            kernel = KernelBtf.open()
        except (ObjectError, BpfError):
            kernel = None
    for number in range(chosen.first, chosen.first + chosen.count):
        subject = subjects[number % len(subjects)]
        data = subject.data if chosen.as_they_are else subject.mutant(number)
        complaint = complaint_about(data, kernel)
        if complaint is None:
            continue
        if chosen.keep is not None:
            (chosen.keep / f"{subject.name}.{number}").write_bytes(data)
        print(
            json.dumps({"object": subject.name, "number": number, "broke": complaint}), flush=True
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"done": chosen.count, "peak_kib": peak}), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()

"""Verifier logs, recorded from kernels, and what they boil down to."""

from __future__ import annotations

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format.insn import POISON
from accel.bpf.loading.verifier import Finding, find, source_at
from accel.bpf.spec import LineInfo

# How every log ends.
STATISTICS = """\
verification time 41 usec
stack depth 0
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

UNINITIALISED = """\
0: R1=ctx() R10=fp0
0: (95) exit
R0 !read_ok
"""

BAD_CONTEXT = """\
0: R1=ctx() R10=fp0
; return ctx->nothing @ careless.bpf.c:9
0: (79) r0 = *(u64 *)(r1 +800)
invalid bpf_context access off=800 size=8
"""

FORBIDDEN_HELPER = """\
func#0 @0
0: R1=ctx(off=0,imm=0) R10=fp0
0: (85) call bpf_sk_lookup_tcp#84
unknown func bpf_sk_lookup_tcp#84
verification time 41 usec
stack depth 0
"""

# Linux 5.10: registers after every instruction, and the complaint has a detail.
OUT_OF_BOUNDS = """\
0: (b7) r1 = 0
1: R1_w=inv0 R10=fp0
1: (63) *(u32 *)(r10 -4) = r1
last_idx 1 first_idx 0
regs=2 stack=0 before 0: (b7) r1 = 0
2: R1_w=invP0 R10=fp0 fp-8=0000????
2: (85) call bpf_map_lookup_elem#1
3: R0_w=map_value_or_null(id=1,off=0,ks=4,vs=8,imm=0) R10=fp0 fp-8=mmmm????
3: (15) if r0 == 0x0 goto pc+1
 R0_w=map_value(id=0,off=0,ks=4,vs=8,imm=0) R10=fp0 fp-8=mmmm????
4: R0_w=map_value(id=0,off=0,ks=4,vs=8,imm=0) R10=fp0 fp-8=mmmm????
4: (79) r0 = *(u64 *)(r0 +8)
invalid access to map value, value_size=8 off=8 size=8
R0 min value is outside of the allowed memory range
"""

LEAK = """\
41: (95) exit
Unreleased reference id=2 alloc_insn=14
BPF_EXIT instruction in main prog would lead to reference leak
"""

TOO_COMPLEX = """\
1201: (55) if r8 != 0x0 goto pc-727
 R0=inv(id=0) R1=inv0 R10=fp0
The sequence of 8193 jumps is too complex.
"""

TOO_LARGE = """\
from 69 to 64: safe
BPF program is too large. Processed 1000001 insn
"""

NEVER_STARTED = "Tracing programs must provide btf_id\n"

POISONED = f"""\
10: (79) r0 = *(u64 *)(r1 +0)
11: R0_w=scalar() R1=ctx() R10=fp0
11: (85) call unknown#{POISON}
invalid func unknown#{POISON}
"""

# Linux 7.3: a report follows the complaint, and the statistics that.
REPORT = """\
0: R1=ctx() R10=fp0
; return ctx->nothing @ careless.bpf.c:9
4: (95) exit
R0 !read_ok

Verification failed: Register Type Safety: Unreadable register

Reason:
  R0 has never been initialized on this path,
  so the verifier cannot use it as an input.

At:
  insn 4
        | ^-- error: R0 is not readable
  Instruction context:
      3 | (bf) r6 = r1
  >>> 4 | (95) exit

Causal path:
  no retained diagnostic events on this path

Suggestion:
  Initialize R0 on every path before this instruction.

"""

# The same kernel when all of the report but its end was cut off.
REPORT_WITHOUT_DETAILS = "Verification failed: Limits: Program too complex\n\n"

POISONED_REPORT = f"""\
11: (85) call unknown#{POISON}
invalid func unknown#{POISON}

Verification failed: Calls: Unknown function

Reason:
  The program calls helper {POISON}, which does not exist.

At:
  insn 11
"""


@pytest.mark.parametrize(
    ("log", "line", "instruction"),
    [
        (UNINITIALISED, "R0 !read_ok", 0),
        (BAD_CONTEXT, "invalid bpf_context access off=800 size=8", 0),
        (FORBIDDEN_HELPER, "unknown func bpf_sk_lookup_tcp#84", 0),
        (
            OUT_OF_BOUNDS,
            (
                "invalid access to map value, value_size=8 off=8 size=8; "
                "R0 min value is outside of the allowed memory range"
            ),
            4,
        ),
        (
            LEAK,
            (
                "Unreleased reference id=2 alloc_insn=14; "
                "BPF_EXIT instruction in main prog would lead to reference leak"
            ),
            41,
        ),
        (TOO_COMPLEX, "The sequence of 8193 jumps is too complex.", 1201),
        (TOO_LARGE, "BPF program is too large. Processed 1000001 insn", None),
        (NEVER_STARTED, "Tracing programs must provide btf_id", None),
        ("", "", None),
        ("0: (95) exit\n", "0: (95) exit", 0),
    ],
)
def test_the_line_that_matters_is_found(log: str, line: str, instruction: int | None) -> None:
    assert find(log + STATISTICS) == Finding(line, instruction)
    assert find(log) == Finding(line, instruction)


def test_a_report_is_understood() -> None:
    """Title and reason on one line; the kernel's suggestion apart."""
    assert find(REPORT + STATISTICS) == Finding(
        "Register Type Safety: Unreadable register: R0 has never been initialized on this path, "
        "so the verifier cannot use it as an input.",
        4,
        "Initialize R0 on every path before this instruction.",
    )


def test_a_report_may_lack_parts() -> None:
    assert find(REPORT_WITHOUT_DETAILS + STATISTICS) == Finding("Limits: Program too complex")


@pytest.mark.parametrize("log", [POISONED, POISONED_REPORT])
def test_what_relocation_could_not_do_is_said_in_its_words(log: str) -> None:
    reason = "no kernel type has sock.sk_wishes"

    assert find(log + STATISTICS, {11: reason, 20: "another"}) == Finding(reason, 11)


@pytest.mark.parametrize("number", [2_001_000_004, 2_002_000_117])
def test_what_was_not_created_or_found_is_named_likewise(number: int) -> None:
    """A map, or a kfunc: libbpf's numbers for them."""
    log = f"7: (85) call unknown#{number}\ninvalid func unknown#{number}\n"

    assert find(log + STATISTICS, {7: "map big was not created"}).line == "map big was not created"
    assert find(log.replace(str(number), "2003000000"), {7: "no"}).line != "no"


def test_another_complaint_is_not_blamed_on_relocation() -> None:
    """Poisoned instructions are harmless where the program never goes."""
    assert find(UNINITIALISED + STATISTICS, {0: "no kernel type has it"}).line == "R0 !read_ok"


@pytest.mark.parametrize(("instruction", "line"), [(0, 3), (1, 3), (2, 5), (90, 5)])
def test_the_source_line_covers_instructions_to_the_next(instruction: int, line: int) -> None:
    strings = {1: "/src/bpf/careless.bpf.c", 2: "\treturn 0;", 3: "  exit();"}
    lines = (LineInfo(0, 1, 2, 3, 0), LineInfo(2, 1, 3, 5, 0))
    text = {3: "return 0;", 5: "exit();"}[line]

    assert source_at(instruction, lines, strings.__getitem__) == f"careless.bpf.c:{line}: {text}"


def test_a_text_that_cannot_be_read_is_no_source() -> None:
    def string(offset: int) -> str:
        raise ObjectError(f"no name at offset {offset}")

    assert source_at(3, (LineInfo(0, 1, 2, 3, 0),), string) is None


def test_without_line_info_there_is_no_source() -> None:
    assert source_at(3, (), str) is None
    assert source_at(3, (LineInfo(4, 0, 0, 1, 0),), str) is None

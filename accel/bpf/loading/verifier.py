"""The verifier's log, reduced to the line that matters.

Pure: text in, a Finding out.  Two formats are understood.  Until Linux 7.2 the
log is a trace of what was checked, the complaint last but for statistics; from
7.3 on the complaint is followed by a report with headings ("Verification
failed:", "Reason:", "At:", "Suggestion:"), described in cilium/ebpf#2111.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.spec import LineInfo

_INSTRUCTION = re.compile(r"\s*(\d+): \([0-9a-f]{2}\) ")
_STATISTICS = re.compile(
    r"processed \d+ insns|verification time \d+|stack depth \d|max_states_per_insn|insns \d+ max"
)
# What the log says on the way: instructions, source, states, jumps, precision tracking.
_TRACE = re.compile(
    r"\s*\d+: "
    r"|;"
    r"|\s*(frame\d+: ?)?R\d+(_\w+)?=|\s*(frame\d+:)?\s*fp-?\d+"
    r"|(from )?\d+ to \d+|from \d+ to|func#\d+ @|Live regs before insn|Validating |Func#\d+ "
    r"|mark_precise|last_idx|regs=|parent (didn't have|already had)|propagating|caller:|callee:"
    r"|returning from callee|to caller at|safe|  ?\d+: [.0-9]+ \("
)
# Complaints that end in a detail about a register say what is wrong one line before.
_DETAIL = re.compile(r"\s*R\d+ |\t|invalid bpf_context access|BPF_EXIT instruction")

# Helpers that are none: what stands where relocation failed (insn.POISON), where a map was not
# created, where a kfunc is missing.  The same numbers as libbpf's.
_POISON = re.compile(r"#(195896080|200[12]\d{6})\b")

_FAILED = re.compile(r"Verification failed: (.+)")
_HEADING = re.compile(r"[A-Z][A-Za-z ]*:$")
_AT_INSTRUCTION = re.compile(r"\s*insn (\d+)")


class Finding(NamedTuple):
    """What a verifier log boils down to.

    Attributes:
        line: The line that matters; "" when the log says nothing.
        instruction: Index of the instruction it speaks of, or None.
        suggestion: What the kernel itself would do about it (from 7.3), or None.
    """

    line: str
    instruction: int | None = None
    suggestion: str | None = None


def find(log: str, poisoned: Mapping[int, str] | None = None) -> Finding:
    """The line that matters.

    Args:
        log: What the verifier wrote, maybe cut at its start.
        poisoned: What relocation says of instructions it could not make, by index;
            it replaces the verifier's "invalid func unknown#195896080".
    """
    finding = _find_report(log) or _find_last(log)
    reason = (poisoned or {}).get(-1 if finding.instruction is None else finding.instruction)
    if reason is not None and _POISON.search(log):
        return Finding(reason, finding.instruction)
    return finding


def _find_report(log: str) -> Finding | None:
    """The report of 7.3, or None when the log has none."""
    failed = _FAILED.search(log)
    if failed is None:
        return None
    report = _headings(log[failed.end() :])
    at = _AT_INSTRUCTION.search(report.get("At", ""))
    title, reason = failed[1].strip(), _sentence(report.get("Reason", ""))
    return Finding(
        f"{title}: {reason}" if reason else title,
        int(at[1]) if at else None,
        _sentence(report.get("Suggestion", "")) or None,
    )


def _headings(report: str) -> dict[str, str]:
    """What stands under each heading; a heading is at the margin and ends in a colon."""
    parts: dict[str, str] = {}
    heading = ""
    for line in report.splitlines():
        if _HEADING.match(line):
            heading = line.rstrip(":")
        elif _STATISTICS.match(line):
            break
        else:
            parts[heading] = parts.get(heading, "") + line + "\n"
    return parts


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _find_last(log: str) -> Finding:
    """The last line that is neither trace nor statistics, in the format until 7.2."""
    lines = [line for line in log.splitlines() if line.strip() and not _STATISTICS.match(line)]
    for position in range(len(lines) - 1, -1, -1):
        if not _TRACE.match(lines[position]):
            break
    else:
        return Finding(lines[-1].strip() if lines else "", _last_instruction(lines))
    line = lines[position].strip()
    before = lines[position - 1] if position else ""
    if _DETAIL.match(lines[position]) and before and not _TRACE.match(before):
        line = f"{before.strip()}; {line}"
    return Finding(line, _last_instruction(lines[: position + 1]))


def _last_instruction(lines: list[str]) -> int | None:
    for line in reversed(lines):
        match = _INSTRUCTION.match(line)
        if match:
            return int(match[1])
    return None


def source_at(
    instruction: int, line_info: Sequence[LineInfo], string: Callable[[int], str]
) -> str | None:
    """The source of an instruction, as in "file.c:12: return 0;", or None when unknown.

    Args:
        line_info: Ascending.
        string: What stands at an offset of BTF's strings.
    """
    position = bisect_right(line_info, instruction, key=lambda entry: entry.index)
    if position == 0:
        return None
    found = line_info[position - 1]
    try:
        file = string(found.file_off).rpartition("/")[2]
        return f"{file}:{found.line}: {string(found.line_off).strip()}"
    except ObjectError:  # one too long to be read; what it would have explained matters more
        return None

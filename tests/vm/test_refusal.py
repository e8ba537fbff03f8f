"""Kernels and configurations that accel must leave alone, each really booted."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from tests.vm.machine import run

pytestmark = pytest.mark.vm


GUEST = "python -m tests.vm.guest_refusal"


class Case(NamedTuple):
    """A machine, and the reasons it gives: the beginning of each.

    Attributes:
        then: For the guest's shell, and the reasons that it gives after that.
    """

    kernel: str
    reasons: tuple[str, ...]
    append: str = ""
    then: tuple[str, tuple[str, ...]] | None = None


LEFT_ALONE = {
    "no BTF and no sockmap": Case(
        "5.10-bare",
        (
            "kernel types (BTF): /sys/kernel/btf/vmlinux does not exist",
            "sockmap: this kernel has no BPF_MAP_TYPE_SOCKHASH",
        ),
    ),
    "older than 5.10": Case("4.19", ("kernel: Linux 4.19.",)),
    "locked down, which then cannot be seen": Case(
        "5.10",
        ("lockdown: the kernel is locked down for confidentiality",),
        append="lockdown=confidentiality",
        then=("umount /sys/kernel/security", ("self-test: ",)),
    ),
}


def _facts(kernel: str, script: str, append: str = "") -> list[Any]:
    """What tests.vm.guest_refusal prints, each time that the script runs it."""
    ran = run(kernel, "sh", "-ec", script, append=append)
    assert ran.code == 0, ran
    return [json.loads(line) for line in ran.out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("case", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_left_alone(case: Case) -> None:
    """check says why and exits 1; run idles with the same reasons, and nothing is touched."""
    script, expected = GUEST, [case.reasons]
    if case.then is not None:
        script = f"{GUEST}; {case.then[0]}; {GUEST}"
        expected.append(case.then[1])
    for reasons, facts in zip(expected, _facts(case.kernel, script, case.append), strict=True):
        _check_left_alone(facts, reasons)


def _check_left_alone(facts: Any, expected: tuple[str, ...]) -> None:
    check = facts["check"]
    assert (check["code"], check["said"]["usable"]) == (1, False)
    reasons = check["said"]["reasons"]
    assert len(reasons) >= len(expected)
    for beginning in expected:
        assert any(reason.startswith(beginning) for reason in reasons), reasons

    assert facts["running"]
    status = facts["status"]
    assert (status["code"], status["said"]["health"]) == (1, "idle")
    assert status["said"]["idle_reasons"] == reasons
    for reason in reasons:
        assert reason in facts["status_text"]
        assert f"this node is not accelerated: {reason}" in facts["log"]
    assert "Traceback" not in facts["log"]
    assert facts["present"] == facts["before"]
    assert facts["code"] == 0


def test_trust_is_refused_on_a_kernel_with_a_known_crash() -> None:
    (facts,) = _facts("5.10-unpatched", f"{GUEST} --trust-apps")

    check = facts["check"]["said"]
    assert (facts["check"]["code"], check["usable"], check["trust_possible"]) == (0, True, False)
    (bug,) = [found for found in check["findings"] if "CVE-2023-53133" in found["detail"]]
    assert bug["status"] == "warn"
    assert "applications are not trusted" in bug["detail"]
    assert "fixed in 5.10.258" in bug["remedy"]
    assert facts["status"]["said"]["health"] == "accelerating"
    for hop, way in (("app-sidecar", "response"), ("sidecar-app", "request")):
        path = facts["status"]["said"]["strategy"][hop][way]
        assert not path["accelerated"]
        assert path["reason"].startswith("trust refused: ")


def test_a_host_of_cgroup_v1_alone() -> None:
    """accel finds a hierarchy of its own, attaches there, and leaves no mount."""
    (facts,) = _facts("5.10", f"umount /sys/fs/cgroup; {GUEST}")

    check = facts["check"]["said"]
    assert check["usable"]
    (finding,) = [found for found in check["findings"] if found["name"] == "cgroup v2"]
    assert finding["status"] == "warn"
    assert facts["status"]["said"]["health"] == "accelerating"
    assert facts["status"]["said"]["agent"]["cgroup"] is None
    assert len(facts["present"]["links"]) == 2  # of accel_sockops and of accel_guard

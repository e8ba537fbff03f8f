"""`accel object inspect`, which needs no kernel; loading is in tests/kernel."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from accel.bpf import Btf, ages, open_object
from accel.bpf.helper_names import helper_name
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.spec import CoreKind, CoreRelocation
from accel.cli import c_words, kernel_words, main
from tests.bpf.conftest import Compile

Capture = pytest.CaptureFixture[str]


def inspected(capsys: Capture, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    assert main(["object", "inspect", "--json", *map(str, arguments)]) == code
    objects: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["objects"]
    return objects


def printed(capsys: Capture, *arguments: object) -> str:
    assert main(["object", "inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def named(facts: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [item for item in facts if item["name"] == name]
    return found


# --- the document ----------------------------------------------------------------------------


def test_programs(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("loading", target))
    assert facts["byteorder"] == {"bpfel": "little", "bpfeb": "big"}[target]
    assert (facts["name"], facts["license"]) == ("loading", "Dual BSD/GPL")
    assert facts["size"] == compiled("loading", target).stat().st_size
    assert [program["name"] for program in facts["programs"]] == [
        *("track", "pass", "list", "wishes", "careless", "nowhere"),
    ]
    track = named(facts["programs"], "track")
    assert (track["type"], track["attach_type"]) == ("SOCK_OPS", "CGROUP_SOCK_OPS")
    assert {"sockets", "events", "inserted", ".rodata", ".bss"} == set(track["maps"])
    assert track["autoload"]
    iterator = named(facts["programs"], "list")
    assert (iterator["attach_type"], iterator["attach_target"]) == ("TRACE_ITER", "sockmap")
    assert iterator["core_relocations"] == 3
    wishes = named(facts["programs"], "wishes")
    assert (wishes["section"], wishes["autoload"]) == ("?sk_msg", False)


def test_subprograms_by_name(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("calls", target))
    first = named(facts["programs"], "first")
    assert {"hidden", "shared", "leaf", "visit"} == set(first["subprograms"])
    assert named(facts["programs"], "alone")["subprograms"] == []
    assert {"name": "calls between functions", "since": "4.16"} in facts["needs"]["features"]


def test_maps(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("maps", target))
    typed = named(facts["maps"], "typed")
    assert typed["type"] == "HASH"
    assert typed["key"] == {"size": 4, "type": "__u32"}
    assert typed["value"] == {"size": 24, "type": "struct value"}
    assert (typed["max_entries"], typed["flags"]) == (100, ["NO_PREALLOC"])
    assert (typed["pin_by_name"], typed["frozen"], typed["inner"]) == (True, False, None)
    sized = named(facts["maps"], "sized")
    assert (sized["key"], sized["numa_node"]) == ({"size": 12, "type": None}, 1)
    assert named(facts["maps"], "filter")["map_extra"] == 5
    inner = named(facts["maps"], "outer")["inner"]
    assert (inner["type"], inner["max_entries"]) == ("ARRAY", 4)


def test_what_maps_hold_from_the_start(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("map_values", target))
    assert named(facts["maps"], "by_index")["holds"] == [
        {"slot": 0, "name": "one"},
        {"slot": 2, "name": "two"},
        {"slot": 3, "name": "one"},
    ]
    assert "holds [1] second, [3] first" in printed(capsys, compiled("map_values", target))


def test_struct_ops(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("struct_ops", target))
    linked = named(facts["maps"], "linked")
    assert (linked["struct_ops"]["type"], linked["struct_ops"]["is_link"]) == (
        *("tcp_congestion_ops", True),
    )
    assert {"member": "ssthresh", "program": "threshold"} in linked["struct_ops"]["callbacks"]
    assert not named(facts["maps"], "optional")["autocreate"]
    assert facts["needs"]["kernel_btf"]


def test_externs(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("externs", target))
    kinds = {extern["kind"] for extern in facts["externs"]}
    assert {"kconfig", "kfunc"} <= kinds
    needs = facts["needs"]
    assert {extern["name"] for extern in facts["externs"]} == {
        *(*needs["kfuncs"], *needs["symbols"], *needs["kconfig"]),
    }
    used = {name for program in facts["programs"] for name in program["externs"]}
    assert used <= {extern["name"] for extern in facts["externs"]}
    assert needs["kfuncs"][0] in printed(capsys, compiled("externs", target))


def test_variables_and_what_they_start_with(
    compiled: Compile, target: str, capsys: Capture
) -> None:
    (facts,) = inspected(capsys, compiled("variables", target))
    values = {variable["name"]: variable["value"] for variable in facts["variables"]}
    assert values == {
        "zeroed": 0,
        "first": 11,
        "pair": {"left": 1, "right": 2},
        "constant": 7,
        "text": "accel",
        "apart": 5,
    }
    pair = named(facts["variables"], "pair")
    assert (pair["type"], pair["section"], pair["size"]) == ("volatile struct pair", ".data", 8)
    rodata = named(facts["maps"], ".rodata")
    assert (rodata["frozen"], rodata["flags"]) == (True, ["RDONLY_PROG"])
    assert rodata["initial_bytes"] == rodata["value"]["size"]


def test_needs(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("loading", target))
    needs = facts["needs"]
    assert needs["linux"] == "5.8"
    assert {"name": "RINGBUF", "since": "5.8"} in needs["map_types"]
    assert {"name": "TRACING", "since": "5.5"} in needs["program_types"]
    assert {"number": 130, "name": "bpf_ringbuf_output"} in needs["helpers"]
    assert needs["kernel_btf"]
    assert {"DATASEC", "FUNC_PROTO", "STRUCT"} <= set(needs["btf_kinds"])
    assert not inspected(capsys, compiled("variables", target))[0]["needs"]["kernel_btf"]


def test_relocations_in_words_of_c(compiled: Compile, target: str, capsys: Capture) -> None:
    path = compiled("core", target)
    assert inspected(capsys, path)[0]["relocations"] is None
    (facts,) = inspected(capsys, "--relocations", path)
    asked = {(item["kind"], item["access"]) for item in facts["relocations"]}
    assert {
        ("FIELD_BYTE_OFFSET", "struct sock.__sk_common.skc_v6_daddr.in6_u.u6_addr32[2]"),
        ("FIELD_BYTE_OFFSET", "struct task_struct[1].pid"),
        ("FIELD_RSHIFT_U64", "struct sock.sk_kern_sock"),
        ("TYPE_SIZE", "struct never_was"),
        ("ENUMVAL_VALUE", "enum bpf_map_type___local: BPF_MAP_TYPE_WISHES"),
    } <= asked
    assert len(facts["relocations"]) == sum(p["core_relocations"] for p in facts["programs"])
    source = facts["relocations"][0]["source"]
    assert re.fullmatch(r"core\.bpf\.c:\d+: out = tp->copied_seq;", source)


def test_instructions_between_source_lines(compiled: Compile, target: str, capsys: Capture) -> None:
    path = compiled("loading", target)
    (facts,) = inspected(capsys, path, "--disassemble", "pass")
    (lines,) = facts["listings"].values()
    assert lines[0] == "pass:"
    assert any(line.endswith("call bpf_skc_to_tcp_sock#137") for line in lines)
    assert any(re.search(r"r\d = map \.data \+ 0 ll", line) for line in lines)
    assert any(line.endswith("// FIELD_BYTE_OFFSET struct sock.sk_rcvbuf") for line in lines)
    assert any(re.fullmatch(r"; loading\.bpf\.c:\d+: return SK_PASS;", line) for line in lines)
    assert set(inspected(capsys, path, "--disassemble")[0]["listings"]) == {
        program["name"] for program in facts["programs"]
    }


def test_a_listing_names_functions(compiled: Compile, target: str, capsys: Capture) -> None:
    (facts,) = inspected(capsys, compiled("calls", target), "--disassemble=first")
    lines = facts["listings"]["first"]
    assert {"first:", "hidden:", "shared:", "leaf:", "visit:"} <= set(lines)
    assert any(line.endswith("call hidden") for line in lines)
    assert any(line.endswith("= function visit ll") for line in lines)


# --- for people ------------------------------------------------------------------------------


def test_tables(compiled: Compile, target: str, capsys: Capture) -> None:
    out = printed(capsys, compiled("maps", target))
    lines = out.splitlines()
    assert lines[0].split() == ["object", "maps"]
    (typed,) = [line for line in lines if line.startswith("typed")]
    assert typed.split("  ")[-1].strip() == "pinned by name"
    assert "of ARRAY __u32, 4 B -> __u64, 8 B, max_entries 4" in out
    out = printed(capsys, compiled("variables", target))
    assert '{"left": 1, "right": 2}' in out


def test_names_do_not_drive_the_terminal(
    compiled: Compile, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "evil.o"
    path.write_bytes(compiled("loading").read_bytes().replace(b"nowhere\0", b"\x1b[2Jabc\0"))
    assert main(["object", "inspect", "--disassemble", "--", str(path)]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out
    assert "\\x1b[2Jabc" in captured.out
    assert main(["object", "inspect", f"{tmp_path}/\x1b[2J"]) == 1
    assert "\x1b" not in capsys.readouterr().err


# --- several files, and wrong ones -----------------------------------------------------------


def test_an_error_concerns_its_file_only(
    compiled: Compile, tmp_path: Path, capsys: Capture
) -> None:
    broken = tmp_path / "broken.o"
    broken.write_bytes(compiled("maps").read_bytes()[:200])
    files = (compiled("maps"), broken, tmp_path / "missing.o", compiled("calls"))
    assert main(["object", "inspect", "--json", *map(str, files)]) == 1
    captured = capsys.readouterr()
    maps, wrong, missing, calls = json.loads(captured.out)["objects"]
    assert (maps["name"], calls["name"]) == ("maps", "calls")
    assert set(wrong) == set(missing) == {"file", "error", "place", "remedy"}
    assert wrong["file"] == str(broken)
    assert "No such file" in missing["error"]
    assert str(broken) in captured.err
    assert "Traceback" not in captured.err
    assert main(["object", "inspect", *map(str, files)]) == 1
    assert capsys.readouterr().out.count("byte order") == 2


def test_standard_input(
    compiled: Compile, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = compiled("calls").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    (facts,) = inspected(capsys, "-")
    assert (facts["file"], facts["size"]) == ("-", len(data))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no ELF")))
    (facts,) = inspected(capsys, "-", code=1)
    assert facts["error"].startswith("standard input: ")


def test_a_name_that_is_not_utf8(compiled: Compile, tmp_path: Path, capsys: Capture) -> None:
    odd = tmp_path / "odd\udcff.o"
    odd.write_bytes(compiled("calls").read_bytes())
    (facts, missing) = inspected(capsys, odd, tmp_path / "none\udcfe", code=1)
    assert facts["file"].endswith("odd\\xff.o")
    assert "none\\xfe" in missing["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("inspect", "--relocations=1", "x.o"),
        ("load",),
        ("load", "x.o", "--set", "limit"),
        ("load", "x.o", "--max-entries", "m=many"),
        ("load", "x.o", "--max-entries", "m=0"),
        (),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["object", *arguments])
    assert ended.value.code == 2
    assert "usage: accel object" in capsys.readouterr().err


def test_a_program_that_is_not_there(compiled: Compile, capsys: Capture) -> None:
    path = compiled("calls")
    assert main(["object", "inspect", str(path), "--disassemble", "third"]) == 1
    assert "name one of first, second, alone" in capsys.readouterr().err


def test_disassemble_before_the_only_file(compiled: Compile, capsys: Capture) -> None:
    (facts,) = inspected(capsys, "--disassemble", compiled("calls"))
    assert set(facts["listings"]) == {"first", "second", "alone"}


@pytest.mark.parametrize("name", ["loading", "core", "types", "maps"])
def test_mutants_are_shown_or_refused(
    name: str, compiled: Compile, target: str, tmp_path: Path, capsys: Capture
) -> None:
    """Whatever stands in a file, it is facts or one error; never another exception."""
    whole = compiled(name, target).read_bytes()
    dice = random.Random(name)
    path = tmp_path / "mutant.o"
    for _ in range(25):
        mutant = bytearray(whole)
        for _ in range(dice.choice((1, 2, 8))):
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        path.write_bytes(mutant)
        code = main(["object", "inspect", "--relocations", "--disassemble", "--", str(path)])
        captured = capsys.readouterr()
        assert code == (1 if captured.err else 0)


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("flat", "struct flat flat"),
        ("renamed", "flat_t renamed"),
        ("colour", "enum colour colour"),
        ("truth", "_Bool truth"),
        ("numbers", "__u64 numbers[3]"),
        ("wide", "__int128 wide"),
        ("function", "int (*function)(int, char *)"),
        ("forward", "struct unknown *forward"),
        ("fraction", "float fraction"),
    ],
)
def test_declarations(variable: str, words: str, compiled: Compile, target: str) -> None:
    spec = open_object(compiled("types", target))
    assert spec.btf is not None
    found = spec.variables[variable]
    assert c_words.declaration(spec.btf, found.type_id, variable) == words


@pytest.fixture
def types(compiled: Compile) -> Btf:
    spec = open_object(compiled("types"))
    assert spec.btf is not None
    return spec.btf


def test_members_are_declared_as_they_were(types: Btf) -> None:
    members = {m.name: m.type_id for m in types.struct("nested").members if m.name}
    words = {name: c_words.declaration(types, type_id, name) for name, type_id in members.items()}
    assert words["grid"] == "__u16 grid[2][3]"
    assert words["pointer"] == "void *pointer"
    assert words["qualified"] == "const volatile __u32 qualified"


@pytest.mark.parametrize(
    "path", ["", "0:99", "0:x", "7:7:7", "0:1:2:3:4", "-1", "0:-1", "0" * 9999]
)
def test_an_access_that_leads_nowhere_stays_numbers(path: str, types: Btf) -> None:
    found = types.find("nested")
    assert found is not None
    relocation = CoreRelocation(0, found[0], path, CoreKind.FIELD_EXISTS)
    assert c_words.access(types, relocation).startswith("struct nested")


def test_helper_names_are_the_kernels() -> None:
    header = Path("/usr/include/linux/bpf.h")
    if not header.exists():
        pytest.skip("needs the kernel's headers")
    text = header.read_text()
    listed = text[text.index("#define __BPF_FUNC_MAPPER(FN)") :]
    names = re.findall(r"\bFN\((\w+)", listed.partition("/*")[0])
    assert len(names) > 100
    for number, name in enumerate(names):
        assert helper_name(number) == ("" if name == "unspec" else f"bpf_{name}")


def test_kinds_have_an_age() -> None:
    assert set(MapType) - set(ages.MAP_TYPE_SINCE) == {MapType.UNSPEC, MapType.RHASH}
    assert set(ProgramType) - set(ages.PROGRAM_TYPE_SINCE) == {ProgramType.UNSPEC}


def test_numbers_without_a_name() -> None:
    assert helper_name(0) == helper_name(99999) == ""
    assert kernel_words.kind(MapType, 999) == "999"
    assert kernel_words.map_flags(1 << 31 | 1) == ["NO_PREALLOC", "0x80000000"]
    assert kernel_words.program_flags(1 << 4) == ["SLEEPABLE"]

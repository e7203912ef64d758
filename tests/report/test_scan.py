"""The scan's report: JSON against its schema, text in 80 columns, SARIF against the standard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from splitlock.report.sarif import Sarif
from splitlock.report.scan import SCHEMA, File, Finding, Json, Report, Summary
from splitlock.report.scan_text import Text

DOCS = Path(__file__).parents[2] / "docs"
SARIF_SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0-used.schema.json").read_text())
RULES = [("VMLAUNCH", "VMLAUNCH (vmx)"), ("WRMSR", "WRMSR (msr)"), ("FOREIGN-CODE", "FOREIGN-CODE")]


def finding(kind: str, offset: int | None = 16, **fields: Any) -> Finding:
    whole: dict[str, Any] = {
        "kind": kind,
        "certainty": "exact",
        "section": ".text" if offset is not None else None,
        "offset": f"{offset:#x}" if offset is not None else None,
        "function": "start_guest",
        "instruction": kind.lower(),
        "evidence": "instruction",
        **fields,
    }
    return Finding(**whole)


def file(**fields: Any) -> File:
    whole: dict[str, Any] = {
        "path": "/modules/a b.ko",
        "member": None,
        "name": "toy",
        "sha256": "00" * 32,
        "verdict": "allow",
        "reason": "nothing found",
        "log": "",
        "because": [],
        "sld_safe": False,
        "sld_aware": False,
        "intree": False,
        "signer": None,
        "vermagic": None,
        "depends": [],
        "srcversion": None,
        "findings": [],
        **fields,
    }
    return File(**whole)


FILES = [
    file(
        verdict="refuse",
        reason="VMLAUNCH: a hypervisor, neither sld_safe nor SLD-aware",
        log="module: Module has VMX instructions and is not marked 'sld_safe', boot with: 'split_lock_detect=off': toy",
        because=["VMLAUNCH"],
        findings=[
            finding("WRMSR", 4, evidence="relocation pv_ops+0xf8 (write_msr)", instruction="call [0]"),
            finding("VMLAUNCH", 32),
            finding("VMLAUNCH", 64),
            finding("WRMSR", 80, certainty="possible", function=None),
        ],
    ),
    file(
        path="linux.deb",
        member="./lib/modules/6.1/kernel/foreign.ko",
        name="foreign",
        verdict="disable",
        reason="because",
        because=["FOREIGN-CODE"],
        findings=[finding("FOREIGN-CODE", None, function=None, instruction=None, evidence="imports vmap")],
        signer="Debian Secure Boot CA",
        depends=["kvm", "irqbypass"],
        vermagic="6.1.0 SMP ",
        intree=True,
    ),
    file(verdict="refuse", reason="imports vmap: would no longer link", log="toy: Unknown symbol vmap (err -2)"),
    file(path="broken.ko", name=None, sha256=None, verdict="error", reason="not an ELF file"),
    file(),
]


def summary(files: list[File] = FILES) -> Summary:
    found = Summary()
    for one in files:
        found.add(one)
    found.add_clean(1000)
    found.complete = True
    return found


def test_numbers() -> None:
    found = summary()
    assert (found.files, found.clean, found.allow, found.refuse, found.disable, found.error) == (
        1005,
        1001,
        1001,
        2,
        1,
        1,
    )
    assert msgspec.to_builtins(found.kinds) == {
        "WRMSR": {"files": 1, "instructions": 0, "possible": 1, "evidence": 1},
        "VMLAUNCH": {"files": 1, "instructions": 2, "possible": 0, "evidence": 0},
        "FOREIGN-CODE": {"files": 1, "instructions": 0, "possible": 0, "evidence": 1},
    }
    assert Summary().kinds == {}  # no dictionary is shared


@pytest.mark.parametrize("files", [FILES, FILES[:1], []])
def test_json(files: list[File]) -> None:
    rendering = Json("refuse")
    raw = rendering.begin() + b"".join(rendering.file(one) for one in files) + rendering.end(summary(files))
    report = Report.from_json(raw)
    assert (report.schema, report.policy, report.files) == (SCHEMA, "refuse", files)
    schema = json.loads((DOCS / "scan.schema.json").read_text())
    jsonschema.validate(json.loads(raw), schema)
    assert raw == msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    with pytest.raises(msgspec.ValidationError):
        Report.from_json(raw.replace(b"scan/1", b"scan/0"))


def test_published_schema_is_current() -> None:
    assert json.loads((DOCS / "scan.schema.json").read_text()) == msgspec.json.schema(Report)


@pytest.mark.parametrize("files", [FILES, FILES[:1], FILES[3:], []])
def test_sarif(files: list[File]) -> None:
    rendering = Sarif("refuse", "1.0", RULES)
    raw = rendering.begin() + b"".join(rendering.file(one) for one in files) + rendering.end(summary(files))
    log = json.loads(raw)
    jsonschema.validate(log, SARIF_SCHEMA)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert run["invocations"][0]["executionSuccessful"] is not any(one.verdict == "error" for one in files)


def test_sarif_says_what_matters() -> None:
    rendering = Sarif("refuse", "1.0", RULES)
    parts = [rendering.begin(), *map(rendering.file, FILES), rendering.end(summary())]
    (run,) = json.loads(b"".join(parts))["runs"]
    found = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert found == [
        ("WRMSR", "note"),
        ("VMLAUNCH", "error"),
        ("VMLAUNCH", "error"),
        ("WRMSR", "note"),
        ("FOREIGN-CODE", "warning"),
        ("POLICY", "error"),
    ]
    (location,) = run["results"][1]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "file:///modules/a%20b.ko"
    assert location["physicalLocation"]["address"]["fullyQualifiedName"] == ".text+0x20"
    (failure,) = run["invocations"][0]["toolExecutionNotifications"]
    assert failure["message"]["text"] == "not an ELF file"
    prints = [result["partialFingerprints"]["splitlock/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)


def text(files: list[File], **options: bool) -> str:
    rendering = Text("refuse", **options)
    return (rendering.begin() + b"".join(rendering.file(one) for one in files) + rendering.end(summary(files))).decode()


def test_text() -> None:
    assert text(FILES[:2]) == (
        "refuse   toy: VMLAUNCH: a hypervisor, neither sld_safe nor SLD-aware\n"
        "         /modules/a b.ko\n"
        "            2 VMLAUNCH      .text+0x20  start_guest  vmlaunch\n"
        "            1 WRMSR         .text+0x4  start_guest\n"
        "                            relocation pv_ops+0xf8 (write_msr)\n"
        "            1 WRMSR (possible) .text+0x50  wrmsr\n"
        "         log: module: Module has VMX instructions and is not marked 'sld_safe',\n"
        "              boot with: 'split_lock_detect=off': toy\n"
        "disable  foreign: because\n"
        "         linux.deb: ./lib/modules/6.1/kernel/foreign.ko\n"
        "            1 FOREIGN-CODE  imports vmap\n"
        "1,002 files scanned, policy refuse: 1 refused, 1 would turn detection off, 1,000\n"
        "  allowed\n"
        "found: VMLAUNCH 2, FOREIGN-CODE 1, WRMSR 1 (+1 possible)\n"
    )


def test_text_fits_and_cannot_drive_a_terminal() -> None:
    nasty = file(verdict="refuse", reason="long " * 40, path="/x" * 100, name="\x1b[2Jevil\n", log="l" * 100)
    for line in text([nasty, *FILES]).splitlines():
        assert len(line) <= 80 or " " not in line.strip().removeprefix("log: ")
        assert "\x1b" not in line


def test_quiet_verbose_colour() -> None:
    assert text([file()], quiet=True) == ""
    assert "foreign" in text(FILES, quiet=True)
    everything = text(FILES, verbose=True)
    assert ".text+0x40" in everything
    assert "intree, signed by Debian Secure Boot CA, vermagic 6.1.0 SMP, depends on kvm irqbypass" in " ".join(
        everything.split()
    )
    assert text(FILES[:1], colour=True).startswith("\x1b[1;31mrefuse\x1b[0m   toy: ")


def test_interrupted() -> None:
    partial = summary([])
    partial.complete = False
    assert Text("refuse", quiet=True).end(partial).startswith(b"interrupted")

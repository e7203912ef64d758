"""All modules of a distribution's kernel, judged in that kernel as the exact scanner judges them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from guard.guests import decisions, gate_payload, judged, start
from guard.machine import Machine, kernel
from modules.debian import modules

from splitlock.guard import layout
from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge

pytestmark = pytest.mark.slow
KIND = "cloud-amd64"
BATCH = 200  # modules between two readings of the log


def evidence(said: str) -> str:
    """A finding's evidence as the gate has it: of a relocation the class."""
    return next((word for word in layout.EVIDENCE.values() if word != "imports" and said.startswith(word)), said)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = gate_payload(tmp_path_factory.mktemp("payload"), KIND, with_ways=False)
    with Machine(kernel(KIND), payload, memory=1536) as machine:
        yield machine


def test_all_modules_are_judged_as_the_scanner_judges_them(guest: Machine) -> None:
    start(guest)
    listed = sorted(guest.run("find /lib/modules/$(uname -r) -name '*.ko'").ok().out.split())
    assert len(listed) == len(modules(KIND)) > 1100
    said: dict[str, str] = {}
    logged: list[dict[str, Any]] = []
    for at in range(0, len(listed), BATCH):
        said |= judged(guest, listed[at : at + BATCH])
        logged = decisions(guest)
    assert len(logged) == len(listed)
    by_name = {decision["name"]: decision for decision in logged}
    policy = load("refuse")
    wrong: dict[str, str] = {}
    different: dict[str, str] = {}
    refused = set()
    for path in listed:
        file = path.rsplit("/", 1)[1]
        data = modules(KIND)[file].read_bytes()
        found = scan(data)
        verdict = judge(found, policy, data)
        assert found.name is not None
        decision = by_name[found.name]
        if verdict.verdict == "refuse":
            refused.add(found.name)
        if (decision["verdict"], decision["refused"]) != (verdict.verdict, said[path] == "EPERM"):
            wrong[file] = f"{decision['verdict']}, {said[path]}; the scanner: {verdict.verdict}, {verdict.reason}"
        # each kind and evidence is named once, all findings are counted
        kinds = {(each.kind, evidence(each.evidence)) for each in found.findings}
        decided = {(each["kind"], each["evidence"]) for each in decision["findings"]}
        named = len(decision["findings"])
        same = kinds == decided if named < layout.FINDINGS else decided <= kinds
        if decision["total"] != len(found.findings) or named != len(decided) or not same:
            both = f"{decision['total']} findings, the scanner has {len(found.findings)}"
            different[file] = f"{both}: {sorted(decided ^ kinds)}"
    assert not wrong
    assert not different
    print(f"{len(listed)} modules, {len(refused)} refused: {sorted(refused)}")
    nanoseconds = sorted(decision["nanoseconds"] for decision in logged)
    print(
        f"a decision: median {nanoseconds[len(nanoseconds) // 2] / 1e6:.2f} ms, longest {nanoseconds[-1] / 1e6:.1f} ms"
    )

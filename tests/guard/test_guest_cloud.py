"""All modules of a distribution's kernel, judged in that kernel as the exact scanner judges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from guard.guests import decisions, gate_payload, judged, start
from guard.machine import Machine, kernel
from modules.debian import modules

from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge

pytestmark = pytest.mark.slow
KIND = "cloud-amd64"
BATCH = 200  # modules between two readings of the log


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
        decision = by_name[found.name]
        if verdict.verdict == "refuse":
            refused.add(found.name)
        if (decision["verdict"], decision["refused"]) != (verdict.verdict, said[path] == "EPERM"):
            wrong[file] = f"{decision['verdict']}, {said[path]}; the scanner: {verdict.verdict}, {verdict.reason}"
        kinds = Counter((finding.kind, finding.certainty == "possible") for finding in found.findings)
        decided = Counter((finding["kind"], finding["possible"]) for finding in decision["findings"])
        if decision["total"] != len(found.findings) or (decision["total"] <= 24 and kinds != decided):
            different[file] = f"found {dict(decided)}, {decision['total']} in all; the scanner: {dict(kinds)}"
    assert not wrong
    assert not different
    print(f"{len(listed)} modules, {len(refused)} refused: {sorted(refused)}")
    nanoseconds = sorted(decision["nanoseconds"] for decision in logged)
    print(
        f"a decision: median {nanoseconds[len(nanoseconds) // 2] / 1e6:.2f} ms, longest {nanoseconds[-1] / 1e6:.1f} ms"
    )

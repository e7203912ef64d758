"""VirtualBox under the shipped policies: the second and the first answer, with their holes closed and open."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import Verdict, judge

pytestmark = pytest.mark.slow


def verdicts(path: Path) -> dict[str, Verdict]:
    data = path.read_bytes()
    return {policy: judge(scan(data), load(policy), data) for policy in ("refuse", "disable", "kernel-2020")}


def test_the_hypervisor(virtualbox: Path) -> None:
    found = verdicts(virtualbox / "usr/lib/virtualbox/VMMR0.r0")
    assert {policy: answer.verdict for policy, answer in found.items()} == {
        "refuse": "refuse",
        "disable": "disable",
        "kernel-2020": "allow",  # the loader never sees it
    }
    assert "a hypervisor, neither sld_safe nor SLD-aware" in found["refuse"].reason


def test_its_driver(vboxdrv: Path) -> None:
    found = verdicts(vboxdrv)
    assert {policy: answer.verdict for policy, answer in found.items()} == {
        "refuse": "refuse",
        "disable": "allow",
        "kernel-2020": "allow",  # not one VMX instruction in it
    }
    assert found["refuse"].reason == "FOREIGN-CODE: can run ring-0 code that the module loader has not seen"

"""The table of hypervisors: it answers in every case, and `status` and `simulate` make the same of it."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from splitlock.host.judgement.judge import World, guest_fate
from splitlock.linux.detection import Kernel, Processor
from splitlock.linux.hypervisors import AnyKind, Case, Kind, alignment_check
from splitlock.linux.parameter import MODES
from splitlock.linux.versions import release
from splitlock.model.cpu import Access
from splitlock.model.guest import Guest
from splitlock.model.kernel import VALUES, Linux, Locks
from splitlock.model.machine import VM, Host, inside
from splitlock.report.judgement import Fate
from splitlock.report.judgement import Kind as Judged

EITHER = (False, True)
CASES = [Case(*one) for one in product(EITHER, EITHER, EITHER, (1, 2), EITHER, EITHER, EITHER)]
#: What the model calls that which the judgement says of a guest; the model's guest is one that `#DB` kills.
SAME: dict[str, Fate] = {"executed": "goes-on", "slowed": "slowed", "sigbus": "killed", "emulated": "goes-on"}


@pytest.mark.parametrize("kind", get_args(AnyKind))
def test_every_case_has_an_answer(kind: AnyKind) -> None:
    answers = {alignment_check(kind, case).does for case in CASES}
    assert ("unknown" in answers) is (answers == {"unknown"}) is (kind not in get_args(Kind))


def test_every_kind_of_the_report_is_in_the_table() -> None:
    assert set(get_args(Judged)) <= set(get_args(AnyKind))


@pytest.mark.parametrize(("kind", "amd"), [("kvm", False), ("kvm", True), ("virtualbox", False)])
@pytest.mark.parametrize("version", ["5.10.0", "5.15.100", "6.1.120", "6.8.0", "6.13.2", "7.2.0"])
def test_status_and_simulate_agree(kind: Kind, amd: bool, version: str) -> None:
    known = release(version)
    assert known
    for split, bus, mitigate, (mode, value) in product(
        (not amd, False), (True, False), (True, False), zip(MODES, VALUES, strict=True)
    ):
        processor = Processor(split, bus, amd)
        host = Host(processor, Linux.of(version, value, mitigate))
        result = inside(host, VM((kind,), Guest(None)), Access(), Locks())
        expected = SAME[result.fate] if result.raised else "nothing"
        assert guest_fate(kind, World(Kernel(known), processor, mitigate), mode)[0] == expected, (processor, mode)

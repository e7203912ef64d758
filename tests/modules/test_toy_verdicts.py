"""Each toy module, built for real, under each shipped policy."""

from __future__ import annotations

from pathlib import Path

import pytest
from modules.test_toys import EXPECTED

from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge

REFUSE, DISABLE, ALLOW = "refuse", "disable", "allow"

# toy: verdicts under refuse, disable, kernel-2020, break:__vmalloc
VERDICTS = {
    "launch": (REFUSE, DISABLE, REFUSE, ALLOW),
    "launch_init": (REFUSE, DISABLE, ALLOW, ALLOW),  # not in .text
    "launch_cold": (REFUSE, DISABLE, ALLOW, ALLOW),  # not in .text
    "launch_safe": (ALLOW, ALLOW, ALLOW, ALLOW),
    "on": (REFUSE, DISABLE, REFUSE, ALLOW),
    "cr4": (REFUSE, ALLOW, REFUSE, ALLOW),
    "cr4_accessor": (REFUSE, ALLOW, ALLOW, ALLOW),  # no instruction
    "paravirt": (REFUSE, ALLOW, ALLOW, ALLOW),  # no instruction
    "decoy": (ALLOW, ALLOW, ALLOW, ALLOW),
    "data_before": (REFUSE, DISABLE, ALLOW, ALLOW),  # out of step
    "jump_over": (ALLOW, ALLOW, ALLOW, ALLOW),  # possible only: reported
    "blob": (ALLOW, ALLOW, ALLOW, ALLOW),
    "vmalloc": (ALLOW, ALLOW, ALLOW, REFUSE),
    "foreign": (REFUSE, ALLOW, ALLOW, ALLOW),
    "guest_call": (ALLOW, ALLOW, REFUSE, ALLOW),  # VMCALL was on the list
    "clean": (ALLOW, ALLOW, ALLOW, ALLOW),
}


def test_every_toy_is_judged() -> None:
    assert VERDICTS.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(toys: dict[str, Path], name: str) -> None:
    data = toys[name].read_bytes()
    found = scan(data)
    policies = ("refuse", "disable", "kernel-2020", "break:__vmalloc")
    assert tuple(judge(found, load(policy), data).verdict for policy in policies) == VERDICTS[name]


def test_why(toys: dict[str, Path]) -> None:
    reasons = {name: judge(scan(path.read_bytes()), load("refuse")).reason for name, path in toys.items()}
    assert reasons["launch_safe"].startswith("marked sld_safe; its own word")
    assert reasons["cr4_accessor"].startswith("MOV CR4: writes CR4 through cr4_update_irqsoff")
    assert reasons["jump_over"] == "possible findings only"
    assert reasons["paravirt"].startswith("MOV DRn: writes control or debug registers")


def test_possible_findings_count_where_a_policy_says_so(toys: dict[str, Path], tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text('certainty = "possible"\n[[rule]]\nverdict = "refuse"\nkinds = ["vmx"]\n')
    assert judge(scan(toys["jump_over"].read_bytes()), load(str(strict))).verdict == "refuse"
    assert judge(scan(toys["decoy"].read_bytes()), load(str(strict))).verdict == "allow"

#!/usr/bin/env python3
"""docs/guard-ways.md from what the guest tests saw (build/guests/ways-*.json): `scripts/guard_ways.py >FILE`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STORE = Path(os.environ.get("SPLITLOCK_GUESTS", ROOT / "build" / "guests"))
_HEAD = """\
# Ways in

Each was tried twice in each kernel, booted in QEMU by `tests/guard/test_guest_ways.py`: without the gate, which proves
that it is a way in, and with the gate under the policy `refuse`. The module holds VMLAUNCH (or what is named) and never
runs it; that it is really there is read from the live kernel. "in": loaded; "refused": kept out by the gate; "kernel":
the kernel or the tool has none of it, with or without the gate. A race tells how many of the loads that it won held the
instruction.

This is what we tried. It is not all there is:
[ways past the gate](guard.md#ways-past-it) are known that are not in this list.

"""
_TAIL = """
Not tried, since outside of what a gate at load time can see: root who takes the gate down (`guard stop` is for root,
and BPF programs can be unloaded), kexec into another kernel, /dev/mem and the like, code that a resident module brings
in later, modules that were there before the gate, and another kernel booted next.
"""


def came_of(line: dict[str, Any]) -> str:
    """What came of one try."""
    if line["said"].startswith("{"):
        race = json.loads(line["said"])
        if not race["loads"] and not race["refused"]:
            return f"kernel: {line['kernel'].split(':')[0]}"
        refused = f", {race['refused']} refused" if race["refused"] else ""
        return f"{race['armed']} of {race['loads']} loads{refused}"
    if line["kernel"] and not line["loaded"]:
        return f"kernel: {line['kernel'].split(':')[0]}"
    if line["armed"]:
        return "in"
    if line["expect"] == "clean" and line["loaded"]:
        return "only the good one"
    return "refused"


def main() -> None:
    """All kernels side by side."""
    results = [json.loads(path.read_text()) for path in sorted(STORE.glob("ways-*.json"))]
    print(_HEAD, end="")
    kernels = [result["kernel"] for result in results]
    tried = [line for line in results[0]["with"] if not line["kernel"]]
    print(
        f"{len(results[0]['with'])} ways, {len(tried)} of them real without the gate; Linux {' and '.join(kernels)}.\n"
    )
    group = ""
    for line in results[0]["with"]:
        if line["group"] != group:
            group = line["group"]
            print(f"\n## {group[0].upper()}{group[1:]}\n\n| way | without the gate | with the gate |\n|---|---|---|")
        cells = []
        for which in ("without", "with"):
            found = [next(each for each in r[which] if each["way"] == line["way"]) for r in results]
            said = list(dict.fromkeys(came_of(each) for each in found))
            cells.append(" · ".join(came_of(each) for each in found) if len(said) > 1 else said[0])
        note = line["expect"].partition(": ")[2] if line["expect"].startswith("let in") else ""
        if line["expect"] == "possible" and line["armed"]:
            note = "on no instruction boundary: a possible finding, reported"
        print(f"| {line['title'].replace('|', 'and')}{f' ({note})' if note else ''} | {' | '.join(cells)} |")
    print(_TAIL, end="")


if __name__ == "__main__":
    main()

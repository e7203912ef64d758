"""Guests with the gate in them: what the guest tests share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guard import ways
from guard.machine import Done, Machine, kernel, splitlock_payload

from splitlock.guard import judge

REFUSED = "EPERM"


def gate_payload(directory: Path, kind: str, *, with_ways: bool = True) -> Path:
    """A payload with this splitlock, its gate, and what ways/ has for a kernel of ways.HEADERS."""
    judge.built(judge.OBJECT)
    splitlock_payload(directory)
    if with_ways:
        ways.payload(kind, kernel(kind).release, directory)
    else:
        (directory / "ways").mkdir()
    for script in ways.HERE.glob("*.py"):
        (directory / "ways" / script.name).write_bytes(script.read_bytes())
    return directory


def start(guest: Machine, *options: str) -> Done:
    """Bring the gate up inside, the BPF one or none."""
    return guest.splitlock("guard", "start", "--gate", "bpf", *options).ok()


def decisions(guest: Machine) -> list[dict[str, Any]]:
    """All decisions so far."""
    return guest.splitlock("guard", "log", "--format", "json").ok().lines()


def judged(guest: Machine, paths: Iterable[str], together: int = 1) -> dict[str, str]:
    """What the kernel says to each module (ways/judged.py): errno's name by path. None of them is started."""
    command = ["python3", "/payload/ways/judged.py", "--together", str(together)]
    done = guest.run(command, input="\n".join(paths), timeout=900).ok()
    return {line["path"]: line["errno"] for line in done.lines()}


def try_ways(guest: Machine, *names: str, seconds: float = 2) -> list[dict[str, Any]]:
    """Try the ways in (ways/ways.py), all or those named; races take `seconds` each."""
    command = ["python3", "/payload/ways/ways.py", *names]
    done = guest.run(command, timeout=600, env={"WAY_SECONDS": str(seconds)})
    assert done.status == 0, f"{done.err}\n{guest.console()[-3000:]}"
    return done.lines()


def gets_in(guest: Machine) -> bool:
    """Does the refused module load now, by finit_module?"""
    (line,) = try_ways(guest, "finit")
    return bool(line["armed"])

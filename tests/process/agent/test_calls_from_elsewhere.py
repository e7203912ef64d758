"""A system call whose number another function sets, and which it jumps to: watched, or said.

That is how compilers' cold parts go back. Each form is tried with a call that executes /bin/true, and with one that
the agent has nothing to do with.
"""

from __future__ import annotations

from itertools import product

import pytest
from process.agent.conftest import AsAlone, Compiled

_SAID = "calls the kernel at"
EXEC, GETPID = 59, 39


def _function(name: str, text: str) -> str:
    head = rf" .type {name}, @function\n {name}:\n .cfi_startproc\n "
    return rf".pushsection .text.{name}, \"ax\"\n{head}{text}\n .cfi_endproc\n .size {name}, .-{name}\n .popsection\n "


def _bare(name: str, text: str) -> str:
    return rf".pushsection .text.{name}, \"ax\"\n {name}: {text}\n .popsection\n "


#: how the function that has the call comes to it, `place` being where it may be entered
HOLDERS = {
    "apart": r"mov $39, %%eax\n place: nop\n syscall\n ret",
    "near": r"mov $39, %%eax\n place: syscall\n ret",
    "far": r"mov $39, %%eax\n place: xor %%r9d, %%r9d\n test %%r12, %%r12\n je 1f\n nop\n 1: syscall\n ret",
    "loads": r"mov $39, %%eax\n place: mov $1, %%r12d\n syscall\n ret",
    "split": r"mov $39, %%eax\n jmp 1f\n place: nop\n 1: syscall\n ret",
}
#: how another goes there, with the number {n}
COMERS = {
    "jump": r"mov ${n}, %%eax\n jmp place",
    "branch": r"mov ${n}, %%eax\n test %%rsp, %%rsp\n jnz place\n ret",
    "call": r"mov ${n}, %%eax\n call place\n ret",
    "kept": r"lea place(%%rip), %%r12\n mov ${n}, %%eax\n jmp *%%r12",
    "register": r"mov ${n}, %%r11d\n mov %%r11d, %%eax\n jmp place",
}
#: one of both has no frame and no size. An address that is kept outside of functions is not looked for.
BARE = [
    *product(("apart", "near", "loads"), ("jump", "kept"), ["holder"]),
    *product(("apart", "near"), ["jump"], ["comer"]),
]


def _form(holder: str, comer: str, number: int, bare: str) -> str:
    held = (_bare if "holder" in bare else _function)("holder", HOLDERS[holder])
    come = (_bare if "comer" in bare else _function)("comer", COMERS[comer].replace("{n}", str(number)))
    return held + come + r"call comer"


@pytest.mark.parametrize(("holder", "comer", "bare"), [*product(HOLDERS, COMERS, [""]), *BARE])
def test_what_it_executes_is_watched_or_said(
    as_alone: AsAlone, compiled: Compiled, holder: str, comer: str, bare: str
) -> None:
    program = compiled("own_call", f"-DNUMBER={EXEC}", f'-DFORM="{_form(holder, comer, EXEC, bare)}"', "-O2")
    without, run = as_alone([program]), as_alone([program, "/bin/true"])
    assert run.status == 0
    is_watched = run.report["watched"]["images"] > without.report["watched"]["images"]
    assert is_watched or any(_SAID in u["reason"] for u in run.report["unmonitored"])


@pytest.mark.parametrize("holder", HOLDERS)
def test_nothing_is_said_where_each_way_sets_another(as_alone: AsAlone, compiled: Compiled, holder: str) -> None:
    """To where the number is set there may be any way."""
    entered = HOLDERS[holder].replace("place: ", "").replace("mov $39", "place: mov $39")
    held, come = _function("holder", entered), _function("comer", COMERS["jump"].replace("{n}", str(EXEC)))
    form = held + come + r"call comer"
    run = as_alone([compiled("own_call", f"-DNUMBER={GETPID}", f'-DFORM="{form}"', "-O2"), "/bin/true"])
    assert not [u for u in run.report["unmonitored"] if _SAID in u["reason"]]

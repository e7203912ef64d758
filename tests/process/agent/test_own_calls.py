"""System calls by a program's own instructions: what they start is watched, or the report says that it may not be.

Each way to come by a call's number is tried with a call that executes /bin/true, where one of the two must be so, and
with one that the agent has nothing to do with, of which nothing may be said.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from process.agent.conftest import AsAlone, Compiled

_OUTSIDE = r"call outside\n .pushsection .text.hand, \"ax\"\n outside: "
#: {n}: the number. What the compiler makes of them is in its usual order, in a function, or by hand outside of any.
FORMS = {
    "plain": r"mov ${n}, %%eax\n syscall",
    "wide": r"mov ${n}, %%rax\n syscall",
    "apart": r"mov ${n}, %%eax\n mov %%rdx, %%rdx\n syscall",
    "apart-2": r"mov ${n}, %%eax\n xor %%r12d, %%r12d\n nop\n xor %%r9d, %%r9d\n syscall",
    "register": r"mov ${n}, %%r12d\n mov %%r12d, %%eax\n syscall",
    "constant-after": r"mov ${n}, %%eax\n mov $1, %%r12d\n syscall",
    "pushed": r"push ${n}\n pop %%rax\n syscall",
    "memory": r"mov number(%%rip), %%rax\n syscall",
    "go": r"lea -256(%%rsp), %%rsp\n movq ${n}, 8(%%rsp)\n mov 8(%%rsp), %%rax\n syscall\n lea 256(%%rsp), %%rsp",
    "sum": r"mov ${m}, %%eax\n inc %%eax\n syscall",
    "lea": r"xor %%eax, %%eax\n lea {n}(%%rax), %%eax\n syscall",
    "two-ways": r"mov ${n}, %%eax\n test %%rdi, %%rdi\n jnz 1f\n mov $39, %%eax\n 1: syscall",
    "into": r"mov ${n}, %%eax\n test %%rdi, %%rdi\n jnz 1f\n mov $60, %%eax\n nop\n 1: syscall",
    "called": r"mov ${n}, %%eax\n call 1f\n jmp 2f\n 1: syscall\n ret\n 2:",
    "callee": r"call 1f\n syscall\n jmp 2f\n 1: mov ${n}, %%eax\n ret\n 2:",
    "jumped": r"lea 1f(%%rip), %%r12\n mov ${n}, %%eax\n jmp *%%r12\n mov $39, %%eax\n nop\n 1: syscall",
    "outside": _OUTSIDE + r"mov ${n}, %%eax\n syscall\n ret\n .popsection",
    "outside-apart": _OUTSIDE + r"mov ${n}, %%eax\n nop\n syscall\n ret\n .popsection",
    "outside-register": _OUTSIDE + r"mov ${n}, %%r12d\n mov %%r12d, %%eax\n syscall\n ret\n .popsection",
}
EXEC, EXECVEAT, GETPID = 59, 322, 39
_SAID = "calls the kernel at"


def _built(compiled: Compiled, form: str, number: int, *flags: str) -> Path:
    text = FORMS[form].replace("{n}", str(number)).replace("{m}", str(number - 1))
    return compiled("own_call", f"-DNUMBER={number}", f'-DFORM="{text}"', *flags)


@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-s", "-fno-asynchronous-unwind-tables")], ids=["", "stripped"])
@pytest.mark.parametrize("number", [EXEC, EXECVEAT])
@pytest.mark.parametrize("form", FORMS)
def test_what_it_executes_is_watched_or_said(
    as_alone: AsAlone, compiled: Compiled, form: str, number: int, flags: tuple[str, ...]
) -> None:
    program = _built(compiled, form, number, *flags)
    without, run = as_alone([program]), as_alone([program, "/bin/true"])
    assert run.status == 0
    is_watched = run.report["watched"]["images"] > without.report["watched"]["images"]
    is_said = any(_SAID in u["reason"] for u in run.report["unmonitored"])
    assert is_watched or is_said
    assert is_watched or form not in ("plain", "wide") + ("constant-after",) * ("-s" not in flags)


@pytest.mark.parametrize(
    "form", ["plain", "wide", "apart", "apart-2", "register", "constant-after", "two-ways", "outside"]
)
def test_nothing_is_said_of_another(as_alone: AsAlone, compiled: Compiled, form: str) -> None:
    run = as_alone([_built(compiled, form, GETPID, "-O2"), "/bin/true"])
    assert not [u for u in run.report["unmonitored"] if _SAID in u["reason"]]


@pytest.mark.parametrize("rights", [1, 3, 5, 7])
def test_memory_that_it_maps_itself(as_alone: AsAlone, compiled: Compiled, rights: int) -> None:
    """mmap(2): what is not executable is nobody's affair."""
    form = rf"mov $9, %%eax\n mov ${rights}, %%edx\n nop\n syscall"
    run = as_alone([compiled("own_call", "-DNUMBER=39", f'-DFORM="{form}"', "-O2"), "/bin/true"])
    assert any(_SAID in u["reason"] for u in run.report["unmonitored"]) == bool(rights & 4)

"""A handler that steps over the instruction that has faulted, wherever in a run it is: generated code, by each engine.

No operand crosses a line, so no lock splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from process.agent.conftest import AsAlone
from programs import gen_forms

POINTERS = ["rdi", "rsi", "rdx", "rcx", "r8"]
LOCKED = [
    "lock incl ({})", "lock addl $1, ({})", "lock incl 0x1000({})", "lock addl $3, 0x1000({})", "xchg %ebx, ({})",
    "lock xadd %eax, ({})", "lock cmpxchg %ebx, ({})", "lock incw ({})", "xchg %rbx, 0x1000({})", "lock btsl $3, ({})",
]  # fmt: skip
OTHERS = [
    "mov ({}), %ebx", "add ({}), %eax", "mov %eax, ({})", "incl ({})", "movl $7, 0x1000({})", "inc %eax", "nop",
    "add $3, %ebx", "mov $5, %eax", "lea (%rax, %rbx), %r9",
]  # fmt: skip

PROGRAM = r"""
#define _GNU_SOURCE
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

enum {{ POINTERS = {pointers}, FUNCTIONS = {functions} }};
typedef long function(void *, void *, void *, void *, void *);
__asm__(".text\n"
{code});
{declared}
static function *const functions[] = {{ {names} }};
extern const short steps[]; /* of each function distances of its instructions from its start, then 0 */
static const short *steps_of;
static function *current;
static long faults, at, unwound;
static __attribute__((aligned(64))) char memory[POINTERS][0x2000];

static void step_over(int number, siginfo_t *info, void *context)
{{
    (void)info;
    greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    void *frames[16];
    for (int i = 0, count = backtrace(frames, 16); i < count; i++)
        unwound += frames[i] == (void *)*rip;
    for (const short *step = steps_of; *step; step++)
        if ((char *)current + *step == (char *)*rip && step[1]) {{
            *rip += step[1] - *step;
            faults++;
            at = step - steps;
            return;
        }}
    printf("%d at an address that is no instruction's\n", number);
    fflush(stdout);
    __builtin_trap();
}}

int main(void)
{{
    void *frames[2];
    backtrace(frames, 2);
    struct sigaction action = {{.sa_sigaction = step_over, .sa_flags = SA_SIGINFO}};
    sigaction(SIGSEGV, &action, NULL);
    steps_of = steps;
    for (int f = 0; f < FUNCTIONS; f++) {{
        current = functions[f];
        for (int bad = 0; bad < 1 << POINTERS; bad++) {{
            char *pointers[POINTERS];
            memset(memory, 0, sizeof memory);
            for (int i = 0; i < POINTERS; i++)
                pointers[i] = bad >> i & 1 ? NULL : memory[i];
            long result = functions[f](pointers[0], pointers[1], pointers[2], pointers[3], pointers[4]);
            printf("%d %d: %#lx, %ld faults, last at %ld, %ld unwound,", f, bad, result, faults, at, unwound);
            for (int i = 0; i < POINTERS; i++)
                printf(" %#lx %#lx", *(long *)memory[i], *(long *)(memory[i] + 0x1000));
            puts("");
        }}
        while (*steps_of++)
            ;
    }}
    return 0;
}}
"""


def _shape(chance: random.Random) -> list[str]:
    """A few instructions, a locked one among them at least."""
    count = chance.randint(1, 8)
    chosen = [chance.choice(LOCKED if chance.random() < 0.5 else OTHERS) for _ in range(count)]
    chosen[chance.randrange(count)] = chance.choice(LOCKED)
    return [each.format(f"%{chance.choice(POINTERS)}") for each in chosen]


def _source(seed: int, functions: int) -> str:
    chance = random.Random(seed)
    lines, steps, names = [], [], []
    for number in range(functions):
        name = f"f{number}"
        names.append(name)
        lines += [f".globl {name}", f".type {name}, @function", f"{name}: .cfi_startproc", "push %rbx"]
        lines += [".cfi_adjust_cfa_offset 8", "mov $3, %ebx", "mov $9, %eax"]
        body = [*_shape(chance), "add %rbx, %rax"]
        for place, each in enumerate(body):
            steps.append(f".L{name}_{place} - {name}")
            lines.append(f".L{name}_{place}: {each}")
        steps.append("0")
        lines += ["pop %rbx", ".cfi_adjust_cfa_offset -8", "ret", ".cfi_endproc", f".size {name}, . - {name}"]
    # distances: of an instruction whose address is known somewhere no run would be made
    lines += [".data", ".balign 8", ".globl steps", "steps:", *(f".short {step}" for step in steps), ".text"]
    code = "\n".join(f'    "{line}\\n"' for line in lines)
    declared = "extern function " + ", ".join(names) + ";"
    return PROGRAM.format(
        pointers=len(POINTERS), functions=functions, code=code, declared=declared, names=", ".join(names)
    )


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    def build(seed: int) -> Path:
        place = tmp_path_factory.mktemp("skips")
        (place / "skips.c").write_text(_source(seed, 60))
        return gen_forms.compile_c(place / "skips", [place / "skips.c"])

    return build


@pytest.mark.parametrize("engine", ["agent", "ptrace"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_instruction_that_is_stepped_over(
    as_alone: AsAlone, generated: Callable[[int], Path], seed: int, engine: str
) -> None:
    run = as_alone([generated(seed)])
    assert run.status == 0, run.out
    assert run.out.count("\n") == 60 * 32
    assert run.report["hits"] == 0

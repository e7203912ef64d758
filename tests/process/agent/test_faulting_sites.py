"""A lock that faults has not executed, and is not counted; one that `fatal` has stopped is. No lock executes here.

By generated code: each way in which an instruction says where its operand is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Run
from process.agent.conftest import Compiled
from programs import gen_forms

BASE, PAGE = 0x2000_0000, 4096
REGISTERS = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"]
NARROW = ["eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "r8d", "r9d", "r10d", "r11d", "r12d", "r13d", "r14d", "r15d"]
SUFFIXES = {2: "w", 4: "l", 8: "q"}

PROGRAM = r"""
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

void *skip_to, *fs_base, *gs_base;
static long calls, stopped;
__asm__(".text\n"
{code});
{declared}
static void (*const functions[])(void) = {{ {names} }};

static void step_over(int number, siginfo_t *info, void *context)
{{
    (void)info;
    calls++;
    stopped += number == SIGBUS;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (greg_t)skip_to;
}}

int main(void)
{{
    struct sigaction action = {{.sa_sigaction = step_over, .sa_flags = SA_SIGINFO}};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    __asm__("rdfsbase %0" : "=r"(fs_base));
    mmap((void *){base}, {page}, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mmap((void *)({base} + {page}), {page}, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    extern char data[];
    if ({far})
        mprotect(data + {page}, {page}, PROT_NONE);
    for (unsigned i = 0; i < sizeof functions / sizeof *functions; i++)
        functions[i]();
    printf("%ld calls, %ld for SIGBUS\n", calls, stopped);
    return 0;
}}
"""


class Form(NamedTuple):
    """What is done before an instruction, and it."""

    before: list[str]
    code: str


def _addressed(at: int, inside: int, size: int) -> list[Form]:
    """The operand at an address, or so far inside the program's own data."""
    lock = f"lock add{SUFFIXES[size]} $1,"
    plain = [Form([f"mov ${at}, %{r}"], f"{lock} (%{r})") for r in REGISTERS]
    plain += [Form([f"mov ${at - away}, %rdi"], f"{lock} {away}(%rdi)") for away in (1, -3, 64, 0x1000, -0x12345)]
    for index in REGISTERS:
        base = "rdi" if index != "rdi" else "r12"
        for scale in (1, 2, 4, 8):
            before = [f"mov ${at - 12345 * scale - 7}, %{base}", f"mov $12345, %{index}"]
            plain.append(Form(before, f"{lock} 7(%{base},%{index},{scale})"))
    plain += [
        Form([f"mov ${at + 16}, %rbx", "mov $-2, %r9"], f"{lock} (%rbx,%r9,8)"),
        Form([f"mov ${(at - 0x1000 - at % 2) // 2}, %rcx"], f"{lock} {0x1000 + at % 2}(,%rcx,2)"),
        Form([], f"{lock} {at}"),
        Form([], f"{lock} data+{inside}(%rip)"),
    ]
    for wide, narrow in zip(REGISTERS, NARROW, strict=True):
        plain.append(Form([f"mov ${(0xABCD << 32) + at - 5}, %{wide}"], f"{lock} 5(%{narrow})"))
    plain.append(Form([f"mov ${at - 40 + (1 << 40)}, %rbx", f"mov ${10 + (7 << 32)}, %rsi"], f"{lock} (%ebx,%esi,4)"))
    plain.append(Form(["mov $-1, %rcx", f"mov ${at + 9}, %rax"], f"{lock} -8(%eax,%ecx,1)"))
    plain += [
        Form([f"mov ${at}, %r8", "sub fs_base(%rip), %r8"], f"{lock} %fs:(%r8)"),
        Form([f"mov ${at - 24}, %r8", "sub fs_base(%rip), %r8", "mov $3, %rdx"], f"{lock} %fs:(%r8,%rdx,8)"),
        Form([f"mov ${at}, %rax"], f"{lock} %gs:(%rax)"),
        Form(["mov $0x100000000, %rdx", "wrgsbase %rdx", f"mov ${at - 0x1_0000_0000}, %rax"], f"{lock} %gs:(%rax)"),
    ]  # fmt: skip
    return plain


def _bits(at: int, size: int) -> list[Form]:
    """Bit tests, whose operand a register moves."""
    found = []
    width, suffix = 8 * size, SUFFIXES[size]
    names = {2: ("cx", "ax", "r9w"), 4: ("ecx", "eax", "r9d"), 8: ("rcx", "rax", "r9")}[size]
    for name, full in zip(names, ("rcx", "rax", "r9"), strict=True):
        for words in (0, 1, -1, 3, -7, 100, -100):
            offset = words * width + 5 & (1 << width) - 1
            before = [f"mov ${at - words * size}, %rdi", f"mov ${offset}, %{full}"]
            found.append(Form(before, f"lock bts{suffix} %{name}, (%rdi)"))
    return found


def _others(at: int, size: int) -> list[Form]:
    suffix, a, b = SUFFIXES[size], {2: "ax", 4: "eax", 8: "rax"}[size], {2: "bx", 4: "ebx", 8: "rbx"}[size]
    code = [f"xchg %{a}, (%rdi)", f"lock xadd %{b}, (%rdi)", f"lock cmpxchg %{b}, (%rdi)", f"lock not{suffix} (%rdi)"]
    code += [f"lock neg{suffix} (%rdi)", f"lock btr{suffix} $3, (%rdi)", f"lock dec{suffix} (%rdi)"]
    code += ["lock cmpxchg8b (%rdi)"] * (size == 8)
    return [Form([f"mov ${at}, %rdi"], each) for each in code]


def _source(where: str) -> tuple[str, int]:
    forms = []
    for size in SUFFIXES:
        half = size // 2
        inside = {"line": 128 - half, "page": PAGE - half, "odd": PAGE + 65}[where]
        forms += [*_addressed(BASE + inside, inside, size), *_bits(BASE + inside, size), *_others(BASE + inside, size)]
    saved = ["rbx", "rbp", "r12", "r13", "r14", "r15"]
    lines = []
    for number, form in enumerate(forms):
        name = f"f{number}"
        lines += [f".globl {name}", f".type {name}, @function", f"{name}: .cfi_startproc"]
        lines += [f"push %{register}" for register in saved]
        lines += [f"lea .La{number}(%rip), %rax", "mov %rax, skip_to(%rip)", *form.before, form.code, f".La{number}:"]
        lines += ["xor %edx, %edx", "wrgsbase %rdx"]
        lines += [f"pop %{register}" for register in reversed(saved)]
        lines += ["ret", ".cfi_endproc", f".size {name}, . - {name}"]
    lines += [".data", f".balign {PAGE}", ".globl data", f"data: .zero {2 * PAGE}", ".text"]
    code = "\n".join(f'    "{line}\\n"' for line in lines)
    names = [f"f{number}" for number in range(len(forms))]
    declared = "extern void " + ", ".join(f"{name}(void)" for name in names) + ";"
    source = PROGRAM.format(
        code=code, declared=declared, names=", ".join(names), base=BASE, page=PAGE, far=int(where != "line")
    )
    return source, len(forms)


# a line that is crossed in `warn` would be so by a lock that executes
CASES = [("line", "fatal"), ("page", "warn"), ("page", "fatal"), ("odd", "warn"), ("odd", "fatal")]


@pytest.mark.parametrize("engine", ["agent", "ptrace"])
@pytest.mark.parametrize(("where", "mode"), CASES)
def test_each_way_to_say_where(watch: Callable[..., Run], tmp_path: Path, where: str, mode: str, engine: str) -> None:
    """`page`: on two pages, of which the second may not be touched. `odd`: misaligned in one line, on that page."""
    source, forms = _source(where)
    (tmp_path / "sites.c").write_text(source)
    program = gen_forms.compile_c(tmp_path / "sites", [tmp_path / "sites.c"])
    run = watch([program], "-q", f"--split-lock-detect={mode}")
    assert run.status == 0, run.err
    calls, stopped = (int(word) for word in run.out.split() if word.isdigit())
    assert calls == forms
    assert run.report["hits"] == stopped
    if where == "line":
        assert stopped == forms
        assert [site["hits"] for site in run.report["sites"]] == [1] * forms
    elif where == "odd" or mode == "warn":
        assert stopped == 0


@pytest.mark.parametrize("mode", ["warn", "fatal"])
def test_several_threads(watch: Callable[..., Run], compiled: Compiled, mode: str) -> None:
    run = watch([compiled("crowd"), "page", "40", "25"], "-q", f"--split-lock-detect={mode}")
    calls, stopped = (int(word) for word in run.out.split() if word.isdigit())
    assert calls == 40 * 25 * 3
    assert run.report["hits"] == stopped
    assert stopped in (0, calls)  # which of the two the processor finds first is its own affair

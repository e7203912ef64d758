"""Small libraries that do their locked work at different places, and return what can be told beforehand."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

# of `work(uint32_t *rdi)`: what it does to rdi's operand; eax is the result
STEPS = (
    "lock incl (%rdi)", "lock addl ${n}, (%rdi)", "mov ${n}, %eax\n lock xadd %eax, (%rdi)", "lock notl (%rdi)",
    "mov ${n}, %eax\n xchg %eax, (%rdi)", "lock btsl ${b}, (%rdi)", "lock xorl ${n}, (%rdi)", "lock negl (%rdi)",
    "mov (%rdi), %eax\n mov ${n}, %ecx\n lock cmpxchg %ecx, (%rdi)", "lock subl ${n}, (%rdi)",
)  # fmt: skip
PLAIN = ("mov ${n}, %edx", "lea {b}(%rdx), %edx", "nop", "push %rdx\n pop %rdx", "mov (%rdi), %edx")


def build(directory: Path, seed: int, count: int) -> list[Path]:
    """Libraries lib0.so ...: of like and unlike size, with and without pages between text and data."""
    chance = random.Random(seed)
    return [_library(directory / f"lib{i}.so", chance) for i in range(count)]


def _library(path: Path, chance: random.Random) -> Path:
    lines = [f".skip {chance.choice((1, 1, 1, 16, 4096, 8192 + 5))}, 0x90", ".globl work", ".type work, @function"]
    lines += ["work: .cfi_startproc", "xor %eax, %eax", "xor %edx, %edx"]
    for _ in range(chance.randint(3, 20)):
        text = chance.choice(STEPS if chance.random() < 0.6 else PLAIN)
        lines.append(text.replace("{n}", str(chance.randrange(1 << 31))).replace("{b}", str(chance.randrange(31))))
    lines += ["lea (%rax,%rdx), %eax", "ret", ".cfi_endproc", ".size work, . - work"]
    lines += [
        ".section .rodata",
        f".skip {chance.choice((1, 4096, 0x3000))}",
        ".data",
        f".skip {chance.choice((1, 9000))}",
    ]
    lines.append('.section .note.GNU-stack, "", @progbits')
    source = path.with_suffix(".S")
    source.write_text("\n".join(lines) + "\n")
    separate = chance.choice(("-Wl,-z,separate-code", "-Wl,-z,noseparate-code"))
    subprocess.run(["gcc", "-shared", "-nostdlib", separate, "-o", path, source], check=True)
    return path

"""Where an operand's address comes from: generated functions, run, and the place that they changed."""

from __future__ import annotations

import ctypes
import random
import re
import subprocess
from pathlib import Path

import pytest

from splitlock.x86.origin import Argument, Load, Sum, operand

_STRUCT = """
struct node { struct node *next, *other; long step; int pad; int count; struct node *own[2]; };
__attribute__((noinline)) void nothing(void) { asm volatile("" ::: "memory"); }
"""
_SIZE, _COUNT, _NODES = 48, 28, 6


class Node(ctypes.Structure):
    """As the C source has it."""


Node._fields_ = [
    ("next", ctypes.POINTER(Node)), ("other", ctypes.POINTER(Node)), ("step", ctypes.c_long), ("pad", ctypes.c_int),
    ("count", ctypes.c_int), ("own", ctypes.POINTER(Node) * 2),
]  # fmt: skip


def _function(name: str, chance: random.Random) -> str:
    """A function that walks from its arguments to a node and counts there."""
    lines = [f"void {name}(struct node *a, struct node *b, long i) {{ struct node *p = {chance.choice('ab')};"]
    for _ in range(chance.randrange(5)):
        lines.append(
            chance.choice((
                "p = p->next;", "p = p->other;", "p = p->own[1];", "if (i & 1) p = b->next;", "nothing();",
                "if (i & 2) { nothing(); p->pad++; }", "for (long n = 0; n < (i & 3); n++) p = p->next;",
                "while (p->step & 8) p = p->other;", "p = i & 4 ? p->next : p->next;", "b = a->own[0];",
            ))
        )  # fmt: skip
    return " ".join(lines) + ' asm volatile("lock incl %0" : "+m"(p->count) :: "cc"); nothing(); }'


def _evaluated(value: Sum, arguments: list[int]) -> int:
    total = value.constant
    for term, factor in value.terms:
        if isinstance(term, Argument):
            total += arguments[term.number] * factor
        else:
            raw = ctypes.string_at(_evaluated(term.address, arguments), term.size)
            total += int.from_bytes(raw, "little") * factor
    return total % (1 << 64)


def _built(tmp_path: Path, source: str, *flags: str) -> tuple[ctypes.CDLL, dict[str, tuple[bytes, int]]]:
    """The library, and each function's code with the offset of its locked instruction, by nm and objdump."""
    (tmp_path / "f.c").write_text(source)
    library = tmp_path / "f.so"
    subprocess.run(["gcc", *flags, "-shared", "-fPIC", "-fno-plt", "-o", library, tmp_path / "f.c"], check=True)
    out = subprocess.run(["objdump", "-d", "-w", library], capture_output=True, text=True, check=True).stdout
    found = {}
    for name, body in re.findall(r"^[0-9a-f]+ <(f\d+)>:\n((?:.+\n)+)", out, re.M):
        rows = re.findall(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t?(.*)", body, re.M)
        first = int(rows[0][0], 16)
        for place, _, text in rows:
            if text.startswith("lock"):  # not in all: of two that do the same the one jumps to the other
                found[name] = bytes.fromhex("".join(raw for _, raw, _ in rows)), int(place, 16) - first
    return ctypes.CDLL(str(library)), found


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os"])
def test_generated_functions(tmp_path: Path, level: str) -> None:
    """What is said to be known is where the function counted, whichever way it went; most at -O2 is known."""
    chance = random.Random(f"23{level}")
    names = [f"f{number}" for number in range(60)]
    library, functions = _built(tmp_path, _STRUCT + "\n".join(_function(name, chance) for name in names), level)
    nodes = (Node * _NODES)()
    assert ctypes.sizeof(Node) == _SIZE
    known = 0
    for name, (code, at) in functions.items():
        value = operand(code, at)
        known += value is not None
        for way in range(8):
            for node in nodes:
                for field in ("next", "other"):
                    setattr(node, field, ctypes.pointer(chance.choice(nodes)))
                node.own[0], node.own[1] = ctypes.pointer(chance.choice(nodes)), ctypes.pointer(chance.choice(nodes))
                node.step, node.count = 0, 0
            arguments = [ctypes.addressof(chance.choice(nodes)), ctypes.addressof(chance.choice(nodes)), way]
            expected = None if value is None else _evaluated(value, arguments)
            getattr(library, name)(*map(ctypes.c_void_p, arguments[:2]), ctypes.c_long(way))
            (changed,) = [number for number, node in enumerate(nodes) if node.count]
            assert expected in (None, ctypes.addressof(nodes) + changed * _SIZE + _COUNT), (name, way)
    assert known >= {"-O0": 0, "-O1": 25, "-O2": 25, "-O3": 18, "-Os": 25}[level]


def _code(tmp_path: Path, text: str) -> bytes:
    (tmp_path / "a.s").write_text(f".intel_syntax noprefix\n{text}\n")
    subprocess.run(["as", "--64", "-o", tmp_path / "a.o", tmp_path / "a.s"], check=True)
    command = ["objcopy", "-O", "binary", "-j", ".text", str(tmp_path / "a.o"), str(tmp_path / "a.bin")]
    subprocess.run(command, check=True)
    return (tmp_path / "a.bin").read_bytes()


ARGUMENT = ((Argument(0), 1),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lock inc dword ptr [rdi+0x3d]", Sum(ARGUMENT, 0x3D)),
        ("mov rax, [rdi+8]; lock inc dword ptr [rax]", Sum(((Load(Sum(ARGUMENT, 8), 8), 1),), 0)),
        ("mov eax, [rdi+192]; add rax, [rdi+200]; lock inc dword ptr [rax+0x20]",
         Sum(((Load(Sum(ARGUMENT, 192), 4), 1), (Load(Sum(ARGUMENT, 200), 8), 1)), 0x20)),
        ("lea rbx, [rdi+rsi*4-8]; lock inc dword ptr [rbx]", Sum(((Argument(0), 1), (Argument(1), 4)), -8)),
        ("call 1f; 1: lock inc dword ptr [rdi]", Sum(ARGUMENT, 0)),  # a function's first: the tracer's
        ("nop; nop; nop; nop; nop; nop; call 1f; 1: lock inc dword ptr [rdi]", None),  # any other's may change it
        ("mov rbx, rdi; nop; nop; nop; call 1f; 1: lock inc dword ptr [rbx]", Sum(ARGUMENT, 0)),
        ("mov eax, edi; lock inc dword ptr [rax]", None),  # cut to 32 bits
        ("xor dil, dil; lock inc dword ptr [rdi]", None),
        ("and rdi, -64; lock inc dword ptr [rdi]", None),
        ("lock inc dword ptr gs:[rdi]", None),
        ("lock inc dword ptr [rip+8]", None),
        ("sub rdi, 16; lock inc dword ptr [rdi]", Sum(ARGUMENT, -16)),
        ("jmp rax; lock inc dword ptr [rdi]", None),  # who knows what leads where
    ],
)  # fmt: skip
def test_single_instructions(tmp_path: Path, text: str, expected: Sum | None) -> None:
    code = _code(tmp_path, text)
    assert operand(code, code.index(b"\xf0") if b"\x65\xf0" not in code else code.index(b"\x65")) == expected

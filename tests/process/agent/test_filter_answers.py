"""What the agent takes for a seccomp filter's answer is the kernel's: random filters, calls that there are not."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from splitlock.process.agent.judged import AGENT

INSIDE = Path(AGENT).parent
WRAPPER = """
#include "filter.c"
uint32_t is_filtered;
void escaped(const char *name, enum reason reason) { (void)name, (void)reason; }
void made_code(uint64_t start, uint64_t size) { (void)start, (void)size; }
void note_made_bytes(uint64_t bytes) { (void)bytes; }
void give_handlers(void) {}
__attribute__((visibility("default"))) uint32_t judge(const void *code, uint32_t length, const void *data)
{ return answer(code, length, data); }
"""
NONE = 0x1000  # no system call has this number, or a greater one
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
ALU = [0x04, 0x14, 0x24, 0x44, 0x54, 0xA4]
JUMPS = [0x15, 0x25, 0x35, 0x45]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("filter")
    (directory / "wrapper.c").write_text(WRAPPER)
    made = directory / "wrapper.so"
    words = ["gcc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-ffreestanding", f"-I{INSIDE}", "-o", made]
    subprocess.run([*map(str, words), directory / "wrapper.c", INSIDE / "text.c"], check=True)
    return ctypes.CDLL(str(made))


def _filter(chance: random.Random) -> list[tuple[int, int, int, int]]:
    """Instructions as (code, when, unless, k); calls that there are it allows, others get an error of 12 bits."""
    body: list[tuple[int, int, int, int]] = [(0x00, 0, 0, 7), (0x01, 0, 0, 5), (0x02, 0, 0, 3), (0x03, 0, 0, 4)]
    size = chance.randint(5, 60)
    for left in range(size, 0, -1):
        k = chance.choice((chance.randrange(1 << 32), chance.randrange(64), 1 << chance.randrange(32)))
        kind = chance.randrange(10)
        if kind < 3:
            word = chance.choice((0, 1, *range(4, 16)))  # of struct seccomp_data; not the address, which differs
            body.append((0x20, 0, 0, 4 * word))
        elif kind < 5:
            body.append((chance.choice(ALU) | chance.choice((0, 8)), 0, 0, k))
        elif kind == 5:
            body.append(
                chance.choice(((0x84, 0, 0, 0), (0x34, 0, 0, k | 1), (0x64, 0, 0, k & 31), (0x74, 0, 0, k & 31)))
            )
        elif kind == 6:
            body.append(chance.choice(((0x07, 0, 0, 0), (0x87, 0, 0, 0), (0x80, 0, 0, 0), (0x81, 0, 0, 0))))
        elif kind == 7:
            body.append((chance.choice((0x02, 0x03, 0x60, 0x61)), 0, 0, chance.choice((3, 4))))
        elif kind == 8:
            where = chance.randrange(left), chance.randrange(left)
            body.append((chance.choice(JUMPS) | chance.choice((0, 8)), *where, k))
        else:
            body.append((0x05, 0, 0, chance.randrange(left)))
    end = [(0x54, 0, 0, 0xFFF), (0x44, 0, 0, ERRNO), (0x16, 0, 0, 0)]
    return [(0x20, 0, 0, 0), (0x35, 1, 0, NONE), (0x06, 0, 0, ALLOW), *body, *end]


def _kernels(code: bytes, calls: list[list[int]]) -> list[int]:
    """The errors that the kernel gives for calls behind a filter; in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            block = ctypes.create_string_buffer(code, len(code))
            program = struct.pack("<H6xQ", len(code) // 8, ctypes.addressof(block))
            libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            if libc.prctl(22, 2, program):  # PR_SET_SECCOMP
                os._exit(1)
            found = []
            for number, *arguments in calls:
                result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, arguments))
                found.append(ctypes.get_errno() if result else 0)
            os.write(writer, struct.pack(f"<{len(found)}i", *found))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the kernel takes no such filter"
    return list(struct.unpack(f"<{len(calls)}i", raw))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_random_filters(ours: ctypes.CDLL, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        code = b"".join(struct.pack("<HBBI", *each) for each in _filter(chance))
        calls = [[NONE + chance.randrange(1 << 20), *(chance.randrange(1 << 64) for _ in range(6))] for _ in range(20)]
        for (number, *arguments), wanted in zip(calls, _kernels(code, calls), strict=True):
            data = struct.pack("<II7Q", number, 0xC000003E, 0, *arguments)
            got = ours.judge(code, len(code) // 8, data) & 0xFFFFFFFF
            assert got == ERRNO | wanted, (seed, code.hex(), number, arguments)

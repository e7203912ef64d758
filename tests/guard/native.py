"""The gate's user-space build and its BPF build, as tests call them."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import NamedTuple

import pytest

from splitlock.guard import judge, layout
from splitlock.guard.bpfobject import Object

ROOM = 200_000  # findings
SOURCES = Path(judge.__file__).parent / "bpf"
_ZERO = bytes(4)


class Found(NamedTuple):
    """A finding of the gate's."""

    kind: str
    section: str
    offset: int
    evidence: str
    possible: bool


class Native:
    """libgate.so, or another build of native.c."""

    def __init__(self, path: str | Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._findings = self._library.gate_findings
        self._findings.argtypes = [
            c_char_p, c_uint64, POINTER(layout.Config), POINTER(layout.Decision), c_void_p, c_uint32
        ]  # fmt: skip
        self._decode = self._library.gate_decode_one
        self._decode.argtypes, self._decode.restype = [c_char_p, c_uint64, c_uint32], c_uint32
        self._boundaries = self._library.gate_boundaries
        self._boundaries.argtypes, self._boundaries.restype = [c_char_p, c_uint64, c_char_p], c_uint64
        self._room = (layout.Finding * ROOM)()

    def judge(self, data: bytes, config: layout.Config) -> layout.Decision:
        """A decision."""
        decision = layout.Decision()
        assert self._findings(data, len(data), byref(config), byref(decision), None, 0) >= 0
        return decision

    def findings(self, data: bytes, config: layout.Config) -> tuple[layout.Decision, list[Found]]:
        """A decision, and every finding."""
        decision = layout.Decision()
        self._findings(data, len(data), byref(config), byref(decision), self._room, ROOM)
        assert decision.total <= ROOM
        return decision, [
            Found(layout.KINDS[each.kind], each.section.decode(), each.offset, layout.EVIDENCE[each.evidence],
                  bool(each.possible))
            for each in self._room[: decision.total]
        ]  # fmt: skip

    def decode(self, data: bytes) -> tuple[int, str | None]:
        """Length (0: no instruction) and kind of what `data` begins with."""
        made = self._decode(data, len(data), 0)
        kind = made >> 8 & 255
        return made & 15, layout.KINDS[kind - 1] if kind else None

    def decodes_alike(self, data: bytes) -> bool:
        """Does the short way to decode an instruction say all that the long one says?"""
        return bool(self._decode(data, len(data), 0) == self._decode(data, len(data), 1))

    def boundaries(self, data: bytes) -> tuple[bytes, int]:
        """A byte of 1 for each offset at which a sweep meets an instruction, and where it ended."""
        starts = ctypes.create_string_buffer(len(data) + 1)
        end = self._boundaries(data, len(data), starts)
        return starts.raw[: len(data)], end


def native() -> Native:
    """The build that is shipped."""
    return Native(judge.built(judge.LIBRARY))


def sanitized(directory: Path) -> Path:
    """A build that stops at the first step out of bounds, as a program that judges files: see fuzz.c."""
    program = directory / "fuzz"
    command = ["gcc", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", str(SOURCES),
               str(Path(__file__).with_name("fuzz.c")), "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)
    return program


class Kernel:
    """The BPF build, run by BPF_PROG_TEST_RUN."""

    def __init__(self, made: Object) -> None:
        self._object, self._maps = made, made.maps

    def configure(self, config: layout.Config) -> None:
        """Judge by `config` from now on."""
        self._maps["config"].write(_ZERO, config)

    def judge(self, data: bytes) -> tuple[layout.Decision, int]:
        """A decision, and what the hook would have answered."""
        where = ctypes.cast(c_char_p(data), c_void_p).value or 0
        answer = self._object.run("judge_test", context=bytes(layout.Test(where, len(data))))
        decision = layout.Decision()
        assert self._maps["tested"].read(_ZERO, decision)
        return decision, c_int(answer).value


@contextmanager
def kernel() -> Iterator[Kernel]:
    """The BPF build, loaded into this machine's kernel; skips the test where it cannot be."""
    if os.geteuid() or not os.path.exists("/sys/kernel/btf/vmlinux"):
        pytest.skip("needs root and a kernel with BTF")
    with Object(judge.built(judge.OBJECT)) as made:
        for name in list(made.programs):
            if name != "judge_test":
                made.leave_out(name)
        made.load()
        yield Kernel(made)

"""The structures the gate's parts share, as ctypes: the mirror of bpf/gate.h, which a test compares in size."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from ctypes import Structure, c_char, c_int32, c_uint8, c_uint16, c_uint32, c_uint64

from splitlock.x86.privileged import KINDS as _INSTRUCTIONS

VERSION = 2
RULES, PATTERNS, SYMBOLS, FINDINGS = 32, 64, 64, 24
NAME, SYMBOL, SECTION = 56, 64, 24  # bytes
FOREIGN = "FOREIGN-CODE"
#: enum gate_kind of the generated tables.h: a kind's number is its place.
KINDS = (*_INSTRUCTIONS, FOREIGN)
NUMBER = {kind: number for number, kind in enumerate(KINDS)}

#: contents that only the gate refuses, with this errno: GATE_CANARY_MAGIC, GATE_CANARY_ERRNO
CANARY = b"splitlock canary".ljust(64, b"\0")  # the kernel shows nothing shorter than an ELF header to a hook
CANARY_ERRNO = errno.ESTALE

ALLOW, DISABLE, REFUSE = range(3)
VERDICTS = ("allow", "disable", "refuse")
FACTS = {"intree": 1, "sld_safe": 2, "sld_aware": 4, "signed": 8, "module": 16, "kernel": 32}
INSTRUCTION, PV_OPS, CR4, IMPORTS = 1, 2, 4, 8
EVIDENCE = {INSTRUCTION: "instruction", PV_OPS: "relocation pv_ops", CR4: "relocation cr4_update_irqsoff",
            IMPORTS: "imports"}  # fmt: skip
#: enum gate_doubt, and what it is to a person; None: no doubt
DOUBTS = (
    None, "no-elf", "malformed", "undecodable", "too-big", "unreadable", "canary", "partial",
)  # fmt: skip
WORDS = {
    "no-elf": "compressed, or no x86-64 kernel module",
    "malformed": "headers, sections, symbols or relocations that do not hold together",
    "undecodable": "an executable section holds bytes that are no instruction",
    "too-big": "more code, sections, symbols or candidates than the gate looks at",
    "unreadable": "memory that the gate could not read",
    "canary": "the probe that proves the gate is live",
    "partial": "contents that come in parts",
}
#: symbols that the gate asks for itself, at the first places of Config.symbol: enum gate_own_symbol
OWN_SYMBOLS = ("handle_guest_split_lock", "pv_ops", "cr4_update_irqsoff")


class Pattern(Structure):
    """struct gate_pattern"""

    _fields_ = [("text", c_char * NAME), ("length", c_uint32), ("prefix", c_uint32)]


class Rule(Structure):
    """struct gate_rule"""

    _fields_ = [
        ("kinds", c_uint64 * 2), ("imports", c_uint64), ("evidence", c_uint32),
        ("needs", c_uint16), ("needs_not", c_uint16), ("unless", c_uint16),
        ("verdict", c_uint8), ("whole", c_uint8), ("pattern", c_uint16), ("patterns", c_uint16),
    ]  # fmt: skip


class Symbol(Structure):
    """struct gate_symbol"""

    _fields_ = [("name", c_char * SYMBOL)]


class Config(Structure):
    """struct gate_config"""

    _fields_ = [
        ("version", c_uint32), ("audit", c_uint32), ("rules", c_uint32), ("symbols", c_uint32),
        ("possible", c_uint32), ("digests", c_uint32),
        ("lookups", c_uint64), ("mappers", c_uint64), ("executable", c_uint64),
        ("pv_ops", c_uint8 * 64), ("policy", c_char * 64),
        ("rule", Rule * RULES), ("pattern", Pattern * PATTERNS), ("symbol", Symbol * SYMBOLS),
    ]  # fmt: skip


class Finding(Structure):
    """struct gate_finding"""

    _fields_ = [
        ("offset", c_uint32), ("kind", c_uint8), ("evidence", c_uint8), ("possible", c_uint8), ("padding", c_uint8),
        ("section", c_char * SECTION),
    ]  # fmt: skip


class Decision(Structure):
    """struct gate_decision"""

    _fields_ = [
        ("time", c_uint64), ("duration", c_uint64), ("size", c_uint64),
        ("kinds", c_uint64 * 2), ("because", c_uint64 * 2), ("imports", c_uint64),
        ("pid", c_uint32), ("uid", c_uint32), ("total", c_uint32), ("named", c_uint32), ("facts", c_uint16),
        ("verdict", c_uint8), ("doubt", c_uint8), ("rule", c_int32), ("padding", c_uint32),
        ("refused", c_uint8), ("digested", c_uint8), ("allowed", c_uint8), ("from_memory", c_uint8),
        ("digest", c_uint8 * 32), ("comm", c_char * 16), ("name", c_char * NAME), ("build_id", c_char * 24),
        ("finding", Finding * FINDINGS),
    ]  # fmt: skip


class Counters(Structure):
    """struct gate_counters"""

    _fields_ = [
        (name, c_uint64)
        for name in ("decisions", "allowed", "refused", "disabled", "doubts", "lost", "canaries", "nanoseconds")
    ]


class Pins(Structure):
    """struct gate_pins: the directory whose entries the gate keeps, while it is `locked`"""

    _fields_ = [("inode", c_uint64), ("device", c_uint32), ("locked", c_uint32)]

    @classmethod
    def of(cls, directory: str) -> Pins:
        """Lock a directory, by its path. Raises OSError."""
        info = os.stat(directory)
        return cls(info.st_ino, os.major(info.st_dev) << 20 | os.minor(info.st_dev), 1)


class Test(Structure):
    """struct gate_test: bytes in our memory, for the program judge_test"""

    _fields_ = [("data", c_uint64), ("size", c_uint64)]


#: in the order of gate_sizes()
STRUCTURES = (Pattern, Rule, Symbol, Config, Finding, Decision, Counters, Pins, Test)


def bits(numbers: object) -> list[int]:
    """The numbers of the bits that are set in one or more 64-bit words."""
    words = [numbers] if isinstance(numbers, int) else list(numbers)  # type: ignore[call-overload]
    return [64 * at + bit for at, word in enumerate(words) for bit in range(64) if word >> bit & 1]


def kinds(words: Iterable[int]) -> list[str]:
    """The kinds of a bitmap."""
    return [KINDS[number] if number < len(KINDS) else f"kind {number}" for number in bits(words)]

"""Text files for the fuzzers: Module.symvers and policies. The first byte says which."""

from __future__ import annotations

from random import Random

from fuzz.mutate import damage_text

_SYMVERS = (
    "0x1234abcd\tvmap\tvmlinux\tEXPORT_SYMBOL\t\n0x00000000\tpv_ops\tvmlinux\tEXPORT_SYMBOL_GPL\t\n"
    "0x5bd4ff88\ttoy\tdrivers/toy/toy-one\tEXPORT_SYMBOL_GPL\tTOYS\n"
)
_POLICY = """\
description = "what the fuzzer starts from"
decode = "functions"
certainty = "possible"

[[rule]]
verdict = "allow"
name = ["kvm*", "?"]
signer = ["Debian*"]
intree = true

[[rule]]
verdict = "refuse"
kinds = ["vmx", "MOV CR*", "WRMSR"]
evidence = ["relocation *", "instruction"]
imports = ["vmap"]
unless = ["sld_safe", "sld_aware"]
reason = "because"
log = "{name}: {kind} {symbol}"
"""
_WORDS = (
    b"\t", b"\n", b"\r", b"\0", b"\xff", b"0x", b'"', b"'''", b"[[rule]]\n", b"rule = 1\n", b"[", b"]", b"=", b"#",
    b"{}", b"{", b"inf", b"1979-05-27", b'kinds = ["all"]\n', b'name = ["[!"]\n', b'decode = "linear"\n',
    b'verdict = "disable"\n', b"true", b"\xef\xbb\xbf", b"*" * 40, b"a.b.c", b"9" * 5000, b"{name",
    b"signed = false\n", b"module = true\n", b"[" * 2000,
)  # fmt: skip


def seeds() -> list[bytes]:
    """One of each."""
    return [b"\0" + _SYMVERS.encode(), b"\x80" + _POLICY.encode()]


def mutate(raw: bytes, chance: Random) -> bytes:
    """One of them, damaged."""
    return damage_text(raw, chance, _WORDS)

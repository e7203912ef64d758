"""Privileged instructions: each kind assembled by GNU as, and the pattern against every opcode it must not miss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from iced_x86 import Decoder, Instruction
from x86.building import assemble, run

from splitlock.x86.privileged import DEFAULT, FREQUENT, GROUPS, KINDS, PATTERN, PATTERN_FREQUENT, classify, spell

# By instruction, as GNU as takes it in Intel syntax.
ASSEMBLED = {
    "vmxon [rdi]": "VMXON", "vmxoff": "VMXOFF", "vmlaunch": "VMLAUNCH", "vmresume": "VMRESUME",
    "vmptrld [r12+8]": "VMPTRLD", "vmptrst [rip+5]": "VMPTRST", "vmclear [rsp+0x100]": "VMCLEAR",
    "vmread rax, rcx": "VMREAD", "vmread [r8], r9": "VMREAD", "vmwrite r10, [rbx]": "VMWRITE",
    "invept rax, [rdi]": "INVEPT", "invvpid r9, [r10]": "INVVPID", "vmfunc": "VMFUNC", "seamcall": "SEAMCALL",
    "vmrun rax": "VMRUN", "vmload rax": "VMLOAD", "vmsave rax": "VMSAVE", "stgi": "STGI", "clgi": "CLGI",
    "skinit eax": "SKINIT", "invlpga rax, ecx": "INVLPGA",
    "vmcall": "VMCALL", "vmmcall": "VMMCALL", "vmgexit": "VMGEXIT", "tdcall": "TDCALL",
    "mov cr0, rax": "MOV CR0", "mov cr3, r15": "MOV CR3", "mov cr4, rdi": "MOV CR4", "mov cr8, r8": "MOV CR8",
    "mov dr0, rsi": "MOV DR0", "mov dr7, r9": "MOV DR7",
    "lgdt [rdi]": "LGDT", "lidt [rip]": "LIDT", "lldt ax": "LLDT", "lldt [r9]": "LLDT", "ltr r11w": "LTR",
    "lmsw ax": "LMSW", "lmsw [rax+rcx*8]": "LMSW", "clts": "CLTS",
    "wrmsr": "WRMSR", "rdmsr": "RDMSR", "xsetbv": "XSETBV", "wrpkru": "WRPKRU",
    "invd": "INVD", "wbinvd": "WBINVD", "wbnoinvd": "WBNOINVD", "invlpg [rax]": "INVLPG",
    "invpcid r8, [rax]": "INVPCID", "swapgs": "SWAPGS", "sysretq": "SYSRET", "sysretd": "SYSRET",
    "sysexitq": "SYSEXIT", "rsm": "RSM", "getsec": "GETSEC", "encls": "ENCLS", "enclv": "ENCLV",
    "iretq": "IRET", "iretd": "IRET", "hlt": "HLT", "popfq": "POPF",
    # not privileged, or harmless
    "mov rax, cr4": None, "mov rax, dr7": None, "sgdt [rdi]": None, "sidt [rdi]": None, "str ax": None, "sldt ax": None,
    "smsw eax": None, "rdpkru": None, "xgetbv": None, "clac": None, "stac": None, "rdtscp": None, "syscall": None,
    "rdrand eax": None, "rdseed eax": None, "rdpid rax": None, "cmpxchg16b [rdi]": None, "clzero": None,
    "extrq xmm0, 1, 2": None, "rdpmc": None, "pushfq": None,
}  # fmt: skip


def decoded(raw: bytes) -> Instruction:
    return Decoder(64, raw).decode()


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    made = assemble(tmp_path_factory.mktemp("kinds"), "\n".join(ASSEMBLED))
    raw = made.with_suffix(".bin")
    run("objcopy", "-O", "binary", "-j", ".text", made, raw)
    return raw.read_bytes()


def test_getsec_of_64_bits() -> None:
    assert classify(decoded(b"\x48\x0f\x37")) == classify(decoded(b"\x0f\x37")) == "GETSEC"  # GETSECQ to iced-x86


def test_assembled_instructions_are_what_they_are(code: bytes) -> None:
    found = [(classify(instruction), instruction) for instruction in Decoder(64, code)]
    for (kind, instruction), (text, expected) in zip(found, ASSEMBLED.items(), strict=True):
        assert kind == expected, text
        raw = code[instruction.ip : instruction.next_ip]
        if kind is not None:
            assert (PATTERN_FREQUENT if kind in FREQUENT else PATTERN).search(raw), text


def every_opcode() -> Iterator[bytes]:
    """Every two-byte opcode, and those of the map 0F 38, with every ModRM byte and the prefixes that change them."""
    for prefix in (b"", b"\x66", b"\xf2", b"\xf3", b"\x48", b"\x66\x48", b"\x45", b"\x66\xf3"):
        for opcode in range(256):
            for modrm in range(256):
                yield prefix + bytes([0x0F, opcode, modrm])
                if opcode >= 0x80:
                    yield prefix + bytes([0x0F, 0x38, opcode, modrm])


def test_the_pattern_misses_no_kind() -> None:
    seen = set()
    for start in every_opcode():
        instruction = decoded(start + bytes(8))
        kind = classify(instruction)
        if kind is not None:
            seen.add(kind)
            assert kind in KINDS
            assert PATTERN.search(start), (kind, start.hex())
    # CR1, CR5 and the like do not exist; pv_ops alone says DRn
    impossible = {f"MOV CR{n}" for n in (1, 5, 6, 7, *range(9, 16))} | {f"MOV DR{n}" for n in range(8, 16)}
    assert DEFAULT - seen <= impossible | {"MOV DRn"}
    assert {"VMLAUNCH", "MOV CR4", "MOV DR7", "INVEPT"} <= seen


@pytest.mark.parametrize("raw", [b"\xcf", b"\x48\xcf", b"\xf4", b"\x9d", b"\x66\x9d"])
def test_frequent_kinds_have_a_pattern_of_their_own(raw: bytes) -> None:
    assert classify(decoded(raw)) in FREQUENT
    assert PATTERN_FREQUENT.search(raw)
    assert not PATTERN.search(raw)


def test_groups() -> None:
    assert sum(map(len, GROUPS.values())) == len(KINDS)
    assert DEFAULT.isdisjoint(FREQUENT)
    assert KINDS.keys() == DEFAULT | FREQUENT


def test_spelling() -> None:
    assert spell(decoded(bytes.fromhex("0f22e0"))) == "mov cr4, rax"
    assert spell(decoded(bytes.fromhex("ff1500000000")), "pv_ops+0xc0") == "call qword ptr [pv_ops+0xc0]"
    assert spell(decoded(bytes.fromhex("e800000000")), "cr4_update_irqsoff") == "call cr4_update_irqsoff"


def test_against_objdump(code: bytes, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(code)
    listing = run("objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", tmp_path / "code")
    lines = [line.split("\t") for line in listing.splitlines() if line.count("\t") == 2]
    starts = {int(line[0].strip(" :"), 16): line[2].split()[0].upper() for line in lines}
    for instruction in Decoder(64, code):
        kind = classify(instruction)
        if kind is not None:
            assert starts[instruction.ip].startswith(kind.split()[0]), kind

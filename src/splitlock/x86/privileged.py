"""Privileged instructions: those a hypervisor, or a driver that meddles with the processor, cannot do without.

Names are the manuals' mnemonics; a write to a control or debug register carries its number
("MOV CR4", "MOV DR7"), as what it does depends on it. Opcodes: SDM vol. 2 and APM vol. 3.
"""

from __future__ import annotations

import re
from functools import cache

from iced_x86 import Code, Formatter, FormatterSyntax, Instruction, Mnemonic, RegisterExt

# Kinds by group. SEAMCALL enters a TDX module, VMGEXIT and TDCALL leave a confidential guest.
GROUPS: dict[str, tuple[str, ...]] = {
    "vmx": (
        "VMXON", "VMXOFF", "VMLAUNCH", "VMRESUME", "VMPTRLD", "VMPTRST", "VMCLEAR", "VMREAD", "VMWRITE",
        "INVEPT", "INVVPID", "VMFUNC", "SEAMCALL",
    ),
    "svm": ("VMRUN", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "INVLPGA"),
    "guest-call": ("VMCALL", "VMMCALL", "VMGEXIT", "TDCALL"),
    "control": (
        *(f"MOV CR{n}" for n in range(16)), *(f"MOV DR{n}" for n in range(16)), "MOV DRn",
        "LGDT", "LIDT", "LLDT", "LTR", "LMSW", "CLTS",
    ),
    "msr": ("WRMSR", "RDMSR", "WRMSRNS", "WRMSRLIST", "RDMSRLIST", "XSETBV", "WRPKRU"),
    "cache": ("INVD", "WBINVD", "WBNOINVD", "INVLPG", "INVPCID"),
    "system": ("SWAPGS", "SYSRET", "SYSEXIT", "RSM", "GETSEC", "ENCLS", "ENCLV"),
    "frequent": ("IRET", "HLT", "POPF"),
}  # fmt: skip
KINDS: dict[str, str] = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
FREQUENT = frozenset(GROUPS["frequent"])
DEFAULT = frozenset(KINDS) - FREQUENT

_SPELLINGS = {
    "SYSRETQ": "SYSRET", "SYSEXITQ": "SYSEXIT", "GETSECQ": "GETSEC",
    "IRETD": "IRET", "IRETQ": "IRET", "POPFD": "POPF", "POPFQ": "POPF",
}  # fmt: skip
_BY_MNEMONIC: dict[int, str] = {
    getattr(Mnemonic, name): _SPELLINGS.get(name, name)
    for name in [*_SPELLINGS, *KINDS, "IRET", "POPF"]
    if " " not in name
}
_REGISTER_WRITES = {Code.MOV_CR_R64: "MOV CR", Code.MOV_CR_R32: "MOV CR",
                    Code.MOV_DR_R64: "MOV DR", Code.MOV_DR_R32: "MOV DR"}  # fmt: skip


def classify(instruction: Instruction) -> str | None:
    """The kind of a decoded instruction, None when it is none of KINDS."""
    kind = _BY_MNEMONIC.get(instruction.mnemonic)
    if kind is None:
        write = _REGISTER_WRITES.get(instruction.code)
        if write is not None:
            kind = f"{write}{RegisterExt.number(instruction.op0_register)}"
    return kind


@cache
def _formatter() -> Formatter:
    made = Formatter(FormatterSyntax.INTEL)
    made.space_after_operand_separator = made.rip_relative_addresses = True
    made.hex_prefix, made.hex_suffix, made.uppercase_hex = "0x", "", False
    return made


def spell(instruction: Instruction, operand: str | None = None) -> str:
    """Disassembly in Intel syntax, with the address that only a relocation tells put in."""
    text = _formatter().format(instruction)
    if operand is None:
        return text
    if "[" in text:
        return re.sub(r"\[[^]]*\]", f"[{operand}]", text)
    return f"{text.split(' ', 1)[0]} {operand}"


def _either(values: list[int]) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % value for value in sorted(values)) + b"]"


def _modrm(*digits: int, memory: bool = True, register: bool = True) -> list[int]:
    """ModRM bytes whose reg field is one of `digits` and whose r/m field names memory or a register."""
    modes = [0, 1, 2] * memory + [3] * register
    return [mode << 6 | digit << 3 | rm for mode in modes for digit in digits for rm in range(8)]


# What follows the byte 0Fh. The other prefixes come before it, so a match lies *within* its instruction.
_ALONE = [0x06, 0x07, 0x08, 0x09, 0x22, 0x23, 0x30, 0x32, 0x35, 0x37, 0x78, 0x79, 0xAA]
_FIXED_01 = [
    0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC6, 0xCC, 0xCF, 0xD1, 0xD4,
    *range(0xD8, 0xE0), 0xEF, 0xF8,
]  # fmt: skip
# One pattern with byte classes only, and no lookahead: five times faster than an alternative a kind. A superset:
# matches are candidates, to be looked at by a decoder.
PATTERN = re.compile(
    rb"\x0f(?:"
    + _either(_ALONE)
    + rb"|\x01"
    + _either(sorted({*_modrm(2, 3, 7, register=False), *_modrm(6), *_FIXED_01}))
    + rb"|\x00"
    + _either(_modrm(2, 3))
    + rb"|\xc7"
    + _either(_modrm(6, 7, register=False))
    + rb"|\x38[\x80-\x82])",
    re.DOTALL,
)
# The same with IRET, HLT and POPF: single bytes, so that nearly every function holds a candidate.
PATTERN_FREQUENT = re.compile(PATTERN.pattern + rb"|[\xcf\xf4\x9d]", re.DOTALL)

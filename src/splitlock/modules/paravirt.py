"""Calls through `pv_ops` that are privileged instructions in disguise.

A kernel built with CONFIG_PARAVIRT_XXL (Debian's, and all that can run as a Xen PV guest) calls through a table of
function pointers where it would write an MSR, a control or a debug register; when the module is loaded the call
becomes the instruction. Nothing in the file shows it but a relocation against `pv_ops`, whose addend says which
operation. The layouts are those of struct paravirt_patch_template (arch/x86/include/asm/paravirt_types.h) with
CONFIG_PARAVIRT_XXL and CONFIG_X86_IOPL_IOPERM: the first as the BTF of Debian's 6.1.0-56-amd64 and
6.12.117-cloud-amd64 kernels has it (a test derives it anew), the second, without `wbinvd`, as the header has it
from 6.17 on.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitlock.image.module import Code

SYMBOL = "pv_ops"
R_X86_64_PC32, R_X86_64_PLT32, R_X86_64_32, R_X86_64_32S = 2, 4, 10, 11
_RELATIVE = frozenset({R_X86_64_PC32, R_X86_64_PLT32})
_ABSOLUTE = frozenset({R_X86_64_32, R_X86_64_32S})
_POINTER, _FIELD = 8, 4  # bytes

# What an operation does, as a kind. The number of a debug register is an argument, not to be seen in the call.
KIND = {
    "set_debugreg": "MOV DRn", "write_cr0": "MOV CR0", "write_cr2": "MOV CR2", "write_cr3": "MOV CR3",
    "write_cr4": "MOV CR4", "load_tr_desc": "LTR", "load_gdt": "LGDT", "load_idt": "LIDT", "set_ldt": "LLDT",
    "wbinvd": "WBINVD", "read_msr": "RDMSR", "read_msr_safe": "RDMSR", "write_msr": "WRMSR", "write_msr_safe": "WRMSR",
    "safe_halt": "HLT", "halt": "HLT",
}  # fmt: skip

# operation: its place in the table, up to update_io_bitmap the same in all versions
_COMMON = {
    "set_debugreg": 2, "write_cr0": 4, "write_cr4": 5, "load_tr_desc": 6, "load_gdt": 7, "load_idt": 8, "set_ldt": 9,
}  # fmt: skip
_AFTER_CPUID = {
    "read_msr": 1, "write_msr": 2, "read_msr_safe": 3, "write_msr_safe": 4, "safe_halt": 11, "halt": 12,
    "write_cr2": 21, "write_cr3": 23,
}  # fmt: skip


class Operation(NamedTuple):
    """What a call through the table does."""

    kind: str
    operand: str  #: as a disassembler writes it
    evidence: str


class Layout(NamedTuple):
    """The table of some versions."""

    since: tuple[int, int]  #: the first version that it is meant for
    #: first and last version whose own type information was looked at: in between the layout is certain
    seen: tuple[tuple[int, int], tuple[int, int]] | None
    entries: dict[int, Operation]  #: by offset, bytes


def _layout(places: dict[str, int], cpuid: int) -> dict[int, Operation]:
    places = {**places, **{name: cpuid + after for name, after in _AFTER_CPUID.items()}}
    made = {}
    for name, place in places.items():
        operand = f"{SYMBOL}+{_POINTER * place:#x}"
        made[_POINTER * place] = Operation(KIND[name], operand, f"relocation {operand} ({name})")
    return made


_WITH_WBINVD = Layout((0, 0), ((6, 1), (6, 12)), _layout({**_COMMON, "wbinvd": 21}, 22))
_WITHOUT_WBINVD = Layout((6, 17), None, _layout(_COMMON, 21))
_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


def layout_for(vermagic: str) -> tuple[Layout, bool]:
    """The layout for the kernel a module was built for, and whether it is certain rather than the likeliest."""
    match = _VERSION.match(vermagic)
    if match is None:
        return _WITH_WBINVD, False
    version = int(match[1]), int(match[2])
    layout = _WITHOUT_WBINVD if version >= _WITHOUT_WBINVD.since else _WITH_WBINVD
    return layout, layout.seen is not None and layout.seen[0] <= version <= layout.seen[1]


#: An exported function that writes CR4 for its caller: what the inline cr4_set_bits() of <asm/tlbflush.h> calls.
CR4_WRITER = "cr4_update_irqsoff"
_CR4_WRITE = Operation("MOV CR4", CR4_WRITER, f"relocation {CR4_WRITER}")


def cr4_writes(code: Code) -> dict[int, Operation]:
    """Uses of cr4_update_irqsoff in a section, by the offset of the relocated field."""
    return {relocation.offset: _CR4_WRITE for relocation in code.relocations(CR4_WRITER)}


def operations(code: Code, layout: Layout) -> dict[int, Operation]:
    """The privileged operations that a section's relocations name, by the offset of the relocated field.

    A relative field counts from the end of its instruction, which in a call or jump through memory is the
    field's own end.
    """
    found = {}
    for field, kind, addend in code.relocations(SYMBOL):
        if kind in _RELATIVE:
            addend += _FIELD
        elif kind not in _ABSOLUTE:
            continue
        operation = layout.entries.get(addend)
        if operation is not None:
            found[field] = operation
    return found

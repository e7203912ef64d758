"""Every lockable x86-64 instruction, one function each, and the program that runs them (forms_main.c).

`build(out_dir)` compiles the driver five ways and writes a manifest; forms.h says what the pieces agree on.
The names of instructions, their operands and which exist in which size are those of the Intel SDM, volume 2.

    python3 gen_forms.py OUT_DIR            # writes OUT_DIR/forms-pie, ..., OUT_DIR/forms.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
LINE = 64

# ---------------------------------------------------------------------------------------------- builds

NON_PIE = ("nopie", "static")
EXECUTABLES = ("pie", "nopie", "static", "static_pie")
BUILDS = (*EXECUTABLES, "lib")

COMPILER_OPTIONS = {
    "pie": ["-fPIE", "-pie"],
    "nopie": ["-fno-pie", "-no-pie"],
    "static": ["-fno-pie", "-no-pie", "-static", "-DFORMS_STATIC"],
    "static_pie": ["-fPIE", "-static-pie", "-DFORMS_STATIC"],
    "lib": ["-fPIC", "-shared", "-Wl,-Bsymbolic"],
}

# ------------------------------------------------------------------------------------------- registers

REGISTERS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
NO_REGISTER = 255
POINTER = {1: "byte ptr", 2: "word ptr", 4: "dword ptr", 8: "qword ptr", 16: "xmmword ptr"}


def part(register: str, size: int) -> str:
    """The name of a 64-bit register's lowest `size` bytes: rax, 4 -> eax; r9, 2 -> r9w; rsi, 1 -> sil."""
    if size == 8:
        return register
    if register[1:].isdigit():
        return register + {4: "d", 2: "w", 1: "b"}[size]
    if size == 4:
        return "e" + register[1:]
    if size == 2:
        return register[1:]
    return register[1:] + "l" if register[2] in "ip" else register[1] + "l"


def free_register(taken: Iterable[str | None], turn: int = 0, among: Sequence[str] = REGISTERS) -> str:
    """A register that is none of `taken`, a different one each turn, never rsp."""
    usable = [register for register in among if register not in taken and register != "rsp"]
    return usable[turn % len(usable)]


# ------------------------------------------------------------------------------------ addressing modes

FIXED, TLS, FS, ADDR32, EQUAL, SET_MEMORY, SET_RCX, SECOND = (1 << bit for bit in range(8))  # FORM_* in forms.h


@dataclass(frozen=True)
class Mode:
    """Where the operand is: its text in brackets, and the same as numbers for the driver."""

    name: str
    text: str
    base: str | None = None
    index: str | None = None
    scale: int = 1
    disp: int = 0
    index_value: int = 0
    anchor: str | None = None
    flags: int = 0
    lowered: int = 0
    step: int = 1
    phase: int = 0
    builds: tuple[str, ...] = BUILDS

    def memory(self, size: int) -> str:
        return f"{POINTER[size]} {self.text}"

    @property
    def registers(self) -> tuple[str | None, str | None]:
        return self.base, self.index


def signed(number: int) -> str:
    return f"{'-' if number < 0 else '+'}{abs(number):#x}"


def based(base: str, disp: int = 0, name: str = "", flags: int = 0) -> Mode:
    """[base + disp]."""
    text = f"[{base}{signed(disp) if disp else ''}]"
    if flags & FS:
        text = "fs:" + text
    return Mode(name or base, text, base=base, disp=disp, flags=flags)


def indexed(base: str, index: str, scale: int, value: int, *, disp: int = 0, name: str = "", flags: int = 0) -> Mode:
    """[base + index * scale + disp], the index holding `value`."""
    text = f"[{base}+{index}*{scale}{signed(disp) if disp else ''}]"
    if flags & FS:
        text = "fs:" + text
    name = name or f"{base}_{index}x{scale}"
    return Mode(name, text, base=base, index=index, scale=scale, disp=disp, index_value=value, flags=flags)


def narrow(mode: Mode, text: str) -> Mode:
    """The same with 32-bit address registers (67h prefix): only where data lies below 4 GiB."""
    return replace(mode, text=text, flags=mode.flags | ADDR32, builds=NON_PIE)


RDI = based("rdi")

BASES = [based(register) for register in REGISTERS if register not in ("rsp", "rdi")]

DISPLACED = [
    based("rdi", 0x40, "disp8"),
    based("rsi", -0x18, "disp8_negative"),
    based("r12", 0x10, "r12_disp8"),
    based("rdi", 0x12345, "disp32"),
    based("r9", -0x12340, "disp32_negative"),
    based("r13", 0x1000, "r13_disp32"),
    based("rbp", -0x20, "rbp_disp8"),
    based("rbp", -0x420, "rbp_disp32"),
]

INDEXED = [
    indexed("rdi", "rsi", 1, 5),
    indexed("rdi", "rsi", 2, -7),
    indexed("rdi", "rsi", 4, 0x123),
    indexed("rdi", "rsi", 8, -0x100000000),
    indexed("r12", "r13", 4, 9),
    indexed("rbp", "r9", 8, -3),
    indexed("r13", "r12", 2, 0x7FFFFFFF),
    indexed("r8", "rbp", 1, 1),
    indexed("rsi", "rdi", 8, 4, disp=8, name="index_disp8"),
    indexed("r8", "r15", 8, -2, disp=-0x1000, name="index_disp32"),
]

STACK = [
    replace(based("rsp"), lowered=0x90),
    based("rsp", 0x40, "rsp_disp8"),
    based("rsp", 0x400, "rsp_disp32"),
    based("rsp", -64, "red_zone"),
    based("rsp", -128, "red_zone_end"),
    indexed("rsp", "rsi", 8, 9, name="rsp_index"),
    indexed("rsp", "r9", 4, -16, disp=0xC0, name="rsp_index_disp32"),
]

THREAD = [
    based("rdi", name="fs", flags=FS),
    based("r10", 0x28, "fs_disp8", FS),
    indexed("rdi", "rsi", 4, 6, disp=8, name="fs_index", flags=FS),
]

NARROW = [
    narrow(based("rdi", name="edi"), "[edi]"),
    narrow(based("r9", name="r9d"), "[r9d]"),
    narrow(based("rdi", 8, "edi_disp8"), "[edi+8]"),
    narrow(based("rdi", 0x7FFFFFF0, "edi_wraps"), "[edi+0x7ffffff0]"),
    narrow(indexed("rsi", "rdi", 4, -8, name="edi_index"), "[esi+edi*4]"),
]


def fixed_modes(
    name: str, text: str, size: int, *, tail: int, builds: tuple[str, ...], flags: int = FIXED
) -> Iterator[Mode]:
    """The address is in the instruction: one form inside a line (_a), one with `tail` bytes past it (_s).

    `{}` in the text takes the offset.
    """
    for suffix, offset in (("a", LINE - size), ("s", LINE - size + tail)):
        anchor = None if flags & TLS else "forms_fixed"
        yield Mode(f"{name}_{suffix}", text.format(offset), anchor=anchor, disp=offset, flags=flags, builds=builds)


def absolute_indexes(size: int) -> Iterator[Mode]:
    """[index * scale + disp32] and [base + disp32] with the disp32 a symbol's address."""
    offset = LINE - size // 2
    symbol = f"forms_fixed+{offset}"
    plain = Mode("", "", disp=offset, anchor="forms_fixed", builds=NON_PIE)
    for register, address, scale in (("rsi", "rsi", 2), ("r10", "r10", 4), ("rbp", "rbp", 8), ("rdi", "edi", 8)):
        yield replace(
            plain,
            name=f"{address}x{scale}_abs",
            text=f"[{address}*{scale}+{symbol}]",
            index=register,
            scale=scale,
            step=scale,
            phase=offset % scale,
            flags=ADDR32 if address == "edi" else 0,
        )
    yield replace(plain, name="rdi_abs", text=f"[rdi+{symbol}]", base="rdi")
    yield replace(
        plain, name="rdi_rsix4_abs", text=f"[rdi+rsi*4+{symbol}]", base="rdi", index="rsi", scale=4, index_value=-11
    )


# ------------------------------------------------------------------------------------------- functions


class Writer:
    """Collects one function's assembly. With `reference` set, the locked instructions come out without their locks."""

    def __init__(self, name: str, reference: bool = False) -> None:
        self.name = name
        self.reference = reference
        self.lines: list[str] = []
        self.locked: list[str] = []

    def __call__(self, *lines: str) -> None:
        self.lines += lines

    def site(self, text: str) -> None:
        """Label the instruction that comes next, NAME__site or NAME__site2."""
        self.locked.append(text)
        number = len(self.locked)
        if not self.reference:
            self(f"{self.name}__site{number if number > 1 else ''}:")

    def lock(self, text: str, encoding: str = "") -> None:
        """A locked instruction; `encoding`, where given, is its exact bytes."""
        self.site("lock " + text)
        if self.reference:
            self(text)
        else:
            self(f".byte {encoding}  # lock {text}" if encoding else f"lock {text}")

    def xchg(self, memory: str, register: str, prefix: str = "", encoding: str = "", scratch: str = "rbx") -> None:
        """An xchg with memory. It has no unlocked form: the reference goes through a scratch register, no flags."""
        text = f"{prefix}xchg {memory}, {register}"
        self.site(text)
        if not self.reference:
            self(f".byte {encoding}  # {text}" if encoding else text)
            return
        size = next(size for size, pointer in POINTER.items() if memory.startswith(pointer))
        temporary = part(scratch, size)
        self(
            f"movq xmm15, {scratch}",
            f"mov {temporary}, {memory}",
            f"mov {memory}, {register}",
            f"mov {register}, {temporary}",
            f"movq {scratch}, xmm15",
        )


Shape = Callable[[Writer], None]


@dataclass(frozen=True)
class Call:
    """One way to call a form, and how many hits each of its sites then takes for a crossing operand."""

    hits: tuple[int, int] = (1, 0)
    rcx: int | None = None
    memory: int | None = None
    equal: bool = False


@dataclass(frozen=True)
class Form:
    name: str
    shape: Shape
    size: int
    mode: Mode = RDI
    calls: tuple[Call, ...] = (Call(),)
    bit: tuple[str, int] | None = None
    packed: bool = False  # no padding before it
    before: tuple[str, ...] = field(default=())  # directives before its label

    @property
    def bytes_moved(self) -> int:
        """How far a register bit offset moves the operand (SDM, BTS: the bit string addressing)."""
        return 0 if self.bit is None else (self.bit[1] >> (self.size * 8).bit_length() - 1) * self.size

    @property
    def can_split(self) -> bool:
        if not any(sum(call.hits) for call in self.calls):
            return False
        if self.mode.flags & (FIXED | TLS):
            offsets = [(self.mode.disp + self.bytes_moved) % LINE]
        else:
            offsets = [offset for offset in range(LINE) if offset % self.mode.step == self.mode.phase]
        return any(offset + self.size > LINE for offset in offsets)


def one(mode: Mode, instruction: Shape) -> Shape:
    """A function of a single instruction, then ret."""

    def shape(write: Writer) -> None:
        if mode.lowered:
            write(f"lea rsp, [rsp-{mode.lowered}]", f".cfi_adjust_cfa_offset {mode.lowered}")
        instruction(write)
        if mode.lowered:
            write(f"lea rsp, [rsp+{mode.lowered}]", f".cfi_adjust_cfa_offset -{mode.lowered}")
        write("ret")

    return shape


def locked(mnemonic: str, source: str | None, size: int, mode: Mode, encoding: str = "") -> Shape:
    operands = mode.memory(size) + (f", {source}" if source else "")
    return one(mode, lambda write: write.lock(f"{mnemonic} {operands}", encoding))


def exchange(source: str, size: int, mode: Mode, *, prefix: str = "", encoding: str = "") -> Shape:
    scratch = free_register((*mode.registers, source), among=["rbx", "rdx", "rbp"])
    memory, register = mode.memory(size), part(source, size)
    return one(mode, lambda write: write.xchg(memory, register, prefix, encoding, scratch))


# -------------------------------------------------------------------------- every instruction and size

TWO_OPERANDS = ["add", "adc", "and", "or", "sbb", "sub", "xor"]
ONE_OPERAND = ["inc", "dec", "neg", "not"]
BIT_TESTS = ["btc", "btr", "bts"]
IMMEDIATES = {2: -0x1234, 4: 0x12345678, 8: -0x12345678}


def arithmetic() -> Iterator[Form]:
    for mnemonic in TWO_OPERANDS:
        for size in (1, 2, 4, 8):
            yield Form(f"{mnemonic}{size}_reg", locked(mnemonic, part("rcx", size), size, RDI), size)
            yield Form(f"{mnemonic}{size}_imm8", locked(mnemonic, "-0x5b", size, RDI), size)
            if size in IMMEDIATES:
                immediate = str(IMMEDIATES[size])
                yield Form(f"{mnemonic}{size}_imm{min(size, 4) * 8}", locked(mnemonic, immediate, size, RDI), size)
    for mnemonic in ONE_OPERAND:
        for size in (1, 2, 4, 8):
            yield Form(f"{mnemonic}{size}", locked(mnemonic, None, size, RDI), size)
    for size in (1, 2, 4, 8):
        yield Form(f"add{size}_to_zero", locked("add", "1", size, RDI), size, calls=(Call(memory=(1 << 8 * size) - 1),))


BIT_OFFSETS = {"reg": 5, "reg_above": 483, "reg_negative": -300}


def bit_tests() -> Iterator[Form]:
    for mnemonic in BIT_TESTS:
        for size in (2, 4, 8):
            for name, immediate in (("imm", 5), ("imm_above", size * 8 + 5)):
                yield Form(f"{mnemonic}{size}_{name}", locked(mnemonic, str(immediate), size, RDI), size)
            for name, offset in BIT_OFFSETS.items():
                yield bit_test(mnemonic, size, name, RDI, bit=("rcx", offset))
            # [base] itself crosses a line but the bytes the bit offset selects do not, and never would
            decoy = replace(RDI, step=LINE, phase=size // 2)
            yield bit_test(mnemonic, size, "decoy", decoy, bit=("rcx", size * 8 + 1))
    yield bit_test("bts", 8, "reg_far", RDI, bit=("r11", 0x7_0000_0003))


def bit_test(mnemonic: str, size: int, name: str, mode: Mode, *, bit: tuple[str, int]) -> Form:
    """`bit`: the register that holds the bit offset, and the offset."""
    shape = locked(mnemonic, part(bit[0], size), size, mode)
    return Form(f"{mnemonic}{size}_{name}", shape, size, mode, bit=bit)


EQUAL_OR_NOT = (("eq", True), ("ne", False))


def exchanges() -> Iterator[Form]:
    for size in (1, 2, 4, 8):
        yield Form(f"xadd{size}", locked("xadd", part("rax", size), size, RDI), size)
        yield Form(f"xchg{size}", exchange("rax", size, RDI), size)
        yield Form(f"xchg{size}_lock", exchange("rax", size, RDI, prefix="lock "), size)
        for name, equal in EQUAL_OR_NOT:
            shape = locked("cmpxchg", part("rcx", size), size, RDI)
            yield Form(f"cmpxchg{size}_{name}", shape, size, calls=(Call(equal=equal),))
    for name, equal in EQUAL_OR_NOT:
        yield Form(f"cmpxchg8b_{name}", locked("cmpxchg8b", None, 8, RDI), 8, calls=(Call(equal=equal),))
        aligned = replace(RDI, step=16)  # anything else is a general protection fault
        yield Form(f"cmpxchg16b_{name}", locked("cmpxchg16b", None, 16, aligned), 16, aligned, (Call(equal=equal),))
    for high in ("ah", "ch", "dh", "bh"):
        yield Form(f"xadd1_{high}", locked("xadd", high, 1, RDI), 1)
    # the source is the base itself; every register as a source
    yield Form("xchg8_self", exchange("rdi", 8, RDI), 8)
    yield Form("xadd8_self", locked("xadd", "rdi", 8, RDI), 8)
    for number, register in enumerate(REGISTERS):
        if register not in ("rax", "rsp", "rdi"):
            size = (2, 4, 8)[number % 3]
            yield Form(f"xchg{size}_from_{register}", exchange(register, size, RDI), size)
            yield Form(f"xadd{size}_from_{register}", locked("xadd", part(register, size), size, RDI), size)


# ------------------------------------------------------------------------------- every addressing mode


def in_mode(mode: Mode, turn: int, size: int | None = None) -> Iterator[Form]:
    """The usual instructions in one addressing mode; the turn varies size and registers."""
    sizes = (size, size, size, size) if size else tuple((2, 4, 8)[(turn + n) % 3] for n in range(4))
    source = free_register(mode.registers, turn)
    for mnemonic, width in (("xadd", sizes[0]), ("xchg", sizes[1]), ("inc", sizes[2]), ("bts", sizes[3])):
        name = f"{mnemonic}{width}_{mode.name}"
        if mnemonic == "xchg":
            yield Form(name, exchange(source, width, mode), width, mode)
        elif mnemonic == "inc":
            yield Form(name, locked("inc", None, width, mode), width, mode)
        elif mnemonic == "xadd":
            yield Form(name, locked("xadd", part(source, width), width, mode), width, mode)
        elif mode.flags & (FIXED | TLS):
            yield Form(name, locked("bts", "7", width, mode), width, mode)
        else:
            yield bit_test("bts", width, mode.name, mode, bit=(source, 40 * 8 * (-1) ** turn + 3))
    if not {"rax", "rcx", "rdx", "rbx"} & set(mode.registers):
        if size in (None, 8):
            calls = (Call(equal=turn % 2 == 0),)
            yield Form(f"cmpxchg8b_{mode.name}", locked("cmpxchg8b", None, 8, mode), 8, mode, calls)
    else:
        comparand = "rax" not in mode.registers
        shape = locked("cmpxchg", part("rsi", sizes[0]), sizes[0], mode)
        yield Form(f"cmpxchg{sizes[0]}_{mode.name}", shape, sizes[0], mode, (Call(equal=comparand),))


def with_immediate(mode: Mode, size: int, turn: int) -> Form:
    """An immediate after the displacement: it moves what a rip-relative displacement counts from."""
    mnemonic = TWO_OPERANDS[turn % len(TWO_OPERANDS)]
    immediate = IMMEDIATES[size] if turn % 2 else -3
    return Form(f"{mnemonic}{size}_imm_{mode.name}", locked(mnemonic, str(immediate), size, mode), size, mode)


def addressing() -> Iterator[Form]:
    turn = 0
    for turn, mode in enumerate([*BASES, *DISPLACED, *INDEXED, *STACK, *THREAD, *NARROW]):
        yield from in_mode(mode, turn)
        if mode not in BASES:
            yield with_immediate(mode, (2, 4, 8)[turn % 3], turn)
    for size in (2, 4, 8):
        modes = [
            *fixed_modes("rip", "[rip+forms_fixed+{}]", size, tail=1, builds=BUILDS),
            *fixed_modes("tls", "fs:[forms_tls@tpoff+{}]", size, tail=size // 2, builds=EXECUTABLES, flags=TLS),
            *fixed_modes("abs", "[forms_fixed+{}]", size, tail=size - 1, builds=NON_PIE),
        ]
        for mode in modes:
            turn += 1
            yield from in_mode(mode, turn, size)
            yield with_immediate(mode, size, turn)
            yield with_immediate(mode, size, turn + 1)
    for size in (4, 8):
        rarer = [*fixed_modes("eip", "[eip+forms_fixed+{}]", size, tail=2, builds=NON_PIE), *absolute_indexes(size)]
        for mode in rarer:
            turn += 1
            forms = [*in_mode(mode, turn, size), with_immediate(mode, size, turn)]
            yield from (form for form in forms if size == 4 or form.name.startswith("cmpxchg8b"))


# --------------------------------------------------------------------------------------- odd encodings

ENCODINGS = [  # name, bytes, what they mean; all address [rdi]
    ("66_f0", "0x66, 0xf0, 0x0f, 0xc1, 0x0f", "xadd", "cx", 2),
    ("f0_66", "0xf0, 0x66, 0x0f, 0xc1, 0x0f", "xadd", "cx", 2),
    ("ds_f0", "0x3e, 0xf0, 0x0f, 0xc1, 0x0f", "xadd", "ecx", 4),
    ("f0_ds", "0xf0, 0x3e, 0xff, 0x07", "inc", None, 4),
    ("cs_f0", "0x2e, 0xf0, 0xff, 0x0f", "dec", None, 4),
    ("f0_f0", "0xf0, 0xf0, 0xff, 0x07", "inc", None, 4),
    ("xrelease", "0xf3, 0xf0, 0xff, 0x07", "inc", None, 4),
    ("f0_f3", "0xf0, 0xf3, 0x01, 0x0f", "add", "ecx", 4),
    ("empty_rex", "0xf0, 0x40, 0xff, 0x07", "inc", None, 4),
    ("full_rex", "0xf0, 0x4a, 0xff, 0x07", "inc", None, 8),
    ("66_rexw", "0x66, 0xf0, 0x48, 0xff, 0x07", "inc", None, 8),
    ("disp8_zero", "0xf0, 0xff, 0x47, 0x00", "inc", None, 4),
    ("disp32_zero", "0xf0, 0xff, 0x87, 0, 0, 0, 0", "inc", None, 4),
    ("sib", "0xf0, 0xff, 0x04, 0x27", "inc", None, 4),
    ("sib_scale", "0xf0, 0xff, 0x04, 0xe7", "inc", None, 4),
    ("long_imm", "0xf0, 0x81, 0x07, 3, 0, 0, 0", "add", "3", 4),
    ("longest", f"{'0x2e, ' * 7}0xf0, 0xff, 0x84, 0x27, 0, 0, 0, 0", "inc", None, 4),
]
XCHG_ENCODINGS = [  # likewise: xchg [rdi], rcx or ecx
    ("66_rexw", "0x66, 0x48, 0x87, 0x0f", 8),
    ("xrelease", "0xf3, 0x87, 0x0f", 4),
    ("ds", "0x3e, 0x87, 0x0f", 4),
    ("sib", "0x87, 0x0c, 0x27", 4),
    ("disp8_zero", "0x87, 0x4f, 0x00", 4),
    ("f0_f0", "0xf0, 0xf0, 0x87, 0x0f", 4),
]


def encodings() -> Iterator[Form]:
    for name, encoding, mnemonic, source, size in ENCODINGS:
        yield Form(f"encoding_{name}", locked(mnemonic, source, size, RDI, encoding), size)
    for name, encoding, size in XCHG_ENCODINGS:
        yield Form(f"encoding_xchg_{name}", exchange("rcx", size, RDI, encoding=encoding), size)


# -------------------------------------------------------------------------------------- special shapes

DWORD = "dword ptr [rdi]"
SPECIAL: list[Form] = []


def special(
    size: int = 4,
    calls: Sequence[Call] = (Call(),),
    mode: Mode = RDI,
    packed: bool = False,
    before: tuple[str, ...] = (),
) -> Callable[[Shape], Shape]:
    def register(shape: Shape) -> Shape:
        name = getattr(shape, "__name__", "")
        SPECIAL.append(Form(f"shape_{name}", shape, size, mode, tuple(calls), None, packed, before))
        return shape

    return register


TAKEN_OR_NOT = (Call(memory=1), Call())
COMPARED = tuple(Call(rcx=rcx) for rcx in (3, 5, 7))
PAIR = replace(RDI, flags=SECOND)


@special()
def then_call(write: Writer) -> None:
    write.lock(f"inc {DWORD}")
    write("call forms_helper", "2:")
    returned_to(write, "2b")


@special()
def after_call(write: Writer) -> None:
    write("call forms_helper", "2:")
    write.lock(f"inc {DWORD}")
    returned_to(write, "2b")


def returned_to(write: Writer, label: str) -> None:
    """forms_helper left its return address in rdx: turn it into 0 if it is `label`, with no flag touched."""
    write(f"lea rcx, [rip+{label}]", "not rcx", "lea rdx, [rdx+rcx+1]", "mov ecx, 0")
    write("mov qword ptr [rsp-8], 0", "ret")


@special(calls=TAKEN_OR_NOT)
def then_jz(write: Writer) -> None:
    write.lock(f"dec {DWORD}")
    write("jz 2f", "lea rax, [rax+1]", "2: ret")


@special(calls=TAKEN_OR_NOT)
def then_near_jz(write: Writer) -> None:
    write.lock(f"dec {DWORD}")
    write("{disp32} jz 2f", "lea rax, [rax+1]", "2: ret")


@special(calls=(Call(equal=True), Call()))
def cmpxchg_then_jne(write: Writer) -> None:
    write.lock(f"cmpxchg {DWORD}, esi")
    write("jne 2f", "lea rcx, [rcx+1]", "2: ret")


@special(calls=(Call(memory=8), Call(memory=0)))
def bts_then_jc(write: Writer) -> None:
    write.lock(f"bts {DWORD}, 3")
    write("jc 2f", "lea rax, [rax+1]", "2: ret")


@special(calls=(Call(rcx=0), Call(rcx=1), Call(rcx=2)))
def then_jrcxz(write: Writer) -> None:
    write.lock(f"inc {DWORD}")
    write("jrcxz 2f", "lea rax, [rax+1]", "2: ret")


@special(calls=(Call(rcx=0), Call(rcx=1)))
def then_loop(write: Writer) -> None:
    write.lock(f"inc {DWORD}")
    write("loop 2f", "lea rax, [rax+1]", "2: ret")


@special()
def then_jmp(write: Writer) -> None:
    write.xchg(DWORD, "eax")
    write("jmp 2f", "ud2", "2: ret")


@special()
def then_rip_relative(write: Writer) -> None:
    write.xchg(DWORD, "eax")
    write("mov rdx, [rip+forms_constant]", "ret")


@special(calls=(Call((1, 1)),), mode=PAIR)
def pair_inc_dec(write: Writer) -> None:
    write.lock(f"inc {DWORD}")
    write.lock("dec dword ptr [rsi]")
    write("ret")


@special(calls=(Call((1, 1)),), mode=PAIR)
def pair_xchg(write: Writer) -> None:
    write.xchg(DWORD, "eax")
    write.xchg("dword ptr [rsi]", "ecx")
    write("ret")


@special(calls=(Call((0, 0), rcx=0), Call(rcx=1), Call(rcx=1, equal=True)))
def past_lock(write: Writer) -> None:
    """glibc's malloc: in a single-threaded program jump over the lock prefix."""
    write("cmp ecx, 0", "je 2f")
    past_prefix(write)


@special(calls=(Call((0, 0), rcx=0, equal=True), Call(rcx=1), Call(rcx=1, equal=True)))
def past_lock_far(write: Writer) -> None:
    """The same with 20 bytes between the jump and the prefix."""
    write("cmp ecx, 0", "je 2f", *["lea r8, [r8+1]"] * 5)
    past_prefix(write)


def past_prefix(write: Writer) -> None:
    write.site(f"lock cmpxchg {DWORD}, esi")
    if not write.reference:
        write(".byte 0xf0  # lock")
    write(f"2: cmpxchg {DWORD}, esi", "ret")


@special(calls=(Call((0, 0), rcx=0), Call(rcx=1)))
def over_the_site(write: Writer) -> None:
    """A jump over a short site lands on the instruction right after it."""
    write("test ecx, ecx", "jz 2f")
    write.lock(f"inc {DWORD}")
    write("2: lea rax, [rax+1]", "ret")


@special(calls=(Call((3, 0)),))
def loop_to_site(write: Writer) -> None:
    write("mov ecx, 3", "2:")
    write.lock(f"add {DWORD}, eax")
    write("dec ecx", "jnz 2b", "ret")


@special()
def loop_after_site(write: Writer) -> None:
    write("mov ecx, 3")
    write.lock(f"inc {DWORD}")
    write("2: lea rax, [rax+1]", "dec ecx", "jnz 2b", "ret")


SWITCHED = (Call(rcx=0), Call((0, 0), rcx=1), Call((0, 0), rcx=2))


@special(calls=SWITCHED)
def switch_offsets(write: Writer) -> None:
    """Case 0 is a short locked instruction that falls into case 1; the table holds 32-bit offsets."""
    name = f".L{write.name}"
    write(f"lea rdx, [rip+{name}]", "movsxd rcx, dword ptr [rdx+rcx*4]", "add rdx, rcx", "jmp rdx")
    cases(write, name)
    table = [f".long {name}_{case} - {name}" for case in range(3)]
    write(".pushsection .rodata", ".balign 4", f"{name}:", *table, ".popsection")


@special(calls=SWITCHED)
def switch_pointers(write: Writer) -> None:
    """The same with absolute 8-byte pointers."""
    name = f".L{write.name}"
    write(f"lea rdx, [rip+{name}]", "jmp [rdx+rcx*8]")
    cases(write, name)
    table = [f".quad {name}_{case}" for case in range(3)]
    write('.pushsection .data.rel.ro, "aw"', ".balign 8", f"{name}:", *table, ".popsection")


def cases(write: Writer, name: str) -> None:
    write(f"{name}_0:")
    write.lock(f"inc {DWORD}")
    write(f"{name}_1:", "lea rax, [rax+1]", f"{name}_2:", "lea rax, [rax+2]", "mov ecx, 0", "mov edx, 0")
    write("test eax, eax", "ret")


@special(calls=COMPARED)
def flags_across_xchg(write: Writer) -> None:
    write("cmp ecx, 5")
    write.xchg(DWORD, "esi")
    write("jl 2f", "lea rax, [rax+1]", "2: ret")


@special(calls=COMPARED)
def carry_across_inc(write: Writer) -> None:
    write("cmp ecx, 5")
    write.lock(f"inc {DWORD}")
    write("adc rdx, 0", "ret")


@special(calls=COMPARED)
def flags_across_not(write: Writer) -> None:
    write("cmp ecx, 5")
    write.lock(f"not {DWORD}")
    write("ja 2f", "lea rax, [rax+1]", "2: setle dl", "ret")


@special(size=8, calls=(Call(equal=True), Call()))
def flags_across_cmpxchg8b(write: Writer) -> None:
    """Only ZF is written; the carry lives on."""
    write.lock("cmpxchg8b qword ptr [rdi]")
    write("jnz 2f", "adc rsi, 0", "2: ret")


@special(packed=True)
def tiny(write: Writer) -> None:
    """The whole function is three bytes; its neighbours touch it."""
    write.xchg(DWORD, "eax")
    write("ret")


@special(packed=True)
def tiny_neighbour(write: Writer) -> None:
    write.xchg(DWORD, "ecx")
    write("ret")


@special(before=(".p2align 12", ".skip 4094, 0xcc"), packed=True)
def across_code_pages(write: Writer) -> None:
    """The instruction itself lies in two pages."""
    write.lock(f"xadd {DWORD}, eax")
    write("ret")


# ---------------------------------------------------------------------------------------- the assembly


def all_forms() -> list[Form]:
    """Every form of every build, in the order of the file; packed and padded functions alternate."""
    generated = [*arithmetic(), *bit_tests(), *exchanges(), *encodings(), *addressing()]
    forms = [replace(form, name=f"f_{form.name}", packed=number % 2 == 1) for number, form in enumerate(generated)]
    forms += SPECIAL
    names = [form.name for form in forms]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return forms


LOOKALIKES = bytes.fromhex(
    "f00fc107 f0ff07 8707 f0480fb10e f00fc70f f08307 01 f0ff0f 870f c3 f0660fc107 f00fba2f05 4887060f"
    "f00fb137 f0f7 1f f0871f 66 8707 f0830c2400 0f1f00 f00fc10d00000000 f048ff07 e8f0ff07 87 c7 f0ff"
)


def checksum(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value * 31 + byte) % 2**64
    return value


def function(form: Form, reference: bool) -> Iterator[str]:
    name = f"{form.name}__ref" if reference else form.name
    write = Writer(name, reference)
    form.shape(write)
    if not reference:
        yield from form.before
        if not form.packed:
            yield ".p2align 4"
        yield f".global {name}"
    yield f".type {name}, @function"
    yield f"{name}:"
    yield ".cfi_startproc"
    yield from write.lines
    yield ".cfi_endproc"
    yield f".size {name}, . - {name}"


HELPER = """
    .type forms_helper, @function
forms_helper:
    .cfi_startproc
    mov rdx, [rsp]
    ret
    .cfi_endproc
    .size forms_helper, . - forms_helper
"""

DATA = """
    .data
    .balign 64
forms_fixed:
    .zero 256
    .section .rodata
    .balign 8
forms_constant:
    .quad 0x0fedcba987654321
"""

TLS_DATA = """
    .section .tbss, "awT", @nobits
    .balign 64
    .global forms_tls
    .hidden forms_tls
    .type forms_tls, @object
    .size forms_tls, 256
forms_tls:
    .zero 256
"""


def number_of(register: str | None) -> int:
    return NO_REGISTER if register is None else REGISTERS.index(register)


def table(form: Form) -> Iterator[str]:
    """The rows of `struct form` (forms.h) for one form: one a call."""
    mode = form.mode
    bit_register, bit = form.bit or (None, 0)
    for call in form.calls:
        flags = mode.flags | (EQUAL if call.equal else 0)
        flags |= SET_MEMORY if call.memory is not None else 0
        flags |= SET_RCX if call.rcx is not None else 0
        yield f".quad .Lname_{form.name}, {form.name}, {form.name}__ref, {mode.anchor or 0}"
        yield f".quad {mode.disp}, {mode.index_value}, {bit}, {call.memory or 0}, {call.rcx or 0}"
        yield f".long {flags}"
        yield f".byte {form.size}, {number_of(mode.base)}, {number_of(mode.index)}, {mode.scale}"
        yield f".byte {number_of(bit_register)}, {mode.step}, {mode.phase}, {mode.lowered}"
        yield f".byte {call.hits[0]}, {call.hits[1]}, 0, 0"


def assembly(build_name: str) -> str:
    """The text of forms.S for one of BUILDS."""
    forms = [form for form in all_forms() if build_name in form.mode.builds]
    lines = ["# generated by gen_forms.py", ".intel_syntax noprefix", ".text"]
    for number, form in enumerate(forms):
        lines += function(form, reference=False)
        if number == len(forms) // 2:
            values = ", ".join(f"{byte:#04x}" for byte in LOOKALIKES)
            lines += [".global forms_lookalikes", "forms_lookalikes:", f".byte {values}"]
    lines.append(HELPER)
    for form in forms:
        lines += function(form, reference=True)
    lines.append(DATA)
    if build_name in EXECUTABLES:
        lines.append(TLS_DATA)
    lines.append(".section .rodata")
    for form in forms:
        lines.append(f'.Lname_{form.name}: .asciz "{form.name}"')
    lines += ['.section .data.rel.ro, "aw"', ".balign 8", "forms_table:"]
    for form in forms:
        lines += table(form)
    lines += [".global forms_module", ".type forms_module, @object", "forms_module:"]
    lines.append(f".quad forms_table, {sum(len(form.calls) for form in forms)}, forms_fixed")
    lines.append(f".quad forms_lookalikes, {len(LOOKALIKES)}, {checksum(LOOKALIKES)}")
    lines += [".size forms_module, . - forms_module", '.section .note.GNU-stack, "", @progbits']
    return "\n".join(lines) + "\n"


def manifest() -> dict[str, object]:
    """What a test compares with: each function's symbol, the labels of its sites, and in which builds it is."""
    functions = []
    for form in all_forms():
        write = Writer(form.name)
        form.shape(write)
        sites = [f"{form.name}__site{number if number > 1 else ''}" for number in range(1, len(write.locked) + 1)]
        functions.append(
            {
                "symbol": form.name,
                "sites": sites,
                "instructions": write.locked,
                "size": form.size,
                "mode": form.mode.name,
                "can_split": form.can_split,
                "builds": list(form.mode.builds),
            }
        )
    lookalikes = {"symbol": "forms_lookalikes", "size": len(LOOKALIKES), "checksum": f"{checksum(LOOKALIKES):#x}"}
    return {"functions": functions, "lookalikes": lookalikes}


# ------------------------------------------------------------------------------------------- compiling


def compile_c(output: Path, sources: Sequence[Path], options: Sequence[str] = ()) -> Path:
    """Compile with gcc; CalledProcessError, after its messages, if that fails."""
    command = ["gcc", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{HERE}", *options, "-o", str(output)]
    subprocess.run([*command, *map(str, sources), "-pthread"], check=True)
    return output


def build_program(name: str, out_dir: Path, options: Sequence[str] = ()) -> Path:
    """Compile one of the small programs beside this file, e.g. build_program("demo", tmp_path, ["-static"])."""
    out_dir.mkdir(parents=True, exist_ok=True)
    return compile_c(out_dir / name, [HERE / f"{name}.c"], options)


def build(out_dir: Path) -> dict[str, Path]:
    """Build the forms every way.

    Returns the programs "pie", "nopie", "static" and "static_pie", the shared library "lib" (for `dlopen PATH`), and
    the "manifest".
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    manifest_path = out_dir / "forms.json"
    manifest_path.write_text(json.dumps(manifest(), indent=1) + "\n")

    def compile_build(name: str) -> Path:
        source = out_dir / f"forms-{name}.S"
        source.write_text(assembly(name))
        if name == "lib":
            return compile_c(out_dir / "libforms.so", [source], COMPILER_OPTIONS[name])
        sources = [HERE / "forms_main.c", HERE / "forms_call.S", source]
        return compile_c(out_dir / f"forms-{name}", sources, COMPILER_OPTIONS[name])

    with ThreadPoolExecutor() as pool:
        paths = dict(zip(BUILDS, pool.map(compile_build, BUILDS), strict=True))
    return {**paths, "manifest": manifest_path}


if __name__ == "__main__":
    for key, path in build(Path(sys.argv[1])).items():
        print(f"{key:10} {path}")

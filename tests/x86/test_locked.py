"""Which instructions lock, and where their operand is: judged by objdump's text and by arithmetic done here by hand."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from iced_x86 import Decoder, Instruction, Register, RegisterExt
from x86.building import (
    CRYPTO,
    LIBC,
    LIBSTDCXX,
    LOADER,
    LOCKS,
    PYTHON,
    Listed,
    assemble,
    function,
    link,
    listing,
    locked_width,
)

from splitlock.image.elf import Elf
from splitlock.image.functions import function_ranges
from splitlock.process.functions import Text
from splitlock.x86.lines import crosses, past_line
from splitlock.x86.locked import (
    alignment_register,
    bit_offset_register,
    decided,
    likely_locked,
    operand_address,
    segment_register,
    split_size,
)
from splitlock.x86.patterns import CANDIDATE, LOCK_PREFIXED

GENERAL = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
NARROW = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", *(f"r{n}d" for n in range(8, 16))]
WORDS = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{n}w" for n in range(8, 16))]
BYTES = ["al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil", *(f"r{n}b" for n in range(8, 16))]
BY_SIZE = {1: BYTES, 2: WORDS, 4: NARROW, 8: GENERAL}
POINTER = {1: "byte ptr", 2: "word ptr", 4: "dword ptr", 8: "qword ptr", 16: "xmmword ptr"}


def decode(code: bytes, ip: int = 0) -> Instruction:
    return Decoder(64, code, ip=ip).decode()


def every_form() -> list[str]:
    """Each lockable instruction with each operand size, and its plain and register-only relatives."""
    forms = []
    for size, registers in BY_SIZE.items():
        memory = f"{POINTER[size]} [rdi+24]"
        for register in (registers[3], registers[9]):
            for name in ("add", "or", "adc", "sbb", "and", "sub", "xor", "xadd", "cmpxchg"):
                forms += [f"lock {name} {memory}, {register}", f"{name} {memory}, {register}"]
                forms += [f"{name} {register}, {register}"]
            forms += [f"xchg {memory}, {register}", f"lock xchg {memory}, {register}", f"xchg {register}, {register}"]
            forms += [f"xacquire xchg {memory}, {register}", f"xrelease lock add {memory}, {register}"]
            if size > 1:
                for name in ("bts", "btr", "btc"):
                    forms += [f"lock {name} {memory}, {register}", f"{name} {memory}, {register}"]
                    forms += [f"lock {name} {memory}, 3", f"{name} {register}, 3"]
                forms += [f"bt {memory}, {register}"]
        for name in ("add", "or", "adc", "sbb", "and", "sub", "xor"):
            forms += [f"lock {name} {memory}, 1", f"{name} {memory}, 1", f"lock {name} {memory}, -100"]
            if size > 1:
                forms += [f"lock {name} {memory}, {0x1234 if size == 2 else 0x12345678}"]
        for name in ("inc", "dec", "not", "neg"):
            forms += [f"lock {name} {memory}", f"{name} {memory}", f"{name} {registers[6]}"]
        forms += [f"cmp {memory}, 1", f"mov {memory}, 1", f"shl {memory}, 1"]
    forms += ["lock cmpxchg8b [rdi]", "cmpxchg8b [rdi]", "lock cmpxchg16b [rdi]", "cmpxchg16b [r9]"]
    forms += [
        "mfence",
        "nop",
        "xchg eax, eax",
        "ret",
        "xbegin 1f; 1: pause",
        "prefetchw [rdi]",
        "lock add [r13+r12*8], rax",
    ]
    # Prefixes in unusual places, and bytes that are no instruction.
    forms += [
        ".byte 0x66, 0xf0, 0x01, 0x07",
        ".byte 0x2e, 0xf0, 0x66, 0x01, 0x07",
        ".byte 0xf0, 0x67, 0x48, 0x01, 0x07",
    ]
    forms += [".byte 0xf0, 0xf0, 0x01, 0x07", ".byte 0x67, 0x87, 0x07", ".byte 0xf2, 0x66, 0x87, 0x07"]
    return forms


@pytest.fixture(scope="module")
def lockable(tmp_path_factory: pytest.TempPathFactory) -> list[Listed]:
    """`every_form`, assembled one after the other and listed by objdump."""
    lines = listing(assemble(tmp_path_factory.mktemp("forms"), "\n".join(every_form())))
    assert len(lines) >= len(every_form())
    return lines


def splittable(text: str) -> int:
    """What split_size should say of an instruction with this text: a byte or 16 aligned bytes cannot split."""
    width = locked_width(text)
    return width if 1 < width < 16 else 0


def test_every_lockable_form_is_classified_as_objdump_reads_it(lockable: list[Listed]) -> None:
    assert {locked_width(line.text) for line in lockable} == {0, 1, 2, 4, 8, 16}
    for line in lockable:
        instruction = decode(line.code, line.address)
        assert len(instruction) == len(line.code), line
        assert split_size(instruction) == splittable(line.text), line


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(b"\xf0\x89\x07", id="lock-mov"),
        pytest.param(b"\xf0\x39\x07", id="lock-cmp"),
        pytest.param(b"\xf0\x01\xc7", id="lock-add-registers"),
        pytest.param(b"\xf0\x0f\xa3\x07", id="lock-bt"),
        pytest.param(b"\xf0\x87\xc7", id="lock-xchg-registers"),
    ],
)
def test_lock_on_what_cannot_be_locked_is_no_site(code: bytes) -> None:
    assert split_size(decode(code)) == 0


def test_candidate_finds_every_lockable_form(lockable: list[Listed]) -> None:
    for line in lockable:
        if locked_width(line.text):
            match = CANDIDATE.search(line.code)
            assert match, line
            assert bool(LOCK_PREFIXED.search(line.code)) == (b"\xf0" in line.code[: match.end()]), line


@pytest.mark.parametrize("path", [LIBC, LIBSTDCXX, PYTHON, LOADER, CRYPTO], ids=lambda path: path.name)
def test_no_locked_instruction_is_without_a_candidate(path: Path) -> None:
    elf = Elf(path.read_bytes())
    ranges = function_ranges(elf)
    found, with_sites = 0, set()
    for start, end in ranges:
        code = elf.read(start, end - start)
        covered = {at for match in CANDIDATE.finditer(code) for at in range(*match.span())}
        for x in Decoder(64, code, ip=0):
            if size := split_size(x):
                found += 1
                assert covered.intersection(range(x.ip, x.next_ip)), f"{start + x.ip:#x}: {x}"
                if not decided(decode(code[x.ip : x.next_ip], start + x.ip), size):
                    with_sites.add(start)
    assert found > 25
    assert {f.start for f in Text(elf).functions} == with_sites


@pytest.mark.parametrize("path", [LIBC, LIBSTDCXX, LOADER], ids=lambda path: path.name)
def test_locked_instructions_of_libraries_are_those_objdump_lists(path: Path) -> None:
    elf = Elf(path.read_bytes())
    ranges = function_ranges(elf)
    listed = {line.address: width for line in listing(path, LOCKS) if (width := splittable(line.text))}
    decoded = {
        x.ip: split_size(x)
        for start, end in ranges
        for x in Decoder(64, elf.read(start, end - start), ip=start)
        if split_size(x)
    }
    outside = [a for a in listed if not any(start <= a < end for start, end in ranges)]
    assert outside == []
    assert decoded == listed


@pytest.mark.parametrize(
    ("before", "site"),
    [(".byte 0xeb, 0xf0", "lock inc dword ptr [rdi]"), (".byte 0xeb, 0x86", "xchg [rdi], esi")],
    ids=["jmp-16-then-lock", "jmp-122-then-xchg"],
)
def test_a_function_right_behind_a_byte_that_looks_like_a_prefix(tmp_path: Path, before: str, site: str) -> None:
    # A loop's jump back ends the first function; its displacement and the next opcode look like one instruction.
    source = function("first", f".skip 140, 0x90\n{before}") + function("second", f"{site}\nret", padding="")
    elf = Elf(link(tmp_path, source).read_bytes())
    text = Text(elf)
    assert [str(f.instructions[i].code) for f in text.functions for i in f.sites] != []


def test_likely_locked_is_about_right_for_a_whole_text() -> None:
    for path in (LIBC, LIBSTDCXX):
        elf = Elf(path.read_bytes())
        text = elf.section(".text")
        assert text is not None
        low, high = text.addr, text.addr + text.size
        exact = sum(
            1
            for start, end in function_ranges(elf)
            if low <= start and end <= high
            for x in Decoder(64, elf.read(start, end - start), ip=start)
            if split_size(x)
        )
        assert 0.8 * exact <= likely_locked(elf.read(low, text.size)) <= 1.2 * exact


@pytest.mark.parametrize("code", [b"", b"\xf0", b"\xf0\xff", b"\xf0" * 64, b"\x00" * 200, bytes(range(256)) * 4])
def test_likely_locked_takes_any_bytes(code: bytes) -> None:
    assert likely_locked(code) >= 0


# -- operands ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A memory operand by its parts; registers by their number."""

    size: int
    base: int | None
    index: int | None = None
    scale: int = 1
    displacement: int = 0
    segment: str = ""
    narrow: bool = False
    bit_register: int | None = None

    @property
    def text(self) -> str:
        names = NARROW if self.narrow else GENERAL
        parts = [] if self.base is None else [names[self.base]]
        if self.index is not None:
            parts.append(f"{names[self.index]}*{self.scale}")
        parts.append(f"{self.displacement:+#x}" if parts else f"{self.displacement:#x}")
        memory = (
            f"{POINTER[self.size]} {self.segment + ':' if self.segment else ''}[{'+'.join(parts).replace('+-', '-')}]"
        )
        if self.bit_register is not None:
            return f"lock bts {memory}, {BY_SIZE[self.size][self.bit_register]}"
        return f"lock add {memory}, 1"

    def address(self, general: list[int], fs: int, gs: int) -> int:
        """SDM vol. 1, 3.7.5, and for the bit offset vol. 2A, BTS: the operand `size` holds bit offset div 8*size."""
        effective = self.displacement
        if self.base is not None:
            effective += general[self.base]
        if self.index is not None:
            effective += general[self.index] * self.scale
        if self.bit_register is not None:
            bits = 8 * self.size
            offset = general[self.bit_register] % 2**bits
            if offset >= 2 ** (bits - 1):
                offset -= 2**bits
            effective += offset // bits * self.size
        effective %= 2**32 if self.narrow else 2**64
        return (effective + {"": 0, "fs": fs, "gs": gs}[self.segment]) % 2**64


def operands() -> list[Operand]:
    chance = random.Random(1)
    made = [Operand(4, base, displacement=d) for base in range(16) for d in (0, 8, -8, 0x12345)]
    made += [Operand(8, base, narrow=True) for base in range(16)]
    made += [
        Operand(8, base, index, scale, d)
        for base, index, scale, d in itertools.product((0, 4, 5, 12, 13), (1, 5, 9, 13), (1, 2, 4, 8), (0, 4, -16))
    ]
    made += [Operand(2, None, index, 8, 0x40) for index in (0, 5, 12, 13)]
    made += [Operand(4, None, displacement=d, segment=s) for s in ("", "fs", "gs") for d in (0, 0x28, 0x7FFFFFFE)]
    for size in (2, 4, 8):
        made += [Operand(size, 7, displacement=-32, bit_register=r) for r in range(16)]
        made += [Operand(size, 3, 6, 4, segment="fs", bit_register=1)]
    for _ in range(300):
        index = chance.choice([None, *(n for n in range(16) if n != 4)])
        made.append(
            Operand(
                chance.choice((2, 4, 8)),
                chance.choice([None, *range(16)]) if index is not None else chance.randrange(16),
                index,
                chance.choice((1, 2, 4, 8)),
                chance.choice((0, 1, 2, 4, 6, 8, 60, 64, -1, -4, -64, chance.randrange(-(2**31), 2**31))),
                chance.choice(("", "", "", "fs", "gs")),
                chance.random() < 0.2,
            )
        )
    return made


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Operand, Instruction, bytes]]:
    """Operands, each with the one instruction GNU as makes of it."""
    made = operands()
    lines = listing(assemble(tmp_path_factory.mktemp("operands"), "\n".join(o.text for o in made)))
    assert len(lines) == len(made)
    for operand, line in zip(made, lines, strict=True):
        assert locked_width(line.text) == operand.size, (operand.text, line)
    return [(o, decode(line.code, line.address), line.code) for o, line in zip(made, lines, strict=True)]


def registers(chance: random.Random) -> list[int]:
    """Values as programs have them: addresses, small and negative numbers, and any at all."""
    pick = (
        lambda: chance.getrandbits(64),
        lambda: chance.getrandbits(64),
        lambda: chance.randrange(0x5555_0000_0000, 0x7FFF_FFFF_FFFF),
        lambda: chance.randrange(1000),
        lambda: 2**64 - chance.randrange(1, 1000),
        lambda: chance.choice((0, 2**63, 2**63 - 1, 2**32, 2**31, 2**15)),
    )
    return [chance.choice(pick)() for _ in range(16)]


def test_operand_address_is_the_manuals_formula(assembled: list[tuple[Operand, Instruction, bytes]]) -> None:
    chance = random.Random(2)
    for operand, _, code in assembled:
        for _ in range(20):
            general = registers(chance)
            fs, gs = chance.getrandbits(47), chance.getrandbits(47)
            got = operand_address(code, 0x401000, general, fs, gs)
            assert got == operand.address(general, fs, gs), (operand.text, [f"{v:#x}" for v in general])


def test_operand_address_with_a_bit_offset_stays_within_64_bits() -> None:
    code = b"\xf0\x48\x0f\xab\x07"  # lock bts [rdi], rax
    general = [2**64 - 1, *[0] * 15]
    assert operand_address(code, 0, general, 0, 0) == 2**64 - 8


def test_operand_address_with_a_bit_offset_and_32_bit_addresses_wraps() -> None:
    code = b"\xf0\x67\x0f\xab\x07"  # lock bts dword ptr [edi], eax
    general = [64, *[0] * 6, 2**32 - 4, *[0] * 8]
    assert operand_address(code, 0, general, 0, 0) == 4


@pytest.mark.parametrize(
    ("code", "mode", "address"),
    [
        ("f0 83 03 01", 32, 0x1_0000),  # lock add dword ptr [ebx], 1
        ("f0 83 45 02 01", 32, 0x2_0031),  # [ebp+2], by SS
        ("f0 65 83 03 01", 32, 0x6_0000),  # gs:[ebx]
        ("f0 66 83 00 01", 16, 0x1_0000 + 0x0012),  # [bx+si], which wraps
        ("67 f0 66 83 03 01", 16, 0x1_0000),  # [ebx]
        ("f0 66 83 06 34 12 01", 16, 0x1_1234),  # [1234h]
    ],
)
def test_operand_address_of_other_modes(code: str, mode: int, address: int) -> None:
    general = [0, 0, 0, 0, 0, 0x2F, 0, 0, *[0] * 8]
    if mode == 16 and code == "f0 66 83 00 01":
        general[3], general[6] = 0xFFF2, 0x20
    others = {Register.DS: 0x1_0000, Register.SS: 0x2_0000}
    assert operand_address(bytes.fromhex(code), 0, general, 0x5_0000, 0x6_0000, mode, others) == address


@pytest.mark.parametrize("displacement", [0, 8, -8, 0x1000, -0x2000_0000])
def test_operand_address_relative_to_rip(tmp_path: Path, displacement: int) -> None:
    (line,) = listing(assemble(tmp_path, f"lock cmpxchg dword ptr [rip{displacement:+}], ecx"))
    ip = 0x7F12_3456_7890
    assert operand_address(line.code, ip, [0] * 16, 1, 1) == ip + len(line.code) + displacement


def test_operand_address_relative_to_eip_is_32_bits_wide() -> None:
    code = b"\x67\xf0\xff\x05\x10\x00\x00\x00"  # lock inc dword ptr [eip+16]
    ip = 0x5555_FFFF_FFF0
    assert operand_address(code, ip, [0] * 16, 0, 0) == (ip + len(code) + 16) % 2**32


@pytest.mark.parametrize("text", ["add [rdi], eax", "lock add byte ptr [rdi], 1", "lock cmpxchg16b [rdi]", "ret"])
def test_operand_address_of_anything_else_is_none(tmp_path: Path, text: str) -> None:
    (line,) = listing(assemble(tmp_path, text))
    assert operand_address(line.code, 0, [0] * 16, 0, 0) is None


@pytest.mark.parametrize("code", [b"", b"\xf0", b"\xf0\xff", b"\x06"])
def test_operand_address_of_bytes_that_are_no_instruction_is_none(code: bytes) -> None:
    assert operand_address(code, 0, [0] * 16, 0, 0) is None


def test_segment_and_bit_offset_registers_are_the_ones_written(
    assembled: list[tuple[Operand, Instruction, bytes]],
) -> None:
    segments = {"": Register.NONE, "fs": Register.FS, "gs": Register.GS}
    for operand, instruction, _ in assembled:
        assert segment_register(instruction) == segments[operand.segment], operand.text
        offset = bit_offset_register(instruction)
        assert (offset == Register.NONE) == (operand.bit_register is None), operand.text
        if operand.bit_register is not None:
            assert RegisterExt.number(offset) == operand.bit_register
            assert RegisterExt.size(offset) == operand.size


@pytest.mark.parametrize("segment", ["cs", "ds", "es", "ss"])
def test_the_other_segments_have_no_base_in_64_bit_mode(tmp_path: Path, segment: str) -> None:
    prefix = {"cs": 0x2E, "ds": 0x3E, "es": 0x26, "ss": 0x36}[segment]
    (line,) = listing(assemble(tmp_path, f".byte {prefix}; lock inc dword ptr [rdi]"))
    assert segment_register(decode(line.code)) == Register.NONE
    assert operand_address(line.code, 0, [77] * 16, 1000, 2000) == 77


def test_an_immediate_bit_offset_stays_within_the_operand(tmp_path: Path) -> None:
    (line,) = listing(assemble(tmp_path, "lock bts dword ptr [rdi], 200"))
    assert bit_offset_register(decode(line.code)) == Register.NONE
    assert operand_address(line.code, 0, [64] * 16, 0, 0) == 64


def test_the_alignment_register_decides(assembled: list[tuple[Operand, Instruction, bytes]]) -> None:
    chance = random.Random(3)
    told = 0
    for operand, instruction, _ in assembled:
        base = alignment_register(instruction, operand.size)
        if base == Register.NONE:
            continue
        told += 1
        number = RegisterExt.number(base)
        assert RegisterExt.size(base) == 8
        for _ in range(20):
            general = registers(chance)
            aligned = operand.address(general, 0x1234_5677, 0x1234_5677) % operand.size == 0
            assert aligned == (general[number] % operand.size == 0), (operand.text, general)
    assert told > 100


@pytest.mark.parametrize(
    ("text", "register"),
    [
        ("lock add dword ptr [rbx], 1", Register.RBX),
        ("lock add dword ptr [r12+8], 1", Register.R12),
        ("lock add qword ptr [r13-8], 1", Register.R13),
        ("lock add dword ptr [rsp+4], 1", Register.RSP),
        ("lock add dword ptr [rdi+rax*4], 1", Register.RDI),
        ("lock add dword ptr [rdi+rax*8+12], 1", Register.RDI),
        ("lock bts qword ptr [rdi], rcx", Register.RDI),
        ("lock add dword ptr [rdi+2], 1", Register.NONE),
        ("lock add qword ptr [rdi+4], 1", Register.NONE),
        ("lock add qword ptr [rdi+rax*4], 1", Register.NONE),
        ("lock add dword ptr [rdi+rax], 1", Register.NONE),
        ("lock add dword ptr [edi], 1", Register.NONE),
        ("lock add dword ptr fs:[rdi], 1", Register.NONE),
        ("lock add dword ptr [rax*4], 1", Register.NONE),
        ("lock add dword ptr [rip+8], 1", Register.NONE),
        ("lock add dword ptr ds:[0x1000], 1", Register.NONE),
    ],
)
def test_where_one_register_decides_and_where_none_does(tmp_path: Path, text: str, register: int) -> None:
    (line,) = listing(assemble(tmp_path, text))
    instruction = decode(line.code)
    assert alignment_register(instruction, split_size(instruction)) == register


@pytest.mark.parametrize("size", [2, 4, 8])
def test_decided_is_whether_a_fixed_address_stays_in_its_line(tmp_path: Path, size: int) -> None:
    offsets = [*range(70), 0x1000 - 3, 0x1000]
    data = "data: .skip 8192, 0"
    sites = "\n".join(f"lock add {POINTER[size]} [rip+data+{offset}], 1" for offset in offsets)
    source = f"{function('sites', sites)}\n.data\n.balign 64\n{data}"
    lines = [line for line in listing(link(tmp_path, source)) if locked_width(line.text)]
    assert len(lines) == len(offsets)
    for line, offset in zip(lines, offsets, strict=True):
        address = int(line.comment.split()[0], 16)
        assert address % 64 == offset % 64
        one_line = address // 64 == (address + size - 1) // 64
        assert decided(decode(line.code, line.address), size) == one_line, line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lock add dword ptr ds:[0x1000], 1", True),
        ("lock add dword ptr ds:[0x103d], 1", False),
        ("lock add dword ptr ds:[0x103c], 1", True),
        ("lock add qword ptr ds:[0x103c], 1", False),
        ("lock add dword ptr fs:[0x28], 1", False),
        ("lock add dword ptr [rdi], 1", False),
        ("lock add dword ptr [rax*4+0x1000], 1", False),
        ("lock bts dword ptr [rip+0], eax", False),
        ("lock bts dword ptr ds:[0x1000], eax", False),
        ("lock bts dword ptr ds:[0x1000], 5", True),
    ],
)
def test_what_only_run_time_tells_is_not_decided(tmp_path: Path, text: str, expected: bool) -> None:
    (line,) = listing(assemble(tmp_path, text))
    instruction = decode(line.code)
    assert decided(instruction, split_size(instruction)) is expected


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_crossing_counts_bytes_on_the_second_line(size: int) -> None:
    for address in [*range(130), 0x7FFF_FFFF_FFC0 - size, 2**64 - size]:
        lines = [byte // 64 for byte in range(address, address + size)]
        assert crosses(address, size) == (len(set(lines)) == 2)
        assert past_line(address, size) == sum(1 for line in lines if line != lines[0])

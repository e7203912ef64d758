"""Trampolines: moved code means what it meant, and the test before a site neither misses a split nor leaves a trace.

The arena is decoded again and compared with the original. What comes before each site is executed by a small machine
written here, register by register; the processor executes none of it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register, RegisterExt
from x86.building import CRYPTO, LIBC, LIBSTDCXX, function, link, symbols
from x86.test_locked import Operand, operands, registers

from splitlock.image.elf import Elf
from splitlock.process.functions import Text
from splitlock.process.plan import build
from splitlock.process.runs import Run, choose_runs
from splitlock.process.trampoline import Trampolines
from splitlock.x86.flags import flags_needed
from splitlock.x86.locked import split_size

if TYPE_CHECKING:
    from iced_x86._iced_x86_py import Register as RegisterNumber


BIAS = 0x7F00_0000_0000  # where the image is thought to be loaded
BRANCHES = {FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH}
LEAVES = {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.RETURN, FlowControl.INDIRECT_BRANCH}


class Arena:
    """The trampolines of an image, decoded where they are meant to be."""

    def __init__(self, raw: bytes) -> None:
        self.elf = Elf(raw)
        self.runs = choose_runs(Text(self.elf))
        self.made = Trampolines(self.runs, self.elf.span()[0])
        self.base = BIAS + self.made.base
        self.code = bytes(self.made.code)
        self.first = min(self.made.entry.values())
        decoder = Decoder(64, self.code[self.first :], ip=self.base + self.first)
        #: by offset: everything behind the check routine
        self.instructions = {x.ip - self.base: x for x in decoder}

    def original(self, address: int) -> Instruction:
        """The instruction of the image at an address."""
        return Decoder(64, self.elf.read(address, 15), ip=BIAS + address).decode()


@pytest.fixture(scope="module", params=[LIBC, LIBSTDCXX, CRYPTO], ids=lambda path: path.name)
def arena(request: pytest.FixtureRequest) -> Arena:
    """The trampolines of an installed library."""
    return Arena(request.param.read_bytes())


def arena_of(directory: Path, source: str) -> tuple[Arena, dict[str, int]]:
    """The trampolines of some assembly, and its labels."""
    path = link(directory, source)
    return Arena(path.read_bytes()), symbols(path)


# -- what is in the arena ---------------------------------------------------------------------------


def test_the_arena_decodes_from_end_to_end(arena: Arena) -> None:
    made = arena.made
    last = max(arena.instructions)
    assert last + len(arena.instructions[last]) == len(arena.code) <= made.code_size
    assert not any(x.is_invalid for x in arena.instructions.values())
    for offsets in (made.entry.values(), made.copies, made.resume.values()):
        assert set(offsets) <= set(arena.instructions)
    assert set(made.entry) == {run.start for run in arena.runs}
    assert all(offset % 16 == 0 for offset in made.entry.values())
    assert made.base + made.code_size + made.data_size == arena.elf.span()[0]
    assert (made.base % 4096, made.code_size % 4096, made.data_size % 4096) == (0, 0, 0)


def meaning(x: Instruction) -> tuple[object, ...]:
    """All of an instruction but its address, its length and where it branches to."""
    operands_: list[object] = []
    for i in range(x.op_count):
        kind = x.op_kind(i)
        if kind == OpKind.REGISTER:
            operands_.append(x.op_register(i))
        elif kind == OpKind.MEMORY:
            where: tuple[object, ...] = (x.memory_base, x.memory_index, x.memory_index_scale, x.memory_displacement)
            if x.is_ip_rel_memory_operand:
                where = (x.memory_base, x.ip_rel_memory_address)
            operands_.append((x.memory_segment, x.memory_size, *where))
        elif x.flow_control not in BRANCHES:
            operands_.append(x.immediate(i) if kind not in (OpKind.MEMORY_SEG_RSI, OpKind.MEMORY_ESRDI) else kind)
    return x.mnemonic, x.has_lock_prefix, x.has_rep_prefix, x.has_repne_prefix, *operands_


def test_moved_instructions_mean_the_same(arena: Arena) -> None:
    made = arena.made
    labels: dict[int, set[int]] = {}
    for offset, address in made.copies.items():
        labels.setdefault(address, set()).add(offset)
    for offset, address in made.copies.items():
        moved, original = arena.instructions[offset], arena.original(address)
        assert meaning(moved) == meaning(original), f"{address:#x}: {original} became {moved}"
        if original.flow_control in BRANCHES:
            target = moved.near_branch_target - arena.base
            if moved.near_branch_target != original.near_branch_target:
                wanted = original.near_branch_target - BIAS
                assert made.resume.get(wanted, made.entry.get(wanted)) == target
                assert any(run.start <= wanted < run.end and run.start <= address < run.end for run in arena.runs)


def test_a_trampoline_executes_its_run_in_order_and_goes_on_behind_it(arena: Arena) -> None:
    made = arena.made
    for run in arena.runs:
        offset = made.entry[run.start]
        done: list[int] = []
        while len(done) < len(run.instructions):
            if offset in made.copies:
                done.append(made.copies[offset])
            offset += len(arena.instructions[offset])
        assert done == [x.ip for x in run.instructions]
        if run.instructions[-1].flow_control not in LEAVES:
            jump = arena.instructions[offset]
            assert jump.mnemonic == Mnemonic.JMP
            assert jump.near_branch_target == BIAS + run.end


def test_every_address_within_a_run_has_a_place_to_go_on(arena: Arena) -> None:
    made = arena.made
    for run in arena.runs:
        for x in run.instructions[1:]:
            offset = made.resume[x.ip]
            # what is found there is the instruction, or the test that comes before a site
            assert made.copies.get(offset) == x.ip or split_size(x)
            behind = next(at for at in range(offset, offset + 100) if at in made.copies)
            assert made.copies[behind] == x.ip
    starts = {run.start for run in arena.runs}
    assert not starts & set(made.resume)


def test_displacements_out_of_the_arena_are_all_known(arena: Arena) -> None:
    decoder = Decoder(64, arena.code[arena.first :], ip=arena.base + arena.first)
    leaving = []
    low, high = arena.base, arena.base + arena.made.code_size + arena.made.data_size
    for x in decoder:
        offsets = decoder.get_constant_offsets(x)
        at = x.ip - arena.base
        if x.is_ip_rel_memory_operand and not low <= x.ip_rel_memory_address < high:
            leaving.append(at + offsets.displacement_offset)
            assert offsets.displacement_size == 4
        elif x.op_count and x.op0_kind == OpKind.NEAR_BRANCH64 and not low <= x.near_branch_target < high:
            leaving.append(at + offsets.immediate_offset)
            assert offsets.immediate_size == 4
    assert sorted(arena.made.fields) == leaving


# -- the test before a site -----------------------------------------------------------------------------

CARRY, PARITY, ADJUST, ZERO, SIGN, OVERFLOW = 1, 4, 16, 64, 128, 2048
STATUS = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW


class Machine:
    """The few instructions that trampolines consist of, on 16 registers, six flags and a stack."""

    def __init__(self, arena: Arena, general: list[int], flags: int, fs: int, gs: int, chance: random.Random) -> None:
        self.arena, self.chance = arena, chance
        self.general, self.flags, self.fs, self.gs = list(general), flags, fs, gs
        self.stack: dict[int, int] = {}
        self.lowest_safe = general[4] - 128
        #: (operand address, second argument) given to the check routine
        self.asked: list[tuple[int, int]] = []

    def get(self, register: RegisterNumber) -> int:
        if register == Register.NONE:
            return 0
        if register == Register.AH:
            return self.general[0] >> 8 & 0xFF
        full = RegisterExt.number(RegisterExt.full_register(register))
        return self.general[full] % (1 << 8 * RegisterExt.size(register))

    def set(self, register: RegisterNumber, value: int) -> None:
        number, size = RegisterExt.number(RegisterExt.full_register(register)), RegisterExt.size(register)
        kept = 0 if size >= 4 else self.general[number] >> 8 * size << 8 * size
        self.general[number] = kept | value % (1 << 8 * size)

    def address(self, x: Instruction) -> int:
        assert x.memory_segment not in (Register.FS, Register.GS)
        if x.is_ip_rel_memory_operand:
            return x.ip_rel_memory_address
        sum_ = self.get(x.memory_base) + self.get(x.memory_index) * x.memory_index_scale + x.memory_displacement
        narrow = 4 in (RegisterExt.size(x.memory_base), RegisterExt.size(x.memory_index))
        return sum_ % (1 << 32 if narrow else 1 << 64)

    def load(self, address: int) -> int:
        assert address in self.stack, "reads what it did not write"
        return self.stack[address]

    def push(self, value: int) -> None:
        self.general[4] = (self.general[4] - 8) % 2**64
        assert (self.lowest_safe - self.general[4]) % 2**64 >= 8, "writes into the red zone"
        self.stack[self.general[4]] = value

    def source(self, x: Instruction, number: int) -> int:
        kind = x.op_kind(number)
        if kind == OpKind.REGISTER:
            return self.get(x.op_register(number))
        if kind == OpKind.MEMORY:
            return self.load(self.address(x))
        return x.immediate(number)

    def execute(self, x: Instruction) -> int:
        """One instruction; gives the address of the next."""
        name = x.mnemonic
        if name == Mnemonic.LEA:
            self.set(x.op0_register, self.address(x))
        elif name == Mnemonic.PUSH:
            self.push(self.source(x, 0))
        elif name == Mnemonic.POP:
            self.set(x.op0_register, self.load(self.general[4]))
            self.general[4] = (self.general[4] + 8) % 2**64
        elif name == Mnemonic.LAHF:
            self.general[0] = self.general[0] & ~0xFF00 | (self.flags & 0xD5 | 2) << 8
        elif name == Mnemonic.SAHF:
            self.flags = self.flags & OVERFLOW | self.get(Register.AH) & 0xD5
        elif name == Mnemonic.SETO:
            self.set(x.op0_register, int(bool(self.flags & OVERFLOW)))
        elif name == Mnemonic.ADD:
            assert (x.op0_register, x.immediate(1)) == (Register.AL, 127)
            self.flags = self.random_flags() & ~OVERFLOW | (OVERFLOW if 1 <= self.get(Register.AL) < 128 else 0)
            self.set(Register.AL, self.get(Register.AL) + 127)
        elif name == Mnemonic.TEST:
            zero = not self.source(x, 0) & self.source(x, 1)
            self.flags = self.random_flags() & ~(ZERO | OVERFLOW | CARRY) | (ZERO if zero else 0)
        elif name == Mnemonic.JNE:
            if not self.flags & ZERO:
                return x.near_branch_target
        elif name == Mnemonic.JMP:
            return x.near_branch_target
        elif name == Mnemonic.MOV:
            self.set(x.op0_register, self.source(x, 1))
        elif name in (Mnemonic.MOVSX, Mnemonic.MOVSXD):
            bits = 8 * {Mnemonic.MOVSX: 2, Mnemonic.MOVSXD: 4}[name]
            value = self.source(x, 1) % (1 << bits)
            self.set(x.op0_register, value - (value >> bits - 1 << bits))
        elif name == Mnemonic.SAR:
            value = self.source(x, 0)
            self.set(x.op0_register, (value - (value >> 63 << 64)) >> x.immediate(1))
            self.flags = self.random_flags()
        elif name in (Mnemonic.RDFSBASE, Mnemonic.RDGSBASE):
            self.set(x.op0_register, self.fs if name == Mnemonic.RDFSBASE else self.gs)
        elif name == Mnemonic.CALL:
            assert x.near_branch_target == self.arena.base
            self.asked.append((self.get(Register.RDX), self.get(Register.RCX)))
            for register in (Register.RAX, Register.RCX, Register.RDX):
                self.set(register, self.chance.getrandbits(64))
            self.flags = self.random_flags()
        else:
            raise AssertionError(f"{x} in a trampoline")
        return x.next_ip

    def random_flags(self) -> int:
        return self.chance.getrandbits(12) & STATUS

    def run_to_copy(self, offset: int) -> int:
        """Go on from an offset until a moved instruction comes; its address in the image."""
        for _ in range(60):
            if offset in self.arena.made.copies:
                return self.arena.made.copies[offset]
            offset = self.execute(self.arena.instructions[offset]) - self.arena.base
        raise AssertionError("too long")


def stack_pointer(general: list[int]) -> None:
    """Make rsp a place where a stack can be."""
    general[4] = general[4] % 2**46 | 2**46


def check_site(
    arena: Arena, run: Run, x: Instruction, operand: Operand | None, chance: random.Random, aligned: bool
) -> bool:
    """Execute what comes before a site; whether it asked the check routine."""
    general = registers(chance)
    stack_pointer(general)
    if aligned:
        general = [value & ~7 for value in general]
    flags, fs, gs = chance.getrandbits(12) & STATUS, chance.getrandbits(47), chance.getrandbits(47)
    machine = Machine(arena, general, flags, fs, gs, chance)
    start = arena.made.resume.get(x.ip, arena.made.entry[run.start] if x.ip == run.start else -1)
    assert machine.run_to_copy(start) == x.ip
    assert machine.general == general, f"{x}: registers changed"
    position = run.first + run.instructions.index(x)
    if flags_needed(run.function.instructions, position, run.function.index):
        assert machine.flags == flags, f"{x}: flags changed"
    size = split_size(x)
    if operand is None:
        return bool(machine.asked)
    address = operand.address(general, fs, gs)
    if not machine.asked:
        assert address % size == 0, f"{x}: would have missed {address:#x}"
        return False
    ((asked, argument),) = machine.asked
    assert asked == address, f"{x}: {[hex(v) for v in general]}"
    assert argument & 0xFF == size
    assert arena.made.sites[argument >> 8][:3] == (x.ip, x.next_ip, size)
    return True


@pytest.mark.parametrize("flags", [False, True], ids=["flags-free", "flags-live"])
def test_the_check_is_asked_about_the_right_address(tmp_path: Path, flags: bool) -> None:
    """`lock not` leaves all flags alone, so that those of before must be there after it as well."""
    made = [o for o in operands() if o.bit_register != 4]  # rsp: below
    lines = [o.text.replace("lock add", "lock not").removesuffix(", 1") if flags else o.text for o in made]
    arena, labels = arena_of(tmp_path, function("f", "\n".join(f"s{i}: {line}" for i, line in enumerate(lines))))
    place = {x.ip: (run, x) for run in arena.runs for x in run.instructions}
    chance = random.Random(6)
    asked = fast = 0
    for i, operand in enumerate(made):
        if labels[f"s{i}"] not in place:
            assert (operand.base, operand.index) == (None, None)  # decided: never splits
            continue
        run, x = place[labels[f"s{i}"]]
        for aligned in (False, False, True, True):
            if check_site(arena, run, x, operand, chance, aligned):
                asked += 1
            else:
                fast += 1
    assert asked > 500
    assert fast > 300


def test_the_check_is_asked_about_the_right_address_when_rsp_is_the_bit_offset(tmp_path: Path) -> None:
    operand = Operand(8, 7, bit_register=4)
    arena, _ = arena_of(tmp_path, function("f", f"{operand.text}; mov eax, 1; ret"))
    (run,) = arena.runs
    chance = random.Random(7)
    assert any(check_site(arena, run, run.instructions[0], operand, chance, False) for _ in range(50))


def test_the_tests_before_the_sites_of_libraries_leave_no_trace(arena: Arena) -> None:
    chance = random.Random(8)
    asked = sites = 0
    for run in arena.runs:
        for x in run.instructions:
            if split_size(x) and (x.ip in arena.made.resume or x.ip == run.start):
                sites += 1
                asked += check_site(arena, run, x, None, chance, False)
    assert sites >= len(arena.made.sites)
    assert asked > sites / 3


# -- branches within a run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        # `steps`: labels of what is executed from `a` on with the branch taken
        pytest.param("a: je b+1; b: lock cmpxchg [rdi], ecx; c: ret", ["a", "b+1", "c"], id="behind-the-prefix"),
        pytest.param("a: je c; b: xchg [rdi], ecx; c: mov eax, 1; d: ret", ["a", "c"], id="over-the-site"),
        pytest.param("a: lock inc dword ptr [rdi]; b: je a; mov eax, 1; ret", ["a", "b", "a"], id="back-to-the-start"),
    ],
)
def test_branches_that_move_with_their_target(tmp_path: Path, body: str, steps: list[str]) -> None:
    source = function("f", f"call g@PLT; {body}; call g@PLT") + function("g", "ret")
    arena, labels = arena_of(tmp_path, source)
    labels["b+1"] = labels["b"] + 1
    made = arena.made
    (run,) = arena.runs
    within = [labels[step] for step in steps if run.start <= labels[step] < run.end]
    assert len(within) > 1
    offset, done = made.entry[run.start], []
    for _ in range(60):
        x, following = arena.instructions[offset], offset + len(arena.instructions[offset])
        if offset in made.copies:
            done.append(made.copies[offset])
        if x.mnemonic == Mnemonic.JMP or (offset in made.copies and x.mnemonic == Mnemonic.JE):
            following = x.near_branch_target - arena.base
        offset = following
        if len(done) == len(within) or offset not in arena.instructions:
            break
    assert done == within


def test_a_branch_back_behind_the_prefix(tmp_path: Path) -> None:
    arena, labels = arena_of(tmp_path, function("f", "site: lock inc dword ptr [rdi]; jne site+1; ret; .skip 16"))
    (run,) = arena.runs
    made, behind = arena.made, labels["site"] + 1
    (jump,) = (arena.instructions[at] for at, address in made.copies.items() if address == labels["site"] + 3)
    target = jump.near_branch_target - arena.base
    assert made.copies[target] == behind
    assert meaning(arena.instructions[target]) == meaning(arena.original(behind))
    following = arena.instructions[target + len(arena.instructions[target])]
    assert following.mnemonic == Mnemonic.JMP
    assert made.copies[following.near_branch_target - arena.base] == run.instructions[1].ip


# -- what cannot be encoded -----------------------------------------------------------------------------


def test_a_displacement_from_rsp_near_the_limit(tmp_path: Path) -> None:
    hot, _ = build(link(tmp_path, function("f", "lock inc dword ptr [rsp+0x7fffffff]; ret")).read_bytes())
    assert hot.watched == 0
    ((reason, _, _),) = hot.unmonitored
    assert reason.startswith("too large to patch")


def test_code_far_from_where_the_image_begins(tmp_path: Path) -> None:
    source = function("f", "lock inc dword ptr [rdi]; mov eax, 1; ret", frame=False) + ".data; .quad 1"
    path = link(tmp_path, source, "-no-pie", "-Wl,-Ttext=0x200000000,-Tdata=0x600000", shared=False)
    hot, _ = build(path.read_bytes())
    assert hot.watched == 0
    ((reason, _, _),) = hot.unmonitored
    assert reason.startswith("too large to patch")

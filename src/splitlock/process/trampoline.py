"""Trampolines: a run's code moved to the arena, with a test before each site.

The usual test is one `test reg8, size-1`: an operand aligned to its size cannot cross a line. Where
it is not aligned, or alignment cannot be told from one register, the slow path computes the address.
docs/how-it-works.md draws it.
"""

from __future__ import annotations

from iced_x86 import Code, Encoder, FlowControl, Formatter, FormatterSyntax, Instruction, OpKind, Register, RegisterExt

from splitlock.process.abi import Check, data_layout
from splitlock.process.runs import Run
from splitlock.x86.flags import flags_needed
from splitlock.x86.locked import (
    alignment_register,
    bit_offset_register,
    decided,
    narrow_address,
    segment_register,
    split_size,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from iced_x86._iced_x86_py import Register as RegisterNumber

_BRANCHES = {FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH}
_LEAVES = {FlowControl.UNCONDITIONAL_BRANCH, FlowControl.RETURN, FlowControl.INDIRECT_BRANCH}
_LOW = [
    Register.AL, Register.CL, Register.DL, Register.BL, Register.SPL, Register.BPL, Register.SIL, Register.DIL,
    Register.R8L, Register.R9L, Register.R10L, Register.R11L, Register.R12L, Register.R13L, Register.R14L,
    Register.R15L,
]  # fmt: skip

_STEP_OVER = b"\x48\x8d\x64\x24\x80"  # lea rsp, [rsp-128]: past the red zone, flags untouched
_STEP_BACK = b"\x48\x8d\xa4\x24\x80\x00\x00\x00"  # lea rsp, [rsp+128]
_SAVE_FLAGS = b"\x9f\x0f\x90\xc0"  # lahf; seto al
_LOAD_FLAGS = b"\x04\x7f\x9e"  # add al, 127; sahf
# In the slow path, from rsp: flags, rdx, rcx, rax, then what the program had below its stack.
_SLOTS = {Register.RDX: 8, Register.RCX: 16, Register.RAX: 24}
_PUSHED = 128 + 3 * 8  # bytes that rsp is lower when the operand's address is computed


class Trampolines:
    """The arena of one image.

    `base` is the address, in the file's terms, that the arena is meant for: right below the image.
    `code`: its bytes. `entry`: run start -> offset. `fields`: offsets of 32-bit displacements that
    point out of the arena. `copies`: offset of a moved instruction -> its address in the file.
    `resume`: address inside a run -> offset to go on from. `sites`: address, address of the next
    instruction, operand size and text, by site number.
    """

    def __init__(self, runs: list[Run], below: int) -> None:
        count = sum(1 for run in runs for x in run.instructions if _watched(x))
        self.data_seen, self.data_size = data_layout(count)
        #: where moved code leaves the arena: offset of the instruction -> itself (None: our own jump back), and its end
        self.exits: dict[int, tuple[Instruction | None, int]] = {}
        #: offsets of the displacements of the slow paths' calls
        self.calls: list[int] = []
        self.entry: dict[int, int] = {}
        self.fields: list[int] = []
        self.copies: dict[int, int] = {}
        self.resume: dict[int, int] = {}
        self.sites: list[tuple[int, int, int, str]] = []
        self._formatter = Formatter(FormatterSyntax.INTEL)
        self._formatter.space_after_operand_separator = True
        self._formatter.rip_relative_addresses = True
        self._formatter.hex_prefix, self._formatter.hex_suffix = "0x", ""
        self._formatter.uppercase_hex = False
        self.code_size = 0
        # Where the arena starts depends on its size, which does not depend on where it starts: every displacement is
        # 32 bits wide. So it is laid out near there, and then moved.
        self.base = (below - (1 << 20)) & ~0xFFF
        self._below = below
        self._encoder = Encoder(64)
        self._pending: list[tuple[int, bytes, Instruction, int]] = []
        self.code = bytearray(self._check())
        self._lay_out(runs)
        self.code_size = len(self.code) + 4095 & ~4095
        self._settle()

    def _settle(self) -> None:
        """The size is known, and so the place: what points out of the arena is set accordingly."""
        base = self._place(self._below)
        moved, self.base = base - self.base, base
        for at in self.fields:
            value = int.from_bytes(self.code[at : at + 4], "little", signed=True) - moved
            self.code[at : at + 4] = value.to_bytes(4, "little", signed=True)
        check = self._check()
        self.code[: len(check)] = check

    def _place(self, below: int) -> int:
        """The address that the arena is meant for."""
        return below - self.code_size - self.data_size

    def _lay_out(self, runs: list[Run]) -> None:
        for run in runs:
            self._run(run)
        for jump, prologue, x, back in self._pending:
            self._slow(jump, prologue, x, back)

    def _check(self) -> bytes:
        """What every slow path calls, at the arena's start."""
        self.check = Check(self.code_size, self.data_seen)
        return self.check.code

    # -- the fast path -------------------------------------------------------------------------

    def _run(self, run: Run) -> None:
        self._align()
        self.entry[run.start] = len(self.code)
        labels: dict[int, int] = {}
        forward: list[tuple[int, int]] = []
        unlocked: list[tuple[int, Instruction, int]] = []
        inside = {x.ip for x in run.instructions} | run.entries()
        wanted = {x.near_branch_target for x in run.instructions if x.flow_control in _BRANCHES}
        for position, x in enumerate(run.instructions):
            labels[x.ip] = len(self.code)
            if _watched(x):
                self._site(run, run.first + position, x)
            elif x.flow_control in _BRANCHES and x.near_branch_target in inside:
                near = x.copy()
                near.as_near_branch()
                near.near_branch64 = x.next_ip
                self.copies[len(self.code)] = x.ip
                self._encode(near)
                forward.append((len(self.code), x.near_branch_target))
            else:
                self._copy(x)
            if x.has_lock_prefix and x.ip + 1 in wanted:
                unlocked.append((x.ip + 1, x, len(self.code)))
        if run.instructions[-1].flow_control not in _LEAVES:
            self._go_on(run)
        for target, x, after in unlocked:
            labels[target] = len(self.code)
            plain = x.copy()
            plain.has_lock_prefix = False
            plain.ip = target
            self._copy(plain)
            self.code += b"\xe9"
            self._near(after)
        for at, target in forward:
            self.code[at - 4 : at] = (labels[target] - at).to_bytes(4, "little", signed=True)
        del labels[run.start]
        self.resume.update(labels)

    def _align(self) -> None:
        """Where the next run's code begins."""
        self.code += b"\xcc" * (-len(self.code) % 16)

    def _site(self, run: Run, position: int, x: Instruction) -> None:
        size = split_size(x)
        base = alignment_register(x, size)
        prologue = b""
        if base == Register.NONE:
            self.code += b"\xe9"
            jump = self._near(None)
        elif not flags_needed(run.function.instructions, position, run.function.index):
            self._test(base, size, pushed_rax=False)
            self.code += b"\x0f\x85"
            jump = self._near(None)
        else:
            self.code += _STEP_OVER + b"\x50" + _SAVE_FLAGS
            self._test(base, size, pushed_rax=True)
            self.code += b"\x0f\x85"
            jump = self._near(None)
            prologue = _LOAD_FLAGS + b"\x58" + _STEP_BACK
            self.code += prologue
        self._pending.append((jump, prologue, x, len(self.code)))
        self._copy(x)

    def _test(self, base: RegisterNumber, size: int, pushed_rax: bool) -> None:
        if pushed_rax and base == Register.RAX:
            self.code += bytes((0xF6, 0x04, 0x24, size - 1))  # test byte ptr [rsp], size-1
        else:
            # rsp is 136 bytes lower after the push, which alignment to 8 does not see.
            self._encode(Instruction.create_reg_i32(Code.TEST_RM8_IMM8, _LOW[RegisterExt.number(base)], size - 1))

    # -- the slow path -------------------------------------------------------------------------

    def _slow(self, jump: int, prologue: bytes, x: Instruction, back: int) -> None:
        self.code[jump - 4 : jump] = (len(self.code) - jump).to_bytes(4, "little")
        self.code += prologue + _STEP_OVER + b"\x50\x51\x52"  # push rax, rcx, rdx
        self._lea(x)
        segment = segment_register(x)
        if segment != Register.NONE:
            # rdfsbase/rdgsbase rcx; lea rdx, [rdx+rcx]
            self.code += b"\xf3\x48\x0f\xae" + (b"\xc1" if segment == Register.FS else b"\xc9") + b"\x48\x8d\x14\x0a"
        self.code += _SAVE_FLAGS + b"\x50"
        size = split_size(x)
        offset = bit_offset_register(x)
        if offset != Register.NONE:
            self._bit_offset(offset, size, narrow_address(x))
        self.code += b"\xb9" + (len(self.sites) << 8 | size).to_bytes(4, "little")  # mov ecx, number << 8 | size
        self.code += b"\xe8"  # call check
        self.calls.append(len(self.code))
        self._near(0)
        self.code += b"\x58" + _LOAD_FLAGS + b"\x5a\x59\x58" + _STEP_BACK + b"\xe9"
        self._near(back)
        self.sites.append((x.ip, x.next_ip, size, self._formatter.format(x)))

    def _lea(self, x: Instruction) -> None:
        """`lea rdx, operand`, with the registers still the program's but for rsp."""
        lea = x.copy()
        lea.has_lock_prefix = lea.has_repne_prefix = lea.has_rep_prefix = False
        lea.code = Code.LEA_R64_M
        lea.segment_prefix = Register.NONE
        lea.op0_kind, lea.op1_kind = OpKind.REGISTER, OpKind.MEMORY
        lea.op0_register = Register.RDX
        if x.memory_base in (Register.RSP, Register.ESP):
            width = 8 * RegisterExt.size(x.memory_base)
            lea.memory_displacement = x.memory_displacement + _PUSHED & (1 << width) - 1
            lea.memory_displ_size = width // 8
        self._encode(lea, moved=True)

    def _bit_offset(self, register: RegisterNumber, size: int, narrow: bool) -> None:
        """Add to rdx the bytes that a bit test's offset reaches beyond its operand."""
        full = RegisterExt.full_register(register)
        code = {2: Code.MOVSX_R64_RM16, 4: Code.MOVSXD_R64_RM32, 8: Code.MOV_R64_RM64}[size]
        move = Instruction.create_reg_reg(code, Register.RCX, register)
        if full == Register.RSP:  # nobody's bit offset, but it is one register of 16
            self.code += b"\x48\x8d\x8c\x24" + (_PUSHED + 8).to_bytes(4, "little")  # lea rcx, [rsp+pushed]
            narrow_name = {2: Register.CX, 4: Register.ECX, 8: Register.RCX}[size]
            move = Instruction.create_reg_reg(code, Register.RCX, narrow_name)
        elif full in _SLOTS:  # already overwritten: take what was pushed
            move.op1_kind = OpKind.MEMORY
            move.memory_base = Register.RSP
            move.memory_displacement = _SLOTS[full]
            move.memory_displ_size = 1
        self._encode(move)
        shift = {2: 4, 4: 5, 8: 6}[size]
        self.code += b"\x48\xc1\xf9" + bytes((shift,))  # sar rcx, log2(bits of the operand)
        # lea rdx, [rdx+rcx*size], or edx
        self.code += (b"" if narrow else b"\x48") + b"\x8d\x14" + {2: b"\x4a", 4: b"\x8a", 8: b"\xca"}[size]

    # -- encoding ------------------------------------------------------------------------------

    def _copy(self, x: Instruction) -> None:
        start = len(self.code)
        self.copies[start] = x.ip
        leaving = x if x.flow_control in _LEAVES or x.flow_control in _BRANCHES else None
        if x.flow_control in _BRANCHES:
            x = x.copy()
            x.as_near_branch()
        self._encode(x, moved=True)
        if leaving is not None:
            self.exits[start] = leaving, len(self.code)
            # room for a jump in its place
            self.code += b"\xcc" * (5 - (len(self.code) - start))

    def _encode(self, x: Instruction, moved: bool = False) -> None:
        start = len(self.code)
        self._encoder.encode(x, self.base + start & 0xFFFF_FFFF_FFFF_FFFF)
        self.code += self._encoder.take_buffer()
        if moved and x.is_ip_rel_memory_operand:
            self.fields.append(start + self._encoder.get_constant_offsets().displacement_offset)
        elif moved and x.flow_control in _BRANCHES:
            self.fields.append(len(self.code) - 4)

    def _near(self, target: int | None) -> int:
        """A 32-bit displacement to an offset in the arena (None: filled in later); the offset behind it."""
        at = len(self.code) + 4
        self.code += (0 if target is None else target - at).to_bytes(4, "little", signed=True)
        return at

    def _go_on(self, run: Run) -> None:
        """Behind a run."""
        self._jump_out(run.end)

    def _jump_out(self, address: int) -> None:
        self.exits[len(self.code)] = None, len(self.code) + 5
        self.code += b"\xe9"
        self.fields.append(len(self.code))
        displacement = address - (self.base + len(self.code) + 4)
        self.code += displacement.to_bytes(4, "little", signed=True)


def _watched(x: Instruction) -> bool:
    """Whether an instruction of a run is a site that must be tested when it executes."""
    size = split_size(x)
    return size > 0 and not decided(x, size)

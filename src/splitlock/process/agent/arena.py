"""The arena of one image for the agent: trampolines, their twin, and the calls that it wants to see.

A signal that comes while a thread is in a trampoline has to wait until the thread is out: its handler must see the
program, not us. So all of the trampolines are there twice. The *twin* is the same code, only that it ends in the agent
where the other jumps back: the agent's signal handler moves the thread there (the same place, `twin` bytes on), and the
signal comes again at the end. Nothing is added to the code that usually runs.
"""

from __future__ import annotations

from typing import NamedTuple

from iced_x86 import Code, FlowControl, Instruction, MemoryOperand, OpKind, Register

from splitlock.process.agent.calls import Call
from splitlock.process.agent.operands import Operand, operand_of
from splitlock.process.agent.tails import Tails
from splitlock.process.runs import Run
from splitlock.process.trampoline import Trampolines

PAGE = 4096
GAP = 64 << 10  # bytes kept free below an image: the kernel has the vDSO right below the dynamic linker
# The private page behind the tables (inside/image.h, struct page): offsets of the agent's entries.
_HIT, _CALL, _LEAVE = 0, 8, 16
_LINE = 64  # bytes of a cache line
_WITH_TAILS = 4000  # runs; a larger image has its time to be analysed to think of, and its locks elsewhere
_BELOW = 128 + 8  # bytes below rsp: the red zone, and the address to go on at


class Hook(NamedTuple):
    """Where a moved call's code lies: offsets in the arena; `begin`: rsp is lower from there on, until `end`."""

    start: int
    begin: int
    end: int
    address: int


class Arena(Trampolines):
    """As Trampolines. `twin`: bytes from the code to its twin. `hooks`: of the calls."""

    def __init__(self, runs: list[Run], calls: list[Call], below: int, low: int) -> None:
        """Where it is meant to lie is known once `settle` was called. `low`: the image's lowest address."""
        self.wanted, self._tables, self._low = calls, 0, low
        self.hooks: list[Hook] = []
        self._to_page: list[tuple[int, int]] = []  # a displacement's offset, and the entry of the page that it names
        self.twin = 0
        #: of the sites, by number
        self.operands: list[Operand] = []
        self._tails = Tails(runs) if len(runs) <= _WITH_TAILS else None
        super().__init__(runs, below)

    def settle(self, tables: int) -> None:
        """`tables`: bytes that the image file has between the code and the private page."""
        self._tables = tables
        self._settle()
        for at, entry in self._to_page:
            self.code[at : at + 4] = (self._page + entry - (at + 4)).to_bytes(4, "little", signed=True)

    def _place(self, below: int) -> int:
        return (below - GAP - self.code_size - PAGE - self._tables) & ~(PAGE - 1)

    @property
    def _page(self) -> int:
        return self.code_size + self._tables

    def _check(self) -> bytes:
        return self.check_code()

    def check_code(self) -> bytes:
        """If the operand at rdx, ecx & 255 bytes long, crosses a line, on to the agent. Only rax and flags change."""
        code = b"\x89\xd0\x83\xe0\x3f"  # mov eax, edx; and eax, 63
        code += b"\x00\xc8\x3c\x40\x77\x01\xc3"  # add al, cl; cmp al, 64; ja +1; ret
        code += b"\x48\x8d\x05" + (self._page - len(code) - 7).to_bytes(4, "little", signed=True)  # lea rax, [page]
        return code + b"\xff\x20"  # jmp [rax]

    def _align(self) -> None:
        """Not across a cache line, where the part that runs mostly would be."""
        size = len(self.code)
        self.code += b"\xcc" * (-size % (_LINE if size % _LINE > _LINE // 2 else 16))

    def _go_on(self, run: Run) -> None:
        """What follows to the function's end comes along where it is short: so there is no jump back."""
        tail = self._tails.of(run) if self._tails else []
        for x in tail:
            self._copy(x)
        if not tail:
            self._jump_out(run.end)

    def _lay_out(self, runs: list[Run]) -> None:
        super()._lay_out(runs)
        self.code += b"\xcc" * (-len(self.code) % 16)
        for call in self.wanted:
            self._hook(call)
        self.twin = len(self.code) + 15 & ~15
        self.code += b"\xcc" * (self.twin - len(self.code))
        self._double()

    def _slow(self, jump: int, prologue: bytes, x: Instruction, back: int) -> None:
        self.operands.append(operand_of(x, len(self.sites), back, self._low))
        super()._slow(jump, prologue, x, back)

    def _hook(self, call: Call) -> None:
        start = self.entry[call.start] = len(self.code)
        self._encode(call.instruction, moved=True)
        if call.number is not None:
            self.code += b"\xb8" + call.number.to_bytes(4, "little")  # mov eax, number
        begin = len(self.code) + 5
        self.code += b"\x48\x8d\x64\x24\x80\xff\x15"  # lea rsp, [rsp-128]; call [page.call]
        self._near_page(_CALL)
        self.code += b"\x48\x8d\xa4\x24\x80\x00\x00\x00"  # lea rsp, [rsp+128]
        self.hooks.append(Hook(start, begin, len(self.code), call.start))
        self.code += b"\xe9"
        self.fields.append(len(self.code))
        self.code += (call.address - (self.base + len(self.code) + 4)).to_bytes(4, "little", signed=True)

    def _near_page(self, entry: int) -> None:
        self._to_page.append((len(self.code), entry))
        self._near(None)

    def _double(self) -> None:
        """Append the twin, and behind it what its exits jump to."""
        code, twin = bytearray(self.code), self.twin
        direct = {end - 4: at for at, (x, end) in self.exits.items() if not _indirect(x)}
        fields = [at for at in self.fields if at not in direct]
        for at in (*fields, *self.calls):
            value = int.from_bytes(code[at : at + 4], "little", signed=True) - twin
            code[at : at + 4] = value.to_bytes(4, "little", signed=True)
        self.code += code
        self.fields += [at + twin for at in fields]
        for at, (x, end) in self.exits.items():
            stub = len(self.code)
            if x is not None and _indirect(x):
                self._leave(x)
                self.code[at + twin : at + twin + 5] = b"\xe9" + (stub - (at + twin + 5)).to_bytes(4, "little")
            else:
                target = self.base + end + int.from_bytes(self.code[end - 4 : end], "little", signed=True)
                self._leave_for(target)
                self.code[end + twin - 4 : end + twin] = (stub - end - twin).to_bytes(4, "little")

    def _leave_for(self, target: int) -> None:
        """An exit of the twin to an address outside. The agent restores rsp and rax."""
        self.code += b"\x48\x8d\xa4\x24" + (-_BELOW).to_bytes(4, "little", signed=True)  # lea rsp, [rsp-136]
        self.code += b"\x50\x48\x8d\x05"  # push rax; lea rax, [rip+...]
        self.fields.append(len(self.code))
        self.code += (target - (self.base + len(self.code) + 4)).to_bytes(4, "little", signed=True)
        self._to_agent(0)

    def _leave(self, x: Instruction) -> None:
        """An exit of the twin by a return or an indirect jump."""
        self.code += b"\x48\x8d\xa4\x24" + (-_BELOW).to_bytes(4, "little", signed=True) + b"\x50"
        above = _BELOW + 8
        popped = 0
        if x.flow_control == FlowControl.RETURN:
            popped = 8
            self._encode(
                Instruction.create_reg_mem(
                    Code.MOV_R64_RM64, Register.RAX, MemoryOperand(Register.RSP, displ=above, displ_size=8)
                )
            )
        elif x.op0_kind == OpKind.MEMORY:
            load = x.copy()
            load.code = Code.MOV_R64_RM64
            load.op0_kind, load.op1_kind = OpKind.REGISTER, OpKind.MEMORY
            load.op0_register = Register.RAX
            if x.memory_base == Register.RSP:
                load.memory_displacement = x.memory_displacement + above & (1 << 64) - 1
                load.memory_displ_size = 8
            self._encode(load, moved=True)
        else:
            self._encode(Instruction.create_reg_reg(Code.MOV_R64_RM64, Register.RAX, x.op0_register))
        self._to_agent(popped)

    def _to_agent(self, popped: int) -> None:
        self.code += b"\x48\x89\x44\x24\x08\xb8" + popped.to_bytes(4, "little")  # mov [rsp+8], rax; mov eax, popped
        self.code += b"\xff\x25"  # jmp [page.leave]
        self._near_page(_LEAVE)


def _indirect(x: Instruction | None) -> bool:
    return x is not None and x.flow_control in (FlowControl.RETURN, FlowControl.INDIRECT_BRANCH)


def can_leave(run: Run) -> bool:
    """Whether a twin of the run has an exit: not for a return that pops arguments."""
    last = run.instructions[-1]
    return not (last.flow_control == FlowControl.RETURN and last.op_count)

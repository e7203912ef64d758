"""System calls of an image that the agent wants to see: those that bring code, start programs, set handlers.

A call can be seen where one instruction of 5 bytes or more, which does nothing but load a register, stands right before
`syscall`: it makes room for a jump, and may be executed twice. That is how compilers write `mov eax, NUMBER; syscall`.
Of the others it is found out whether they may be such calls: no program starts another both unseen and unsaid.
"""

from __future__ import annotations

import bisect
import re
from typing import NamedTuple

from iced_x86 import Decoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register

from splitlock.x86.constants import constants
from splitlock.x86.flow import changed, successors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from splitlock.image.elf import Elf
    from splitlock.image.scan.scan import Scan
    from splitlock.x86.constants import State

_SYSCALL = b"\x0f\x05"
_INT_80 = b"\xcd\x80"  # of i386
#: by arch/x86/entry/syscalls/syscall_64.tbl; inside/calls.c knows the same ones
WANTED = {
    9: "mmap", 10: "mprotect", 11: "munmap", 13: "rt_sigaction", 25: "mremap", 30: "shmat", 56: "clone", 57: "fork",
    58: "vfork", 59: "execve", 135: "personality", 157: "prctl", 231: "exit_group", 317: "seccomp", 322: "execveat",
    329: "pkey_mprotect", 435: "clone3",
}  # fmt: skip
#: Not seen, of forks only the number is lost, and what is unmapped is gone.
_HARMLESS = frozenset((11, 56, 57, 58, 435))
_PROTECTS = frozenset((9, 10, 329))  # with rights in rdx
_EXEC = 4  # PROT_EXEC
_ROOM = 5
_EXIT_GROUP = 231
_I386 = 0x80
_RAX, _RDX = 0, 2
_BRANCHES = (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)
_NEAR = 24  # bytes before a call outside functions in which its number may be set
#: mov eax, NUMBER, in its two encodings
_LOADS = re.compile(rb"(?:\xb8|\x48?\xc7\xc0)([\x00-\xff][\x00-\x03]\x00\x00)", re.DOTALL)


class Call(NamedTuple):
    """A system call: the instruction before it, which moves, and the address to go on at: of `syscall` itself.

    `number`: the call's, where the code has not set it yet: then it is a function's first instruction that moves.
    """

    instruction: Instruction
    address: int
    number: int | None = None

    @property
    def start(self) -> int:
        """Where the jump goes."""
        return self.instruction.ip


class Calls(NamedTuple):
    """What may be wanted calls: those that can be seen, and the addresses of those that cannot and would matter."""

    seen: list[Call]
    unseen: list[int]

    def without(self, taken: set[int]) -> Calls:
        """Where there are other jumps, at the addresses `taken`, calls are not seen."""
        lost = [call for call in self.seen if not taken.isdisjoint(range(call.start, call.address + 2))]
        return Calls([call for call in self.seen if call not in lost], [*self.unseen, *(c.address for c in lost)])


def is_linker(elf: Elf) -> bool:
    """Whether it is glibc's dynamic linker."""
    return bool(elf.addresses([b"_rtld_global"]))


def wanted_calls(elf: Elf, scan: Scan) -> Calls:
    """By address."""
    calls = Calls([], [])
    if is_linker(elf):  # what it maps it tells by la_objopen
        return calls
    names = elf.addresses([b"_exit", b"gnu_get_libc_version"])
    starts, ends = scan.starts, scan.ends
    holding: set[int] = set()
    outside: list[tuple[bytes, int, int]] = []
    for low, high in elf.code_ranges():
        code = elf.read(low, high - low)
        for pattern in (_SYSCALL, _INT_80):
            for at in _places(code, pattern):
                i = bisect.bisect_right(starts, low + at) - 1
                if i >= 0 and low + at < ends[i]:
                    holding.add(i)
                elif pattern == _SYSCALL:
                    outside.append((code, at, low))
    functions = [_Function(elf, starts[i], ends[i], names) for i in sorted(holding)]
    functions = [function for function in functions if function.calls_kernel]
    entered = _entered(scan, functions, outside)
    for code, at, low in outside:
        _outside(code, at, low, entered, calls)
    for function in functions:
        function.find(entered, calls)
    return calls


def _entered(scan: Scan, functions: list[_Function], outside: list[tuple[bytes, int, int]]) -> set[int]:
    """Where control comes from another function, or by a kept address: in functions, and right before `outside`.

    A compiler's cold part goes back so to the middle of its function.
    """
    instructions = {low + i for _, at, low in outside for i in range(max(0, at - _NEAR), at + 1)}
    instructions |= {address for function in functions for address in function.leading()}
    if not instructions:
        return set()
    scan.name()
    return scan.into(instructions, ())


def _places(code: bytes, pattern: bytes) -> Iterator[int]:
    at = code.find(pattern)
    while at >= 0:
        yield at
        at = code.find(pattern, at + 1)


def _outside(code: bytes, at: int, low: int, entered: set[int], calls: Calls) -> None:
    """Outside of functions, where nobody knows where instructions begin. In glibc that is so at the end of clone(2)."""
    loads = list(_LOADS.finditer(code, max(0, at - _NEAR), at))
    wanted = [load for load in loads if int.from_bytes(load[1], "little") in WANTED]
    if wanted and wanted[-1].end() == at:
        load = wanted.pop()
        calls.seen.append(Call(Decoder(64, load[0], ip=low + load.start()).decode(), low + at))
    places = [start for start in range(max(0, at - _NEAR), at + 1) if low + start in entered]
    if wanted or _computes_number(code, at) or any(_brings_number(code, start, at) for start in places):
        calls.unseen.append(low + at)


def _brings_number(code: bytes, start: int, at: int) -> bool:
    """Whether there are instructions from where control comes to a call, none of which sets its number."""
    way = [x.copy() for x in Decoder(64, code[start:at])]
    factory = InstructionInfoFactory()
    is_code = sum(x.len for x in way) == at - start and not any(x.is_invalid for x in way)
    return is_code and not any(_RAX in changed(x, factory) or x.mnemonic == Mnemonic.SYSCALL for x in way)


def _computes_number(code: bytes, at: int) -> bool:
    """Whether one of the two instructions before could set a call's number: else these are hardly instructions."""
    factory = InstructionInfoFactory()
    for start in range(max(0, at - _NEAR), at):
        two = [x.copy() for x in Decoder(64, code[start:at])][:2]
        is_code = sum(x.len for x in two) == at - start and not any(x.is_invalid for x in two)
        setting = [x for x in two if _RAX in changed(x, factory)]
        if is_code and setting and not _is_number(setting[-1]):
            return True
    return False


class _Function:
    """One function's calls. A number set right before the call is believed; else all ways to the call are followed."""

    def __init__(self, elf: Elf, start: int, end: int, names: dict[bytes, int]) -> None:
        self._code: list[Instruction] = []
        self._inner: dict[int, list[int]] = {}  # from where its own branches go there
        self._calls: list[int] = []  # positions
        for x in Decoder(64, elf.read(start, end - start), ip=start):
            if x.is_invalid:
                break
            flow = x.flow_control
            if flow in _BRANCHES:
                self._inner.setdefault(x.near_branch_target, []).append(x.ip)
            elif flow != FlowControl.NEXT and x.mnemonic in (Mnemonic.SYSCALL, Mnemonic.INT):
                self._calls.append(len(self._code))
            self._code.append(x.copy())
        self._entered, self._outer = set(self._inner), set[int]()
        self._is_exit = start == names.get(b"_exit")
        # glibc reads the number of setuid(2) and its kin from memory (nptl/nptl_setxid.c), no other but syscall(2)'s
        self._is_libc = b"gnu_get_libc_version" in names
        self._values: dict[int, State] = {}

    @property
    def calls_kernel(self) -> bool:
        """Whether there is a call at all."""
        return bool(self._calls)

    def leading(self) -> set[int]:
        """Its instructions from which there are ways to a call on which no number is set, but for its first one.

        Nor, where memory is asked for, are there rights: then all that may come before.
        """
        found: set[int] = set()
        waiting = list(self._calls)
        index: dict[int, int] = {}
        while waiting:
            position = waiting.pop()
            if position in found:
                continue
            found.add(position)
            at = self._code[position].ip
            if at in self._inner and not index:
                index = {x.ip: i for i, x in enumerate(self._code)}
            before = [position - 1] if position and at in successors(self._code[position - 1]) else []
            before += [index[source] for source in self._inner.get(at, ())]
            for i in before:
                x = self._code[i]
                if not _is_number(x) or x.immediate(1) in _PROTECTS:
                    waiting.append(i)
        return {self._code[i].ip for i in found if i}

    def find(self, entered: set[int], calls: Calls) -> None:
        """Add them. `entered`: where control comes from elsewhere."""
        self._outer = entered.intersection(range(self._code[0].ip + 1, self._code[-1].next_ip))
        self._entered |= self._outer
        if self._is_exit and self._code and _is_load(self._code[0]):
            calls.seen.append(Call(self._code[0], self._code[0].next_ip, _EXIT_GROUP))
        for i in self._calls:
            x = self._code[i]
            if x.mnemonic == Mnemonic.SYSCALL:
                self._add(x.ip, self._code[i - 1] if i else None, calls)
            elif x.immediate(0) == _I386:
                calls.unseen.append(x.ip)

    def _add(self, at: int, before: Instruction | None, calls: Calls) -> None:
        numbers: frozenset[int] | None
        if before is not None and _is_number(before) and at not in self._entered:
            numbers = frozenset((before.immediate(1),))
        else:
            numbers = self._at(at, _RAX)
        wanted = frozenset(WANTED) if numbers is None else numbers & WANTED.keys()
        if wanted and before is not None and _is_load(before) and not self._is_entered(before.ip, at):
            calls.seen.append(Call(before, at))
            if at not in self._entered:
                return
            wanted -= {before.immediate(1)} if _is_number(before) else set()
        if numbers is None and self._is_libc:
            return
        rights = self._at(at, _RDX) if wanted & _PROTECTS else None
        harmless = _PROTECTS if rights and not any(right & _EXEC for right in rights) else frozenset()
        if wanted - _HARMLESS - harmless - ({_EXIT_GROUP} if self._is_exit else set()):
            calls.unseen.append(at)

    def _is_entered(self, start: int, end: int) -> bool:
        return any(start < at < end for at in self._entered)

    def _at(self, at: int, register: int) -> frozenset[int] | None:
        """What a register may hold; None: anything. A jump by a table may lead to any place."""
        if any(x.flow_control == FlowControl.INDIRECT_BRANCH for x in self._code):
            return None
        self._values = self._values or constants(self._code, self._outer)
        return self._values.get(at, {}).get(register)


def _is_load(x: Instruction) -> bool:
    """One that may be executed twice. Numbers in memory are of Go, whose stacks are too small for us."""
    return (
        x.mnemonic == Mnemonic.MOV
        and x.len >= _ROOM
        and x.op0_kind == OpKind.REGISTER
        and x.op0_register != Register.RSP
        and not (x.op1_kind == OpKind.MEMORY and x.op0_register in (x.memory_base, Register.RAX, Register.EAX))
    )


def _is_number(x: Instruction) -> bool:
    return (
        x.mnemonic == Mnemonic.MOV
        and x.op0_kind == OpKind.REGISTER
        and x.op0_register in (Register.EAX, Register.RAX)
        and x.op1_kind not in (OpKind.MEMORY, OpKind.REGISTER)
    )

"""Split-lock detection by QEMU's gdb stub: what is to be done where a CPU has stopped?

Stops are where split locks were seen, and where RDMSR and WRMSR are. The guest stands still meanwhile, all of its CPUs.
It is the same processor as plugin/detection.h makes, with the same sources; CPUID is QEMU's own (detection.py).
What the plugin sees splitting on an armed CPU had no stop: it has escaped.
"""

from __future__ import annotations

import os
import time

from iced_x86 import Code, Decoder, Register

from splitlock.guest.cpu import AC, AM, FLAGS_AC, GP, LMA, PG, Cpu
from splitlock.guest.gdb import GoneError, Stub
from splitlock.guest.linux import KERNEL_HALF
from splitlock.guest.memory import PAGE, Space
from splitlock.guest.shared import AFTER_BOOT_SECTOR, KNOWS_REGISTERS, SMM, Entry
from splitlock.x86.lines import crosses
from splitlock.x86.locked import operand_address, split_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from iced_x86 import Instruction

    from splitlock.guest.machine import Machine
    from splitlock.guest.names import Named, Names

_TEST_CTRL, _CORE_CAPABILITIES = 0x33, 0xCF
_TEST_CTRL_BITS, _DETECT, _CAPABILITY = 1 << 29 | 1 << 31, 1 << 29, 1 << 5
_RESET_VECTOR = 0xFFFF_FFF0
_RAX, _RCX, _RDX, _RSI, _RDI = 0, 1, 2, 6, 7
_SIGBUS, _BUS_ADRALN = 7, 1  # Linux'
_U32 = 0xFFFF_FFFF


class Stops:
    """The stops of one pass. `at`: their linear addresses. Lets the guest begin."""

    def __init__(self, machine: Machine, names: Names, named: dict[int, Named], at: frozenset[int]) -> None:
        assert machine.stub is not None
        self.at, self.count = at, 0
        self._stub = Stub(machine.stub)
        self._shared, self._memory, self._traps = machine.shared, machine.memory, machine.options.traps
        self._detection, self._cpus = machine.options.detection, machine.options.cpus
        self._names, self._named = names, named
        self._test_ctrl = [0] * self._cpus
        self._let_pass: dict[int, int] = {}  # by CPU: the instruction whose retry may execute
        self._stepping: tuple[int, bool] | None = None
        self._numbers: dict[tuple[object, ...], int] = {}  # of entries
        self._numbered = 0
        self._last: dict[int, int] = {}  # by task: the entry that got an exception
        self._send_fault = 0
        for cpu in range(self._cpus):
            self._arm(cpu)
        for address in sorted(at | {_RESET_VECTOR}):
            self._stub.stop_at(address)
        self._stub.go_on()

    def fileno(self) -> int:
        """What is to be read, for select(2)."""
        return self._stub.fileno()

    def escaped(self) -> bool:
        """Whether something was there that would have needed a stop: this pass is worth nothing."""
        return bool(self._shared.escaped()) or not self.at.issuperset(self._shared.places())

    def serve(self) -> bool:
        """Do what a stop asks for, and let the guest go on; False when QEMU is gone. Raises SplitlockError."""
        try:
            number = self._stub.stopped()
            if number is None:
                return True
            if self._stepping is not None:
                self._shared.arm(*self._stepping)
                self._stepping = None
                self._stub.go_on()
            else:
                self.count += 1
                self._look(Cpu(self._stub, number))
        except GoneError:
            return False
        return True

    def _look(self, cpu: Cpu) -> None:
        if cpu.pc >= KERNEL_HALF and cpu.efer & LMA:
            self._shared.looked(cpu.cr3, cpu.cr4)
        if cpu.pc not in self.at and cpu.pc not in (_RESET_VECTOR, self._send_fault):
            return self._stub.go_on()  # another CPU's stop, which comes again
        if cpu.pc == _RESET_VECTOR:
            self._reset()
        elif cpu.pc == self._send_fault:
            self._signal(cpu)
        code = cpu.code()
        instruction = Decoder(cpu.mode, code, ip=cpu.ip).decode()
        if instruction.code in (Code.RDMSR, Code.WRMSR):
            done = self._msr(cpu, instruction)
        else:
            done = split_size(instruction) > 0 and self._locked(cpu, instruction, code)
        if self._names.kernel and not self._send_fault:
            self._send_fault = self._names.kernel.symbols.addresses.get("force_sig_fault", 0)
            self._stub.stop_at(self._send_fault)
        return self._stub.go_on() if done else self._stub.step(cpu.number)

    def _reset(self) -> None:
        self._test_ctrl = [0] * self._cpus
        for cpu in range(self._cpus):
            self._arm(cpu)
        self._shared.add_reset()

    def _arm(self, cpu: int) -> None:
        on = self._detection.split_locks and self._test_ctrl[cpu] & _DETECT
        self._shared.arm(cpu, bool(on or self._detection.forward))

    def _msr(self, cpu: Cpu, instruction: Instruction) -> bool:
        """Answer it; False where QEMU is to do that."""
        which = cpu.general[_RCX] & _U32
        if cpu.cpl or not self._detection.split_locks or which not in (_TEST_CTRL, _CORE_CAPABILITIES):
            return False
        if instruction.code == Code.WRMSR:
            value = cpu.general[_RAX] & _U32 | (cpu.general[_RDX] & _U32) << 32
            if which != _TEST_CTRL or value & ~_TEST_CTRL_BITS:
                return cpu.deliver(GP, 0 if cpu.has_error_codes else None)
            self._test_ctrl[cpu.number] = value
            self._arm(cpu.number)
        else:
            value = self._test_ctrl[cpu.number] if which == _TEST_CTRL else _CAPABILITY
            cpu.set_general(_RAX, value & _U32)
            cpu.set_general(_RDX, value >> 32)
        cpu.pass_over(instruction.len)
        return True

    def _locked(self, cpu: Cpu, instruction: Instruction, code: bytes) -> bool:
        """Raise #AC for it; False where it is to execute, or to fault otherwise."""
        size = split_size(instruction)
        fs, gs = cpu.bases[Register.FS], cpu.bases[Register.GS]
        address = operand_address(code, cpu.ip, cpu.general, fs, gs, cpu.mode, cpu.bases)
        if address is None or not crosses(address, size):
            return False
        if not self._shall_trap(cpu):
            self._stepping = cpu.number, self._shared.is_armed(cpu.number)
            self._shared.arm(cpu.number, False)
            self._let_pass.pop(cpu.number, None)
            return False
        # where the next two are wrong and it executes, it has escaped
        if not self._writable(cpu, address, size) or not cpu.deliver(AC, 0):
            return False
        self._let_pass[cpu.number] = cpu.pc
        self._count(cpu, code[: instruction.len], address, size)
        return True

    def _shall_trap(self, cpu: Cpu) -> bool:
        forward = self._detection.forward
        if forward == "once":
            return self._let_pass.get(cpu.number) != cpu.pc
        if forward == "asked":
            return bool(cpu.cpl == 3 and cpu.cr0 & AM and cpu.flags & FLAGS_AC)
        return forward == "always" or bool(self._test_ctrl[cpu.number] & _DETECT)

    def _writable(self, cpu: Cpu, address: int, size: int) -> bool:
        """Whether no page fault comes first. Where there are 32-bit page tables, nobody looks."""
        if not cpu.cr0 & PG or not cpu.efer & LMA:
            return True
        space = Space(self._memory, cpu.cr3, cpu.cr4)
        return all(space.writable(each, user=cpu.cpl == 3) for each in {address, (address + size - 1) & -PAGE})

    def _count(self, cpu: Cpu, code: bytes, address: int, size: int) -> None:
        """Count an exception to the entry of who got it."""
        if cpu.efer & LMA:
            self._names.find_kernel(cpu.cr3, cpu.cr4)
        who = self._names.who(cpu.number) if cpu.pc < KERNEL_HALF else (0, 0, 0)
        for number in range(self._numbered, self._shared.totals().entries):
            entry = self._shared.entry(number)
            key = entry.pc, entry.code[: entry.length], (entry.task, entry.started, entry.execs)
            self._numbers.setdefault(key, number)
            self._numbered = number + 1
        found = self._numbers.get((cpu.pc, code, who))
        if found is None:
            flags = KNOWS_REGISTERS | (SMM if cpu.smm else 0)
            flags |= AFTER_BOOT_SECTOR if self._shared.totals().boot_sector else 0
            entry = Entry(
                0, 0, 0, 0, 0, 0, cpu.pc, address, *who, cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpu.flags, cpu.cs,
                cpu.bases[Register.GS], cpu.kernel_gs_base(), 0, cpu.number, size, len(code), cpu.mode, flags, code,
            )  # fmt: skip
            found = self._shared.add(entry)
            if found is not None:
                self._named[found] = self._names.name(entry)
        if found is not None and who[0]:
            self._last[who[0]] = found
        self._shared.add_trap(found, time.monotonic_ns())
        if self._traps is not None:
            line = (
                f'{{"trap":"#AC","cpu":{cpu.number},"cpl":{cpu.cpl},"pc":"{cpu.pc:#x}",'
                f'"address":"{address:#x}","size":{size}}}\n'
            )
            os.write(self._traps, line.encode())

    def _signal(self, cpu: Cpu) -> None:
        """The kernel sends a signal: for the exception that this task got last."""
        if cpu.general[_RDI] & _U32 == _SIGBUS and cpu.general[_RSI] & _U32 == _BUS_ADRALN:
            found = self._last.pop(self._names.who(cpu.number)[0], None)
            if found is not None:
                self._shared.add_signal(found)

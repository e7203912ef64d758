"""Split-lock detection by QEMU's gdb stub: what is to be done where a CPU has stopped?

Stops are where split locks were seen, and where MSRs and DR6 are read and written. All CPUs stand still meanwhile. A
stop costs more than its packets: QEMU then throws away all of its translations (gdbstub.c, gdb_vm_state_change).
It is the same processor as plugin/detection.h makes, with the same sources; CPUID is QEMU's own (detection.py).
What the plugin sees splitting on an armed CPU had no stop: it has escaped.
"""

from __future__ import annotations

import json
import os
import time

from iced_x86 import Code, Decoder, Mnemonic, Register, RegisterExt

from splitlock.guest.linux import KERNEL_HALF
from splitlock.guest.memory import Space
from splitlock.guest.shared import AFTER_BOOT_SECTOR, KNOWS_REGISTERS, SMM, Entry
from splitlock.guest.stub.cpu import AC, AM, DB, FLAGS_AC, GP, LMA, PG, Cpu
from splitlock.guest.stub.protocol import GoneError, Stub
from splitlock.x86.execute import execute
from splitlock.x86.lines import crosses
from splitlock.x86.locked import operand_address, split_size
from splitlock.x86.msr import (
    CORE_CAPABILITIES,
    DEBUGCTL,
    DETECT_BUS_LOCKS,
    DETECT_SPLIT_LOCKS,
    HAS_SPLIT_LOCKS,
    TEST_CTRL,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from iced_x86 import Instruction

    from splitlock.guest.machine import Machine
    from splitlock.guest.names import Named, Names

_BITS = {TEST_CTRL: DETECT_SPLIT_LOCKS | 1 << 31, DEBUGCTL: 0xDFC7}  # that can be set
_DR6_BUS_LOCK = 1 << 11
_RESET_VECTOR = 0xFFFF_FFF0
_RAX, _RCX, _RDX, _RSI, _RDI = 0, 1, 2, 6, 7
_SIGBUS, _BUS_ADRALN = 7, 1  # Linux'
_U32 = 0xFFFF_FFFF
_NOTHING = (Mnemonic.NOP, Mnemonic.ENDBR64)  # what a function of the kernel begins with


class Stops:
    """The stops of one pass. `at`: their linear addresses. Lets the guest begin."""

    def __init__(self, machine: Machine, names: Names, named: dict[int, Named], at: frozenset[int]) -> None:
        assert machine.stub is not None
        self.at = at
        self._stub = Stub(machine.stub)
        self._shared, self._memory, self._traps = machine.shared, machine.memory, machine.options.traps
        self._detection, self._cpus = machine.options.detection, machine.options.cpus
        self._names, self._named = names, named
        self._msrs = [dict.fromkeys(_BITS, 0) for _ in range(self._cpus)]
        self._let_pass: dict[int, int] = {}  # by CPU: the instruction whose retry may execute
        self._bus_locked: set[int] = set()  # CPUs whose DR6 says so
        self._stepping = False
        self._numbers: dict[tuple[object, ...], int] = {}  # of entries
        self._numbered = 0
        self._last: dict[int, int] = {}  # by task: the entry that got an exception
        self._send_fault: int | None = None  # where the kernel's function is; 0: it has none
        for cpu in range(self._cpus):
            self._arm(cpu)
        for address in sorted(at | {_RESET_VECTOR}):
            self._stub.stop_at(address)
        self._stub.go_on()

    def fileno(self) -> int:
        """What is to be read, for select(2)."""
        return self._stub.fileno()

    def escaped(self) -> tuple[int, int]:
        """What would have needed a stop: split locks that executed, and instructions that access MSRs or DR6."""
        places, more = self._shared.places()
        return self._shared.escaped(), len(places - self.at) + more

    def serve(self) -> bool:
        """Do what a stop asks for, and let the guest go on; False when QEMU is gone. Raises SplitlockError."""
        try:
            number = self._stub.stopped()
            if number is None:
                return True
            if self._stepping:
                self._stepping = False
                self._stub.go_on()
            else:
                self._look(Cpu(self._stub, number))
        except GoneError:
            return False
        return True

    def _look(self, cpu: Cpu) -> None:
        if cpu.pc >= KERNEL_HALF and cpu.efer & LMA:
            self._shared.looked(cpu.cr3, cpu.cr4)
        if cpu.pc not in self.at and cpu.pc not in (_RESET_VECTOR, self._send_fault):
            self._stub.go_on()  # another CPU's stop, which comes again
            return
        if cpu.pc == _RESET_VECTOR:
            self._reset()
        elif cpu.pc == self._send_fault:
            self._signal(cpu)
        code = cpu.code()
        instruction = Decoder(cpu.mode, code, ip=cpu.ip).decode()
        if self._names.kernel and self._send_fault is None:
            self._send_fault = self._names.kernel.symbols.addresses.get("force_sig_fault", 0)
            if self._send_fault:
                self._stub.stop_at(self._send_fault)
        if instruction.code in (Code.RDMSR, Code.WRMSR):
            self._msr(cpu, instruction)
        elif Register.DR6 in (instruction.op0_register, instruction.op1_register):
            self._dr6(cpu, instruction)
        elif split_size(instruction):
            self._locked(cpu, instruction, code[: instruction.len])
        elif instruction.mnemonic in _NOTHING:
            self._pass_over(cpu, instruction)
        else:
            self._step(cpu)

    def _step(self, cpu: Cpu) -> None:
        """Let QEMU execute the instruction: none that is locked, but into a fault.

        A split one would lose the status flags: a step leaps out of cpu_exec_step_atomic() past cpu_exec_exit()
        (accel/tcg/cpu-exec.c, 7.2).
        """
        self._stepping = True
        self._stub.step(cpu.number)

    def _pass_over(self, cpu: Cpu, instruction: Instruction) -> None:
        """Go on: it has been done here."""
        cpu.pass_over(instruction.len)
        self._stub.go_on()

    def _reset(self) -> None:
        self._msrs = [dict.fromkeys(_BITS, 0) for _ in range(self._cpus)]
        self._bus_locked.clear()
        for cpu in range(self._cpus):
            self._arm(cpu)
        self._shared.add_reset()

    def _arm(self, cpu: int) -> None:
        on = self._msrs[cpu][TEST_CTRL] & DETECT_SPLIT_LOCKS or self._msrs[cpu][DEBUGCTL] & DETECT_BUS_LOCKS
        self._shared.arm(cpu, bool(on or self._detection.forward))

    def _msr(self, cpu: Cpu, instruction: Instruction) -> None:
        which, values = cpu.general[_RCX] & _U32, self._msrs[cpu.number]
        split_locks, bus_locks = self._detection.split_locks, self._detection.bus_locks
        ours = {TEST_CTRL: split_locks, DEBUGCTL: bus_locks, CORE_CAPABILITIES: split_locks or bus_locks}
        if cpu.cpl or not ours.get(which):
            self._step(cpu)  # not allowed, or another: QEMU says so
        elif instruction.code == Code.RDMSR:
            value = values.get(which, HAS_SPLIT_LOCKS if split_locks else 0)
            cpu.set_general(_RAX, value & _U32)
            cpu.set_general(_RDX, value >> 32)
            self._pass_over(cpu, instruction)
        else:
            value = cpu.general[_RAX] & _U32 | (cpu.general[_RDX] & _U32) << 32
            if which in values and not value & ~_BITS[which]:
                values[which] = value
                self._arm(cpu.number)
                self._pass_over(cpu, instruction)
            elif cpu.deliver(GP, 0):
                self._stub.go_on()
            else:
                self._step(cpu)

    def _dr6(self, cpu: Cpu, instruction: Instruction) -> None:
        """DR6's bit 11 is kept here: the stub cannot write that register. Of it a kernel sees QEMU's other bits."""
        bus_locked = _DR6_BUS_LOCK if cpu.number in self._bus_locked else 0
        if cpu.cpl:
            self._step(cpu)
        elif instruction.op0_register != Register.DR6:
            cpu.set_general(RegisterExt.number(instruction.op0_register), cpu.dr6 & ~bus_locked)
            self._pass_over(cpu, instruction)
        else:
            value = cpu.general[RegisterExt.number(instruction.op1_register)]
            if value & _DR6_BUS_LOCK:
                self._bus_locked.discard(cpu.number)
            if (value ^ cpu.dr6) & _U32 & ~_DR6_BUS_LOCK:
                self._step(cpu)
            else:
                self._pass_over(cpu, instruction)

    def _locked(self, cpu: Cpu, instruction: Instruction, code: bytes) -> None:
        """Raise #AC before it or #DB after it, or let it execute, or fault otherwise."""
        size = split_size(instruction)
        fs, gs = cpu.bases[Register.FS], cpu.bases[Register.GS]
        address = operand_address(code, cpu.ip, cpu.general, fs, gs, cpu.mode, cpu.bases)
        if address is None or not self._writable(cpu, address, size):
            self._step(cpu)  # into a page fault
            return
        splits = crosses(address, size)
        entry, task = self._entry(cpu, code, address, size) if splits else (None, 0)
        if splits and self._shall_trap(cpu):
            if not cpu.deliver(AC, 0):
                self._step(cpu)  # it has escaped, and the plugin counts that
                return
            self._let_pass[cpu.number] = cpu.pc
            self._trapped(cpu, "#AC", entry, task, address, size)
        else:
            self._execute(cpu, instruction, address, size)
            if splits:
                self._let_pass.pop(cpu.number, None)
                self._shared.add_hit(entry, time.monotonic_ns())
                if self._msrs[cpu.number][DEBUGCTL] & DETECT_BUS_LOCKS and cpu.cpl:
                    self._bus_locked.add(cpu.number)
                    Cpu(self._stub, cpu.number).deliver(DB, None)
                    self._trapped(cpu, "#DB", entry, task, address, size)
        self._stub.go_on()

    def _execute(self, cpu: Cpu, instruction: Instruction, address: int, size: int) -> None:
        """Do it here: a step would throw away all translations twice again."""
        old = int.from_bytes(self._stub.read(cpu.number, address, size).ljust(size, b"\0"), "little")
        new, changed, flags = execute(instruction, size, old, cpu.general, cpu.flags)
        self._stub.write(cpu.number, address, new.to_bytes(size, "little"))
        if cpu.cr0 & PG:
            space = Space(self._memory, cpu.cr3, cpu.cr4)
            space.mark_written(address)
            space.mark_written(address + size - 1)
        for register, value in changed.items():
            cpu.set_general(register, value)
        if flags != cpu.flags:
            cpu.set_flags(flags)
        cpu.pass_over(instruction.len)

    def _shall_trap(self, cpu: Cpu) -> bool:
        forward = self._detection.forward
        if forward == "once":
            return self._let_pass.get(cpu.number) != cpu.pc
        if forward == "asked":
            return bool(cpu.cpl == 3 and cpu.cr0 & AM and cpu.flags & FLAGS_AC)
        return forward == "always" or bool(self._msrs[cpu.number][TEST_CTRL] & DETECT_SPLIT_LOCKS)

    def _writable(self, cpu: Cpu, address: int, size: int) -> bool:
        """Whether it can be accessed without a page fault. By 32-bit page tables nobody looks it up: no."""
        if not cpu.cr0 & PG:
            return True
        space = Space(self._memory, cpu.cr3, cpu.cr4)
        ends = {address, address + size - 1}
        return bool(cpu.efer & LMA) and all(space.writable(end, user=cpu.cpl == 3) for end in ends)

    def _entry(self, cpu: Cpu, code: bytes, address: int, size: int) -> tuple[int | None, int]:
        """The plugin's entry of who is about to execute this, made where there is none, and the task."""
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
            task, started, execs = who
            entry = Entry(
                pc=cpu.pc, address=address, task=task, started=started, execs=execs,
                cr0=cpu.cr0, cr3=cpu.cr3, cr4=cpu.cr4, efer=cpu.efer, eflags=cpu.flags, cs=cpu.cs,
                gs_base=cpu.bases[Register.GS], k_gs_base=cpu.kernel_gs_base(), vcpu=cpu.number,
                size=size, length=len(code), mode=cpu.mode, flags=flags, code=code,
            )  # fmt: skip
            found = self._shared.add(entry)
            if found is not None:
                self._named[found] = self._names.name(entry)
        return found, who[0]

    def _trapped(self, cpu: Cpu, what: str, entry: int | None, task: int, address: int, size: int) -> None:
        """Count an exception, and write the same line about it as the plugin does."""
        if entry is not None and task:
            self._last[task] = entry
        self._shared.add_trap(entry, time.monotonic_ns() if what == "#AC" else 0)
        if self._traps is not None:
            line = {"trap": what, "cpu": cpu.number, "cpl": cpu.cpl, "pc": f"{cpu.pc:#x}"}
            line |= {"address": f"{address:#x}", "size": size}
            os.write(self._traps, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _signal(self, cpu: Cpu) -> None:
        """The kernel sends a signal: for the exception that this task got last."""
        if cpu.general[_RDI] & _U32 == _SIGBUS and cpu.general[_RSI] & _U32 == _BUS_ADRALN:
            found = self._last.pop(self._names.who(cpu.number)[0], None)
            if found is not None:
                self._shared.add_signal(found)

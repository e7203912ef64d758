"""A CPU of a guest that stands still: its registers, and an exception delivered to it by hand (SDM vol. 3A, 6)."""

from __future__ import annotations

import re

from iced_x86 import Register

from splitlock._errors import SplitlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from splitlock.guest.stub.protocol import Stub

DB, GP, AC = 1, 13, 17
PE, PG, AM, LMA = 1, 1 << 31, 1 << 18, 1 << 10  # CR0, CR0, CR0, EFER
FLAGS_AC = 1 << 18
_TF, _IF, _NT, _RF, _VM = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17
_L, _B = 1 << 21, 1 << 22  # of a descriptor's second word
_GENERAL = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
_NUMBERS = (0, 2, 3, 1, 7, 6, 4, 5, *range(8, 16))  # gdb's, of the general registers in encoding order
_IP, _FLAGS, _CS, _SS, _K_GS_BASE = 16, 17, 18, 19, 26  # gdb's
_SEGMENTS = {"ES": Register.ES, "CS": Register.CS, "SS": Register.SS, "DS": Register.DS,
             "FS": Register.FS, "GS": Register.GS}  # fmt: skip
# target/i386/cpu-dump.c: `RAX=`, `EAX=`, `R8 =`; `CS =0010 0000000000000000 ffffffff 00af9b00`; `IDT=     base limit`
_NUMBER = re.compile(r"\b([A-Z][A-Z0-9]{1,3}) ?=([0-9a-f]+)")
_SEGMENT = re.compile(r"\b(ES|CS|SS|DS|FS|GS|TR) ?=([0-9a-f]{4}) ([0-9a-f]+) [0-9a-f]+ ([0-9a-f]{8})")
_TABLE = re.compile(r"\bIDT= +([0-9a-f]+) ([0-9a-f]+)")


class Cpu:
    """What QEMU's monitor prints of it. `general`: in encoding order; `pc`: linear address of the next instruction;
    `mode`: of the code. Raises SplitlockError where it prints something else."""

    def __init__(self, stub: Stub, number: int) -> None:
        self._stub, self.number = stub, number
        text = stub.registers(number)
        segments = {name: (int(a, 16), int(b, 16), int(c, 16)) for name, a, b, c in _SEGMENT.findall(text)}
        values = {name: int(value, 16) for name, value in _NUMBER.findall(text)}
        try:
            self.cr0, self.cr3, self.cr4, self.efer = (values[name] for name in ("CR0", "CR3", "CR4", "EFER"))
            wide = "RAX" in values
            letter = "R" if wide else "E"
            self.general = [values[letter + name] for name in _GENERAL]
            self.general += [values[f"R{i}"] if wide else 0 for i in range(8, 16)]
            self.ip, self.flags, self.cpl = values[f"{letter}IP"], values[f"{letter}FL"], values["CPL"]
            self.dr6 = values["DR6"]
            self.smm = bool(values["SMM"])
            self.cs, base, kind = segments["CS"]
            self.bases = {_SEGMENTS[name]: segments[name][1] for name in _SEGMENTS}
            self._tss = segments["TR"][1]
            idt = _TABLE.search(text)
            if idt is None:
                raise KeyError("IDT")
        except KeyError as missing:
            raise SplitlockError(f"--slow: QEMU's `info registers` shows no {missing.args[0]}", 2) from None
        self._idt = int(idt[1], 16)
        self.mode: Literal[16, 32, 64] = 64 if self.efer & LMA and kind & _L else 32 if kind & _B else 16
        self._mask = (1 << 64) - 1 if self.mode == 64 else 0xFFFF_FFFF
        if self.mode == 64:  # the other segments have no bases there (SDM vol. 1, 3.4.2.1)
            self.bases = {register: self.bases[register] for register in (Register.FS, Register.GS)}
        else:
            self.ip &= self._mask
        self.pc = (self.ip + (0 if self.mode == 64 else base)) & self._mask

    def kernel_gs_base(self) -> int:
        """MSR_KERNEL_GS_BASE."""
        return self._stub.register(self.number, _K_GS_BASE)

    def code(self) -> bytes:
        """What it is about to execute, up to 16 bytes: fewer where the next page is not there."""
        found = self._stub.read(self.number, self.pc, 16)
        return found or self._stub.read(self.number, self.pc, 4096 - self.pc % 4096)

    def set_general(self, register: int, value: int) -> None:
        """Write a general register."""
        self._stub.set_register(self.number, _NUMBERS[register], value)

    def set_flags(self, value: int) -> None:
        """Write EFLAGS."""
        self._stub.set_register(self.number, _FLAGS, value)

    def pass_over(self, length: int) -> None:
        """Go on behind an instruction that has been done here."""
        self._stub.set_register(self.number, _IP, (self.ip + length) & self._mask)

    def deliver(self, vector: int, error: int | None) -> bool:
        """Raise an exception, before what is about to execute; False where there is no gate for it, and nothing done.

        `error`: its error code, which real mode does not have.
        """
        if not self.cr0 & PE:
            return self._deliver_real(vector)
        if self.flags & _VM:
            return False
        return self._deliver(vector, error, 8 if self.efer & LMA else 4)

    def _deliver(self, vector: int, error: int | None, word: int) -> bool:
        """SDM vol. 3A, 6.12.1 and 6.14: by a gate, on the stack that gate or privilege ask for."""
        gate = self._read(self._idt + vector * 2 * word, 2 * word)
        at = self._number(gate, 0, 2) | self._number(gate, 6, 2) << 16
        selector, kind, ist = self._number(gate, 2, 2), self._number(gate, 5, 1), self._number(gate, 4, 1) & 7
        if kind & 0x9E != 0x8E:  # present, an interrupt or trap gate of the mode's own size
            return False
        stack, ss = self.general[4], None
        if word == 8:
            at |= self._number(gate, 8, 4) << 32
            if ist or self.cpl:
                stack = self._number(self._read(self._tss + (36 + 8 * (ist - 1) if ist else 4), 8), 0, 8)
                ss = 0
            stack &= ~15
        elif self.cpl:
            stack, ss = (self._number(self._read(self._tss + place, 4), 0, 4) for place in (4, 8))
        old_ss = self._stub.register(self.number, _SS)
        flags = self.flags | (_RF if vector != DB else 0)  # faults: vol. 3B, 17.3.1.1
        frame = [old_ss, self.general[4]] if word == 8 or self.cpl else []
        frame += [flags, self.cs, self.ip] + ([] if error is None else [error])
        stack -= word * len(frame)
        base = 0 if word == 8 or self.cpl else self.bases[Register.SS]
        if not self._push(base + stack, frame, word):
            return False
        flags &= ~(_TF | _NT | _RF | _VM | (0 if kind & 1 else _IF))
        if ss is not None:
            self._stub.set_register(self.number, _SS, ss)  # QEMU takes the CPL from it
        self._enter(selector, at, flags, stack)
        return True

    def _deliver_real(self, vector: int) -> bool:
        gate = self._read(self._idt + 4 * vector, 4)
        stack = (self.general[4] - 6) & 0xFFFF
        frame = [self.flags & 0xFFFF, self.cs, self.ip & 0xFFFF]
        if not self._push(self.bases[Register.SS] + stack, frame, 2):
            return False
        flags = self.flags & ~(_TF | _IF | FLAGS_AC)  # vol. 2A, INT n
        self._enter(self._number(gate, 2, 2), self._number(gate, 0, 2), flags, self.general[4] & ~0xFFFF | stack)
        return True

    def _enter(self, selector: int, ip: int, flags: int, stack: int) -> None:
        if selector != self.cs:
            self._stub.set_register(self.number, _CS, selector)  # then IP and SP are as wide as it says
        self._stub.set_register(self.number, _NUMBERS[4], stack)
        self._stub.set_register(self.number, _IP, ip)
        self._stub.set_register(self.number, _FLAGS, flags)

    def _push(self, address: int, words: list[int], size: int) -> bool:
        mask = (1 << 8 * size) - 1
        data = b"".join((word & mask).to_bytes(size, "little") for word in reversed(words))
        return self._stub.write(self.number, address, data)

    def _read(self, address: int, size: int) -> bytes:
        return self._stub.read(self.number, address, size).ljust(size, b"\0")

    @staticmethod
    def _number(data: bytes, at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

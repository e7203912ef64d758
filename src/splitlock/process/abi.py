"""What trampolines and tracer have agreed on: numbers, layouts, the routine every slow path calls.

The slow path of a site computes its operand's address into rdx and calls `CHECK`, which decides
whether it crosses a line, counts, and, the first time for a task and a site, asks the tracer with
a system call of our own (the seccomp filter stops on it).
"""

from __future__ import annotations

#: our system call: above every number the kernel uses, below the x32 bit
MAGIC = 0x0053_504C
#: upper half of mmap's (unused) fd argument in our own calls, which the filter lets pass
MAGIC_FD = 0x5350_4C4B

SEEN = 512  # entries of the table of (task, site) pairs that have been reported

# Stack of a task that asks: offsets from rsp, in bytes, of the registers the program had.
SAVED = {"r10": 0, "r11": 8, "rsi": 16, "rdi": 24, "rdx": 48, "rcx": 56, "rax": 64}
SAVED_FLAGS = 40  # ah as lahf leaves it, al the overflow flag
SAVED_SIZE = 72 + 128  # with the red zone that was stepped over

_HASH = 0x9E37_79B9_7F4A_7C15  # odd: idx -> idx * _HASH is one to one modulo 2**64


def data_layout(sites: int) -> tuple[int, int]:
    """Offset of the seen table in the data area and the area's size, in bytes, for `sites` counters."""
    seen = sites * 8 + 63 & ~63
    return seen, seen + SEEN * 8 + 4095 & ~4095


class Check:
    """The check routine, to be laid at the start of an arena whose data begins `data` bytes further."""

    def __init__(self, data: int, seen: int) -> None:
        code = bytearray()
        code += b"\x89\xd0\x83\xe0\x3f"  # mov eax, edx; and eax, 63
        code += b"\x00\xc8\x3c\x40"  # add al, cl (operand size); cmp al, 64
        out = self._jump(code, 0x76)  # jbe out
        code += b"\x57\x56\x41\x53\x41\x52"  # push rdi, rsi, r11, r10
        code += b"\x48\x89\xd7\x89\xce\xc1\xee\x08"  # mov rdi, rdx; mov esi, ecx; shr esi, 8 (site number)
        code += b"\x4c\x8d\x15" + (data - len(code) - 7).to_bytes(4, "little", signed=True)  # lea r10, counters
        code += b"\xf0\x49\xff\x04\xf2"  # lock inc qword ptr [r10+rsi*8]
        code += b"\x48\xb8" + _HASH.to_bytes(8, "little") + b"\x48\x0f\xaf\xc6"  # mov rax, HASH; imul rax, rsi
        code += b"\xf3\x48\x0f\xae\xc2"  # rdfsbase rdx: the thread pointer tells tasks apart
        code += b"\x48\x31\xc2\x48\x83\xca\x01"  # xor rdx, rax; or rdx, 1 (0 means empty)
        code += b"\x48\x89\xd0\x48\xc1\xe8\x28\x25\xff\x01\x00\x00"  # mov rax, rdx; shr rax, 40; and eax, 511
        code += b"\x4d\x8d\x94\xc2" + seen.to_bytes(4, "little")  # lea r10, [r10+rax*8+seen]
        code += b"\x49\x39\x12"  # cmp [r10], rdx
        done = self._jump(code, 0x74)  # je done
        code += b"\xb8" + MAGIC.to_bytes(4, "little")  # mov eax, MAGIC
        code += b"\x80\x3d"  # cmp byte ptr [flag], 0
        flag_at = len(code)
        code += b"\0\0\0\0\0"
        trap = self._jump(code, 0x75)  # jne trap
        code += b"\x0f\x05"  # syscall
        #: where rip is while a task asks by system call
        self.asked = len(code)
        after = self._jump(code, 0xEB)  # jmp after
        self._land(code, trap)
        code += b"\xcc"  # int3
        #: where rip is while a task asks by breakpoint
        self.trapped = len(code)
        self._land(code, after)
        code += b"\x85\xc0"  # test eax, eax: the tracer's answer, 1 to be asked no more
        done2 = self._jump(code, 0x74)
        code += b"\x49\x89\x12"  # mov [r10], rdx
        self._land(code, done)
        self._land(code, done2)
        code += b"\x41\x5a\x41\x5b\x5e\x5f"  # pop r10, r11, rsi, rdi
        self._land(code, out)
        code += b"\xc3"
        #: a byte that says: ask by breakpoint, the program has a seccomp filter of its own
        self.flag = len(code)
        code[flag_at : flag_at + 4] = (self.flag - flag_at - 5).to_bytes(4, "little")
        code += b"\0"
        self.code = bytes(code)

    @staticmethod
    def _jump(code: bytearray, opcode: int) -> int:
        code += bytes((opcode, 0))
        return len(code)

    @staticmethod
    def _land(code: bytearray, jump: int) -> None:
        code[jump - 1] = len(code) - jump

"""What does a split lock cost here, against an aligned one, and what does a neighbour core feel of it?

The only code of the project that takes split locks on purpose. Each stalls the whole physical host for some
microseconds: few, far between, announced by the caller beforehand.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import threading
import time
from bisect import bisect_left

from splitlock._errors import SplitlockError
from splitlock.report.status import Measured

MOST = 500  # split locks
_APART = 6_000  # pauses between two, some 0.1 to 0.2 ms
_READS = 1_000_000  # of the neighbour at most: more than the locker leaves time for; it is told to stop
# System V: rdi operand, rsi how many, rdx pairs of time stamps, rcx pauses between, r8 byte that says stop.
# locker:    each turn: pause rcx times; lfence; rdtsc; store; lock xadd [rdi], eax(=0); lfence; rdtsc; store
_LOCKER = bytes.fromhex(
    "4989d1"  # mov r9, rdx
    "4989ca"  # mov r10, rcx
    "4d89d3"  # 1: mov r11, r10
    "4d85db"  # 2: test r11, r11
    "7407"  # jz 3
    "f390"  # pause
    "49ffcb"  # dec r11
    "ebf4"  # jmp 2
    "0faee8 0f31 48c1e220 4809c2 498911"  # 3: lfence; rdtsc; shl rdx, 32; or rdx, rax; mov [r9], rdx
    "31c0 f00fc107"  # xor eax, eax; lock xadd [rdi], eax
    "0faee8 0f31 48c1e220 4809c2 49895108"  # lfence; rdtsc; ...; mov [r9+8], rdx
    "4983c110"  # add r9, 16
    "48ffce"  # dec rsi
    "75c3"  # jnz 1
    "c3"
)
# neighbour: the same around clflush [rdi]; mfence; mov eax, [rdi]; until rsi turns are done or byte [r8] is set
_NEIGHBOUR = bytes.fromhex(
    "4989d1"  # mov r9, rdx
    "0fae3f 0faef0"  # 1: clflush [rdi]; mfence
    "0faee8 0f31 48c1e220 4809c2 498911"
    "8b07"  # mov eax, [rdi]
    "0faee8 0f31 48c1e220 4809c2 49895108"
    "4983c110"
    "41803800"  # cmp byte [r8], 0
    "7505"  # jne 2
    "48ffce"  # dec rsi
    "75ca"  # jnz 1
    "4c89c8 c3"  # 2: mov rax, r9; ret
)
_CLOCK = bytes.fromhex("0faee8 0f31 48c1e220 4809d0 c3")  # lfence; rdtsc; shl rdx, 32; or rax, rdx; ret


class _Code:
    """Machine code that can be called. SplitlockError where memory may not be made executable."""

    def __init__(self) -> None:
        try:
            self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except OSError as error:
            raise SplitlockError(f"--measure: no executable memory: {error.strerror}", 2) from None
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        place = 0
        pointers = []
        for code in (_LOCKER, _NEIGHBOUR, _CLOCK):
            self._memory[place : place + len(code)] = code
            pointers.append(address + place)
            place += len(code) + 15 & ~15
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        kind = ctypes.CFUNCTYPE(u64, pointer, u64, pointer, u64, pointer)  # without the interpreter's lock
        self.locker, self.neighbour = kind(pointers[0]), kind(pointers[1])
        self.clock = ctypes.CFUNCTYPE(u64)(pointers[2])


def measure(split_locks: int) -> Measured:
    """Take that many split locks (at most MOST), and as many aligned ones. Raises SplitlockError."""
    if not 1 <= split_locks <= MOST:
        raise SplitlockError(f"--measure {split_locks}: 1 to {MOST} split locks", 2)
    code = _Code()
    cores = sorted(os.sched_getaffinity(0))
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    nanosecond = _nanosecond(code)
    reads = (ctypes.c_uint64 * (2 * _READS))()
    stop = ctypes.c_uint8(0)
    ended: list[int] = []

    def neighbour() -> None:
        os.sched_setaffinity(0, {cores[1]})
        end = code.neighbour(base + mmap.PAGESIZE, _READS, reads, 0, ctypes.byref(stop))
        ended.append((end - ctypes.addressof(reads)) // 16)

    thread = threading.Thread(target=neighbour, daemon=True) if len(cores) > 1 else None
    try:
        os.sched_setaffinity(0, {cores[0]})
        aligned = _timed(code, base + 128, split_locks, 100)
        if thread:
            thread.start()
            time.sleep(0.002)
        split = _timed(code, base + 62, split_locks, _APART)  # 2 bytes on one line, 2 on the next
        stop.value = 1
        if thread:
            thread.join()
    finally:
        stop.value = 1
        os.sched_setaffinity(0, cores)
    quiet, during = _felt(reads, ended[0] if ended else 0, split)
    costs = [(end - start) / nanosecond for start, end in split]
    return Measured(
        split_locks=split_locks,
        aligned=statistics.median(end - start for start, end in aligned) / nanosecond,
        split=statistics.median(costs),
        neighbour_quiet=statistics.median(quiet) / nanosecond if quiet else 0.0,
        neighbour_during=statistics.median(during) / nanosecond if during else None,
        neighbour_met=len(during),
        neighbour_core=cores[1] if thread else None,
        samples=[round(cost, 1) for cost in costs],
    )


def _timed(code: _Code, operand: int, turns: int, apart: int) -> list[tuple[int, int]]:
    """Time stamps before and after each locked addition of nothing to 4 bytes at `operand`."""
    out = (ctypes.c_uint64 * (2 * turns))()
    code.locker(operand, turns, out, apart, None)
    return list(zip(out[::2], out[1::2], strict=True))


def _nanosecond(code: _Code) -> float:
    """Steps of the time stamp counter in a nanosecond."""
    start, clock = time.perf_counter_ns(), code.clock()
    time.sleep(0.05)
    return float((code.clock() - clock) / (time.perf_counter_ns() - start))


def _felt(
    reads: ctypes.Array[ctypes.c_uint64], number: int, split: list[tuple[int, int]]
) -> tuple[list[float], list[float]]:
    """How long a turn of the neighbour's takes: each that met no split lock, and for each split lock what it came to.

    The latter is the lock's length by the turns, and parts of turns, that were done in it.
    """
    starts = [start for start, _ in split]
    done = [0.0] * len(split)
    quiet = []
    for at in range(0, 2 * (number - 1), 2):
        begin, end = reads[at], reads[at + 2]
        near = bisect_left(starts, end) - 1
        overlap = min(end, split[near][1]) - max(begin, split[near][0]) if near >= 0 else 0
        if overlap > 0:
            done[near] += overlap / (end - begin)
        else:
            quiet.append(float(end - begin))
    return quiet, [(stop - start) / turns for (start, stop), turns in zip(split, done, strict=True) if turns]

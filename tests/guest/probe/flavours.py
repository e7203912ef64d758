"""Images of the probe with C of the test's linked around its functions: other hypervisors, orders, and stacks."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

from modules.debian import ROOT

_RESETS = """
#include "probe.h"
void __real_trial(void);
static const struct { uint16_t limit; uint32_t base; } __attribute__((packed)) nowhere = {0, 0};
void __wrap_trial(void) {
    if (trial_op == OP_LOCK && (trial_operand & 63) == 62 && trial_mode == LONG && trial_cpl == 3)
        __asm__ volatile("lidt %0; int3" ::"m"(nowhere)); /* a triple fault */
    __real_trial();
}
"""
# as `lock add` in mode warn, seen from within: 10 ms of sleep, then two jiffies of 100 Hz, and one more by rounding
_THROTTLES = """
#include "probe.h"
#define KHZ %d
void __real_trial(void);
static uint64_t cycles(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}
static uint64_t off_until;
void __wrap_trial(void) {
    int splits = trial_op == OP_LOCK && (trial_operand & 63) == 62;
    uint64_t slept = 0, from = cycles();
    if (splits && from >= off_until) {
        slept = 10ull * KHZ;
        while (cycles() - from < slept)
            ;
        off_until = cycles() + 30ull * KHZ;
    }
    __real_trial();
    uint64_t took = ((uint64_t)trial_high << 32 | trial_low) + slept;
    trial_low = (uint32_t)took;
    trial_high = (uint32_t)(took >> 32);
}
"""
_SHUFFLED = """
#include "probe.h"
uint32_t __real_plan(struct row *, int, int, int);
static uint32_t seed = %d;
static uint32_t below(uint32_t most) { return ((seed = seed * 1664525 + 1013904223) >> 8) %% most; }
uint32_t __wrap_plan(struct row *rows, int has_long_mode, int has_detection, int has_bus_lock) {
    uint32_t count = __real_plan(rows, has_long_mode, has_detection, has_bus_lock);
    for (uint32_t i = count - 1; i; i--) { /* Fisher and Yates */
        uint32_t j = below(i + 1);
        struct row one = rows[i];
        rows[i] = rows[j];
        rows[j] = one;
    }
    return count;
}
"""
_DEEP = """
#include "probe.h"
void __real_trial(void);
static uint32_t number;
void __wrap_trial(void) {
    uint32_t bytes = %s;
    volatile uint8_t *eaten = __builtin_alloca(bytes + 1);
    for (uint32_t i = 0; i <= bytes; i++)
        eaten[i] = 0xff; /* NT among the flags, if somebody took these for his own */
    __real_trial();
    for (uint32_t i = 0; i <= bytes; i++)
        if (eaten[i] != 0xff)
            trial_vector = 99;
}
"""
# what a row may leave behind: flags, control registers, segments, results
_DIRTY = """
#include "probe.h"
void __real_trial(void);
static uint32_t number;
void __wrap_trial(void) {
    static const uint32_t flags[] = {0x4002, 0x40002, 0x402, 0xcd7, 0x3002}; /* NT; AC; DF; the arithmetic ones; IOPL */
    uint32_t cr0;
    trial_vector = trial_ip = trial_at = trial_next = trial_low = trial_high = number * 0x01010101;
    __asm__ volatile("movl %%cr0, %0; orl $0x40000, %0; movl %0, %%cr0" : "=r"(cr0)); /* AM */
    __asm__ volatile("movw %w0, %%fs; movw %w0, %%gs" ::"r"(number & 1 ? DATA32 : 0));
    if (number % 3 == 0)
        __asm__ volatile("movl %0, %%cr4" ::"r"(number & 1 ? 0x20 : 0x4)); /* PAE; TSD */
    __asm__ volatile("pushl %0; popfl" ::"r"(flags[number++ % 5]) : "cc");
    __real_trial();
    __asm__ volatile("pushl $2; popfl; cld" ::: "cc");
}
"""


def resets(directory: Path) -> Path:
    """An image whose machine is reset by each split lock in long mode at CPL 3."""
    return _linked(directory, "resets", _RESETS, "trial")


def throttles(directory: Path, khz: int, *, wait: bool) -> Path:
    """As if on KVM on a host in mode warn. `khz`: of the time-stamp counter; `wait`: the image waits between rows."""
    code = _THROTTLES % khz
    if wait:
        return _linked(directory, "throttles", code, "trial")
    return _linked(directory, "hasty", code + "void __wrap_clock_wait(void) {}\n", "trial", "clock_wait")


def shuffled(directory: Path, seed: int) -> Path:
    """The rows in an order of their own."""
    return _linked(directory, f"shuffled-{seed}", _SHUFFLED % seed, "plan")


def deep(directory: Path, size: str) -> Path:
    """Each trial further down the stack: by `size` bytes, an expression in C in which `number++` counts the trials."""
    return _linked(directory, "deep", _DEEP % size, "trial")


def dirty(directory: Path) -> Path:
    """Before each trial everything is left as badly as a row could leave it."""
    return _linked(directory, "dirty", _DIRTY, "trial")


def _linked(directory: Path, name: str, code: str, *wrapped: str) -> Path:
    setup = runpy.run_path(str(ROOT / "setup.py"))
    source, target = directory / f"{name}.c", directory / f"{name}.bin"
    source.write_text(code)
    command = [*setup["BARE"][:-1], "-I.", *(f"-Wl,--wrap={one}" for one in wrapped), str(source), "-o", str(target)]
    subprocess.run(command, cwd=setup["PROBE"], check=True)
    return target

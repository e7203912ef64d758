/* What the processor announces: CPUID, and the MSRs of split-lock and bus-lock detection (Intel SDM volume 4). */
#include "probe.h"
#define CORE_CAPABILITIES 0xcf
#define TEST_CTRL 0x33
#define TEST_CTRL_SPLIT_LOCK (1u << 29)
#define DEBUGCTL 0x1d9
#define DEBUGCTL_BUS_LOCK (1u << 2)
#define DR6_AT_RESET 0xffff0ff0

static void tell_leaf(uint32_t leaf) {
    struct cpuid of = cpuid(leaf);
    line_begin("cpuid ");
    hex(leaf, 8);
    const uint32_t registers[] = {of.a, of.b, of.c, of.d};
    for (int i = 0; i < 4; i++) {
        text(" ");
        hex(registers[i], 8);
    }
    line_end();
}

/* RDMSR or WRMSR of trial_edx:trial_eax; whether nothing was raised. */
static int msr(uint32_t op, uint32_t number) {
    trial_mode = PROTECTED;
    trial_cpl = trial_am = 0;
    trial_flags = 2;
    trial_op = op;
    trial_msr = number;
    trial();
    return trial_vector == DONE;
}

static void tell_msr(uint32_t number) {
    int there = msr(OP_RDMSR, number);
    line_begin("msr ");
    hex(number, 8);
    if (there) {
        text(" ");
        hex(trial_edx, 8);
        hex(trial_eax, 8);
    } else {
        text(" raised ");
        decimal(trial_vector);
    }
    line_end();
}

void processor_tell(void) {
    static const uint32_t leaves[] = {0, 1, 7, 0x80000000, 0x80000001, 0x80000002, 0x80000003, 0x80000004, 0x40000000};
    uint32_t most = cpuid(0).a, hypervisor = cpuid(1).c >> 31, extended = cpuid(0x80000000).a;
    for (uint32_t i = 0; i < sizeof leaves / sizeof *leaves; i++) {
        uint32_t leaf = leaves[i];
        if (leaf < 0x40000000 ? leaf <= most : leaf < 0x80000000 ? hypervisor : leaf <= extended)
            tell_leaf(leaf);
    }
    tell_msr(CORE_CAPABILITIES);
    tell_msr(TEST_CTRL);
    tell_msr(DEBUGCTL);
}

int processor_has_long_mode(void) { return cpuid(0x80000000).a >= 0x80000001 && cpuid(0x80000001).d >> 29 & 1; }

int processor_has_bus_lock(void) { return cpuid(0).a >= 7 && cpuid(7).c >> 24 & 1; }

static int set(uint32_t number, uint32_t bit, int on) {
    if (!msr(OP_RDMSR, number))
        return 0;
    if (!(trial_eax & bit) != !on) {
        trial_eax ^= bit;
        msr(OP_WRMSR, number);
        msr(OP_RDMSR, number);
    }
    return (trial_eax & bit) != 0;
}

/* Turn detection by #AC on or off; whether it is on now, which is not always what was asked for. */
int test_ctrl_set(int on) { return set(TEST_CTRL, TEST_CTRL_SPLIT_LOCK, on); }

/* Detection by #DB, in the same way. DR6 keeps what a #DB set: the processor never clears it. */
int bus_lock_set(int on) {
    __asm__ volatile("movl %0, %%dr6" ::"r"(DR6_AT_RESET));
    return set(DEBUGCTL, DEBUGCTL_BUS_LOCK, on);
}

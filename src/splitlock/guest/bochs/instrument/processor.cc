// processor.cc: see processor.h. Sources: Intel SDM vol. 4, table 2-2 (MSRs 33H, CFH, 1A0H, 1D9H), vol. 2A, CPUID leaves
// 7, 15H and 16H, vol. 3, appendix A.3.3 (secondary controls).
#include "processor.h"
#include "table.h"

enum { TEST_CTRL = 0x33, CORE_CAPABILITIES = 0xcf, MPERF = 0xe7, APERF = 0xe8, MISC_ENABLE = 0x1a0, DEBUGCTL = 0x1d9 };
enum { LEAF_FEATURES = 7, LEAF_TSC = 0x15, LEAF_FREQUENCY = 0x16 };
static const Bit64u DETECT_SPLIT_LOCKS = 1 << 29, LOCK_DISABLE = 1ull << 31, SPLIT_LOCK_CAPABILITY = 1 << 5;
static const Bit64u DETECT_BUS_LOCKS = 1 << 2, DEBUGCTL_BITS = 0xdfc3;
static const Bit32u CORE_CAPABILITIES_BIT = 1 << 30, BUS_LOCK_DETECT_BIT = 1 << 24; // of EDX and ECX
// Fast strings, and bits that are fixed: Linux drops ERMS, not FSRM, where the first is 0, and its memmove goes wrong
// then (6.1: arch/x86/kernel/cpu/intel.c, early_init_intel(), and arch/x86/lib/memmove_64.S).
static const Bit64u MISC_ENABLE_AFTER_RESET = 0x41801;
static const Bit32u TSC_PER_CRYSTAL = 1;
static const Bit32u POSTED_INTERRUPTS = 1 << 7, APIC_REGISTERS = 1 << 8, INTERRUPT_DELIVERY = 1 << 9, BUS_LOCK_EXIT = 1 << 30;

detecting_t::detecting_t(const bx_cpuid_t *found, const detection &wanted) : bx_cpuid_t(*found), model(found), what(wanted)
{
    reset();
}

void detecting_t::reset()
{
    test_ctrl = what.unannounced ? DETECT_SPLIT_LOCKS : 0;
    misc_enable = MISC_ENABLE_AFTER_RESET;
    debugctl = 0;
}

bool detecting_t::detects_split_locks() const
{
    return test_ctrl & DETECT_SPLIT_LOCKS;
}

bool detecting_t::detects_bus_locks() const
{
    return debugctl & DETECT_BUS_LOCKS;
}

void detecting_t::get_cpuid_leaf(Bit32u function, Bit32u subfunction, cpuid_function_t *leaf) const
{
    model->get_cpuid_leaf(function, subfunction, leaf);
    if (function == LEAF_FEATURES && subfunction == 0) {
        leaf->edx = (leaf->edx & ~CORE_CAPABILITIES_BIT) | (what.split_locks && !what.unannounced ? CORE_CAPABILITIES_BIT : 0);
        leaf->ecx = (leaf->ecx & ~BUS_LOCK_DETECT_BIT) | (what.bus_locks ? BUS_LOCK_DETECT_BIT : 0);
    } else if (function == LEAF_TSC) {
        leaf->eax = 1, leaf->ebx = TSC_PER_CRYSTAL, leaf->ecx = TSC_MHZ * 1000000, leaf->edx = 0;
    } else if (function == LEAF_FREQUENCY) {
        leaf->eax = leaf->ebx = leaf->ecx = TSC_MHZ, leaf->edx = 0;
    }
}

// 1: done; 0: #GP; -1: not one of ours.
int detecting_t::rdmsr(Bit32u index, Bit64u *value)
{
    switch (index) {
    case TEST_CTRL:
        *value = test_ctrl;
        return what.split_locks;
    case CORE_CAPABILITIES:
        *value = SPLIT_LOCK_CAPABILITY;
        return what.split_locks && !what.unannounced;
    case MISC_ENABLE:
        *value = misc_enable;
        return 1;
    case DEBUGCTL:
        *value = debugctl;
        return 1;
    case MPERF: // read at each tick; there are no states of power
    case APERF:
        *value = cpu->get_TSC();
        return 1;
    default:
        return -1;
    }
}

int detecting_t::wrmsr(Bit32u index, Bit64u value)
{
    switch (index) {
    case TEST_CTRL:
        if (!what.split_locks || value & ~(DETECT_SPLIT_LOCKS | LOCK_DISABLE))
            return 0;
        test_ctrl = value;
        if (value & DETECT_SPLIT_LOCKS)
            shared->turned_on = 1;
        return 1;
    case CORE_CAPABILITIES: // read-only
        return 0;
    case MISC_ENABLE:
        misc_enable = value;
        return 1;
    case DEBUGCTL:
        if (value & ~(DEBUGCTL_BITS | (what.bus_locks ? DETECT_BUS_LOCKS : 0)))
            return 0;
        debugctl = value;
        return 1;
    case MPERF:
    case APERF:
        return 1;
    default:
        return -1;
    }
}

void settle_vmx(BX_CPU_C *cpu, const detection &what)
{
    // Bochs wants the posted-interrupt descriptor to begin a page (cpu/vmx.cc), KVM has it begin a line: VM entries fail.
    cpu->vmx_cap.vmx_pin_vmexec_ctrl_supported_bits &= ~POSTED_INTERRUPTS;
    cpu->vmx_cap.vmx_vmexec_ctrl2_supported_bits &= ~(APIC_REGISTERS | INTERRUPT_DELIVERY);
    if (what.bus_locks && cpu->vmx_cap.vmx_vmexec_ctrl2_supported_bits)
        cpu->vmx_cap.vmx_vmexec_ctrl2_supported_bits |= BUS_LOCK_EXIT;
}

/* blind.h: VMX on one processor, as the Intel SDM (volume 3; sections in quotes) has it: what blind.c and its kin share.
 *
 * Everything between on() and off() runs with interrupts off: the kernel does not know that CR4.VMXE is set, and would
 * write CR4 without it. The registers are read and written by instructions of our own, not by the kernel's functions:
 * since 6.19 it exports those that a hypervisor needs to KVM alone. */
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <asm/cpufeature.h>
#include <asm/desc_defs.h>
#include <asm/msr.h>
#include <asm/processor-flags.h>

#define GET(name) ({ unsigned long value; asm volatile("mov %%" #name ", %0" : "=r"(value)); value; })
#define SET_CR4(value) asm volatile("mov %0, %%cr4" : : "r"(value) : "memory")

/* A VMX instruction whose operand is an address in memory. CF or ZF set is failure ("Conventions"). */
#define VMX(instruction, page) ({								\
    u64 address = __pa(page);									\
    bool succeeded;										\
    asm volatile(instruction " %1\n\tseta %0" : "=qm"(succeeded) : "m"(address)			\
                 : "cc", "memory");								\
    succeeded;											\
})

/* What VM exits and VMX change of the processor. */
struct host {
    unsigned long flags;
    struct desc_ptr gdt, idt;
    u64 debugctl;
};

static inline u64 get_msr(u32 number)
{
    u32 low, high;

    rdmsr(number, low, high);
    return (u64)high << 32 | low;
}

static inline void set_msr(u32 number, u64 value)
{
    wrmsr(number, (u32)value, (u32)(value >> 32));
}

/* A page for VMXON or a VMCS: zeros behind the revision in IA32_VMX_BASIC ("Format of the VMCS Region"). */
static inline u32 *region(void)
{
    u32 *page = (u32 *)get_zeroed_page(GFP_KERNEL);

    if (page)
        *page = (u32)get_msr(MSR_IA32_VMX_BASIC) & 0x7fffffff;
    return page;
}

/* "Enabling and Entering VMX Operation": CR4.VMXE, then VMXON. IA32_FEATURE_CONTROL is the kernel's work: it takes the
 * flag `vmx` away where VMX may not be used. False where another hypervisor has the processor, or VMXON fails. */
static inline bool on(struct host *host, u32 *page)
{
    local_irq_save(host->flags);
    asm volatile("sgdt %0\n\tsidt %1" : "=m"(host->gdt), "=m"(host->idt));
    host->debugctl = get_msr(MSR_IA32_DEBUGCTLMSR);
    if (!(GET(cr4) & X86_CR4_VMXE)) {
        SET_CR4(GET(cr4) | X86_CR4_VMXE);
        if (VMX("vmxon", page))
            return true;
        SET_CR4(GET(cr4) & ~X86_CR4_VMXE);
    }
    local_irq_restore(host->flags);
    return false;
}

/* VMXOFF, and what a VM exit does not bring back ("Loading Host State"): it sets the limits of GDTR and IDTR to FFFFh
 * and clears IA32_DEBUGCTL, where bus-lock detection is switched on. It clears DR7, too, and cuts the TSS down to 67h
 * bytes: perf's breakpoints and ioperm() are lost on this processor until the kernel loads them anew. */
static inline void off(struct host *host)
{
    asm volatile("vmxoff" : : : "cc", "memory");
    SET_CR4(GET(cr4) & ~X86_CR4_VMXE);
    asm volatile("lgdt %0\n\tlidt %1" : : "m"(host->gdt), "m"(host->idt));
    if (host->debugctl)
        set_msr(MSR_IA32_DEBUGCTLMSR, host->debugctl);
    local_irq_restore(host->flags);
}

MODULE_LICENSE("Dual MIT/GPL");

/* blind: what becomes of a guest's split lock under a hypervisor that does not know of split-lock detection?
 *
 * A hypervisor of our own, for emulated processors: as it is loaded it enters a guest that takes a real split lock. The
 * guest is a few instructions at CPL 0, in the host's own page tables, with interrupts off. Parameters:
 *   way=forward  #AC leads to a VM exit, and is injected into the guest, whoever it was meant for (the default)
 *   way=through  #AC does not lead to a VM exit: the guest has it from the processor
 *   way=off      bit 29 of TEST_CTRL is off while the guest runs
 *   way=handle   #AC leads to a VM exit, and the kernel's handle_guest_split_lock() decides
 *   idt=0|1      the guest has no handler at all, or one for #AC
 *   mark=PORT    write to this port first: an emulator's log is to have a mark there
 * One line goes to the kernel's log (report(), below). It is over when insmod is, and rmmod takes it out again; insmod
 * dies of SIGBUS where handle_guest_split_lock() says so. Sections in quotes: Intel SDM, volume 3. */
#include "blind.h"
#include <linux/string.h>
#include <asm/cpu.h>
#include <asm/io.h>
#include <asm/segment.h>
#include <asm/vmx.h>

#define AC 17
#define MOST_ACS 10 /* so many, and the guest is stuck */
#define DETECTION (1ul << 29)

static char *way = "forward";
module_param(way, charp, 0);
static bool idt;
module_param(idt, bool, 0);
static ushort mark;
module_param(mark, ushort, 0);

static unsigned char lines[128] __aligned(64);
static u32 *const counter = (u32 *)(lines + 62); /* crosses the end of a cache line */
static gate_desc gates[AC + 1];
static u64 stack[64] __aligned(16);

/* The guest. RDI is the counter. It ends by VMCALL, with EAX = 1 behind the split lock, EAX = 2 in the handler of #AC:
 * then RSI is the error code, RDX the interrupted RIP. (ENDBR64: for hosts that track indirect branches.) */
enum { COMPLETED = 1, HANDLED = 2 };
extern const char blind_guest[], blind_handler[];
asm(".pushsection .text, \"ax\"\n"
    ".p2align 4\n.type blind_guest, @function\nblind_guest:\n"
    "    endbr64\n"
    "    lock addl $1, (%rdi)\n"
    "    movl $1, %eax\n"
    "    vmcall\n"
    "    ud2\n"
    ".size blind_guest, . - blind_guest\n"
    ".p2align 4\n.type blind_handler, @function\nblind_handler:\n"
    "    endbr64\n"
    "    movq (%rsp), %rsi\n"
    "    movq 8(%rsp), %rdx\n"
    "    movl $2, %eax\n"
    "    vmcall\n"
    "    ud2\n"
    ".size blind_handler, . - blind_handler\n"
    ".popsection");

/* What the guest is entered with, and what came of it. */
struct run {
    unsigned long rip, event, error;       /* `event`: injected on entry, with its error code; 0: nothing */
    bool entered;                          /* or there is an `instruction_error` */
    unsigned long instruction_error, reason, qualification, info, info_error;
    unsigned long rax, rsi, rdx;           /* as the guest left them */
    int acs;                               /* VM exits by #AC; the first one's: */
    unsigned long first_info, first_error, first_rip;
};

static bool is(const char *this_way)
{
    return !strcmp(way, this_way);
}

static void put(unsigned long field, unsigned long value)
{
    asm volatile("vmwrite %1, %0" : : "r"(field), "rm"(value) : "cc");
}

/* PUT({ field, value }, ...) */
#define PUT(...) do {										\
    const unsigned long pairs[][2] = { __VA_ARGS__ };						\
    int i;											\
    for (i = 0; i < ARRAY_SIZE(pairs); i++)							\
        put(pairs[i][0], pairs[i][1]);								\
} while (0)

static unsigned long get(unsigned long field)
{
    unsigned long value = 0;

    asm volatile("vmread %1, %0" : "+rm"(value) : "r"(field) : "cc");
    return value;
}

/* "Algorithms for Determining VMX Capabilities": bits of the low half must be set, those of the high half may be. */
static unsigned long controls(u32 capabilities, u32 wanted)
{
    u64 allowed = get_msr(capabilities);

    return (wanted | (u32)allowed) & (u32)(allowed >> 32);
}

/* The base address of a TSS ("TSS Descriptor in 64-bit mode"). */
static unsigned long base(const struct desc_ptr *gdt, u16 selector)
{
    const u64 *descriptor = (const u64 *)(gdt->address + selector);

    return (descriptor[0] >> 16 & 0xffffff) | (descriptor[0] >> 56) << 24 | descriptor[1] << 32;
}

/* "VM-Execution Control Fields" and those of VM exits and entries. An NMI ends the run. */
static void put_controls(const struct run *run)
{
    PUT({ PIN_BASED_VM_EXEC_CONTROL, controls(MSR_IA32_VMX_PINBASED_CTLS, PIN_BASED_NMI_EXITING) },
        { CPU_BASED_VM_EXEC_CONTROL, controls(MSR_IA32_VMX_PROCBASED_CTLS, 0) },
        { VM_EXIT_CONTROLS, controls(MSR_IA32_VMX_EXIT_CTLS, VM_EXIT_HOST_ADDR_SPACE_SIZE) },
        { VM_ENTRY_CONTROLS, controls(MSR_IA32_VMX_ENTRY_CTLS, VM_ENTRY_IA32E_MODE) },
        /* does #AC lead to a VM exit? ("Exception Bitmap") */
        { EXCEPTION_BITMAP, is("forward") || is("handle") ? 1u << AC : 0 },
        { PAGE_FAULT_ERROR_CODE_MASK, 0 }, { PAGE_FAULT_ERROR_CODE_MATCH, 0 }, { CR3_TARGET_COUNT, 0 },
        { VM_EXIT_MSR_STORE_COUNT, 0 }, { VM_EXIT_MSR_LOAD_COUNT, 0 }, { VM_ENTRY_MSR_LOAD_COUNT, 0 },
        { CR0_GUEST_HOST_MASK, 0 }, { CR4_GUEST_HOST_MASK, 0 },
        /* "Event Injection" */
        { VM_ENTRY_INTR_INFO_FIELD, run->event }, { VM_ENTRY_EXCEPTION_ERROR_CODE, run->error });
}

/* "Host-State Area": as the host is now. ES, DS, FS and GS are null in a 64-bit insmod, and are so again afterwards. */
static void put_host(const struct host *host, u16 tr)
{
    PUT({ HOST_CR0, GET(cr0) }, { HOST_CR3, GET(cr3) }, { HOST_CR4, GET(cr4) },
        { HOST_CS_SELECTOR, __KERNEL_CS }, { HOST_SS_SELECTOR, __KERNEL_DS }, { HOST_ES_SELECTOR, 0 },
        { HOST_DS_SELECTOR, 0 }, { HOST_FS_SELECTOR, 0 }, { HOST_GS_SELECTOR, 0 }, { HOST_TR_SELECTOR, tr },
        { HOST_FS_BASE, get_msr(MSR_FS_BASE) }, { HOST_GS_BASE, get_msr(MSR_GS_BASE) },
        { HOST_TR_BASE, base(&host->gdt, tr) }, { HOST_GDTR_BASE, host->gdt.address },
        { HOST_IDTR_BASE, host->idt.address }, { HOST_IA32_SYSENTER_CS, get_msr(MSR_IA32_SYSENTER_CS) },
        { HOST_IA32_SYSENTER_ESP, get_msr(MSR_IA32_SYSENTER_ESP) },
        { HOST_IA32_SYSENTER_EIP, get_msr(MSR_IA32_SYSENTER_EIP) });
}

/* "Guest-State Area": 64-bit mode at CPL 0, the host's page tables and GDT, an IDT of its own. */
static void put_guest(const struct host *host, u16 tr, const struct run *run)
{
    enum { UNUSABLE = 0x10000, CODE64 = 0xa09b, DATA = 0xc093, BUSY_TSS = 0x8b }; /* access rights */
    unsigned long segment;

    for (segment = 0; segment <= GUEST_TR_SELECTOR - GUEST_ES_SELECTOR; segment += 2)
        PUT({ GUEST_ES_SELECTOR + segment, 0 }, { GUEST_ES_BASE + segment, 0 }, { GUEST_ES_LIMIT + segment, 0 },
            { GUEST_ES_AR_BYTES + segment, UNUSABLE });
    PUT({ GUEST_CS_SELECTOR, __KERNEL_CS }, { GUEST_CS_LIMIT, ~0u }, { GUEST_CS_AR_BYTES, CODE64 },
        { GUEST_SS_SELECTOR, __KERNEL_DS }, { GUEST_SS_LIMIT, ~0u }, { GUEST_SS_AR_BYTES, DATA },
        { GUEST_TR_SELECTOR, tr }, { GUEST_TR_BASE, base(&host->gdt, tr) }, { GUEST_TR_LIMIT, 0x67 },
        { GUEST_TR_AR_BYTES, BUSY_TSS }, { GUEST_GDTR_BASE, host->gdt.address }, { GUEST_GDTR_LIMIT, host->gdt.size },
        { GUEST_IDTR_BASE, idt ? (unsigned long)gates : 0 }, { GUEST_IDTR_LIMIT, idt ? sizeof(gates) - 1 : 0 },
        { GUEST_CR0, GET(cr0) }, { GUEST_CR3, GET(cr3) }, { GUEST_CR4, GET(cr4) }, { GUEST_DR7, 0x400 },
        { GUEST_IA32_DEBUGCTL, 0 }, { GUEST_SYSENTER_CS, 0 }, { GUEST_SYSENTER_ESP, 0 }, { GUEST_SYSENTER_EIP, 0 },
        { GUEST_RIP, run->rip }, { GUEST_RSP, (unsigned long)(stack + ARRAY_SIZE(stack)) },
        { GUEST_RFLAGS, X86_EFLAGS_FIXED }, { GUEST_ACTIVITY_STATE, 0 }, { GUEST_INTERRUPTIBILITY_INFO, 0 },
        { GUEST_PENDING_DBG_EXCEPTIONS, 0 }, { VMCS_LINK_POINTER, ~0ul });
}

/* VMLAUNCH. A VM exit leads to label 1 with RFLAGS = 2; where there is no entry, the processor comes there by itself
 * with CF or ZF set. General registers pass through both ("VM Entries", "VM Exits"). False: not entered. */
static noinline bool launch(struct run *run)
{
    bool entered;
    unsigned long scratch, rdi = (unsigned long)counter;

    asm volatile("vmwrite %%rsp, %[rsp_field]\n\t"
                 "lea 1f(%%rip), %[scratch]\n\t"
                 "vmwrite %[scratch], %[rip_field]\n\t"
                 "vmlaunch\n"
                 "1:\tendbr64\n\t"
                 "seta %[entered]"
                 : [entered] "=&c"(entered), [scratch] "=&b"(scratch), "=&a"(run->rax), "=&S"(run->rsi),
                   "=&d"(run->rdx), "+D"(rdi)
                 : [rsp_field] "r"((unsigned long)HOST_RSP), [rip_field] "r"((unsigned long)HOST_RIP)
                 : "cc", "memory");
    return entered;
}

/* Enter the guest, up to its next VM exit. False where VMX is not to be had. */
static bool enter(struct run *run, u32 *vmxon, u32 *vmcs, bool undetected)
{
    struct host host;
    unsigned long test_ctrl = 0;
    u16 tr;

    if (!on(&host, vmxon))
        return false;
    asm("str %0" : "=r"(tr));
    VMX("vmclear", vmcs); /* "Initializing a VMCS" */
    VMX("vmptrld", vmcs);
    put_controls(run);
    put_host(&host, tr);
    put_guest(&host, tr, run);
    if (undetected) { /* VMX does not switch this register: the guest runs with the host's */
        test_ctrl = get_msr(MSR_TEST_CTRL);
        set_msr(MSR_TEST_CTRL, test_ctrl & ~DETECTION);
    }
    run->entered = launch(run);
    if (undetected)
        set_msr(MSR_TEST_CTRL, test_ctrl);
    run->instruction_error = get(VM_INSTRUCTION_ERROR); /* "VM-Exit Information Fields" */
    run->reason = get(VM_EXIT_REASON);
    run->qualification = get(EXIT_QUALIFICATION);
    run->info = get(VM_EXIT_INTR_INFO);
    run->info_error = get(VM_EXIT_INTR_ERROR_CODE);
    run->rip = get(GUEST_RIP);
    VMX("vmclear", vmcs);
    off(&host);
    return true;
}

/* Does the kernel say that the guest may go on? It may sleep over it, and sends SIGBUS where the answer is no. */
static bool kernel_lets_go_on(unsigned long rip)
{
#ifdef BLIND_IMPORTS
    return handle_guest_split_lock(rip);
#else
    bool (*handle)(unsigned long) = symbol_get(handle_guest_split_lock);
    bool answer = handle && handle(rip);

    if (handle)
        symbol_put_addr(handle);
    return answer;
#endif
}

/* Enter the guest until it ends, and do with each #AC as `way` says. The end in a word. */
static const char *run_guest(struct run *run, u32 *vmxon, u32 *vmcs, bool undetected)
{
    for (;;) {
        if (!enter(run, vmxon, vmcs, undetected))
            return "no-vmx";
        if (!run->entered || run->reason >> 31) /* "VM-Entry Failures During or After Loading Guest State" */
            return "not-entered";
        if (run->reason == EXIT_REASON_TRIPLE_FAULT)
            return "triple-fault";
        if (run->reason == EXIT_REASON_VMCALL)
            return run->rax == COMPLETED ? "completed" : "handled";
        if (run->reason != EXIT_REASON_EXCEPTION_NMI || (run->info & INTR_INFO_VECTOR_MASK) != AC)
            return "other";
        if (!run->acs++) {
            run->first_info = run->info;
            run->first_error = run->info_error;
            run->first_rip = run->rip;
        }
        if (run->acs == MOST_ACS)
            return "livelock";
        if (is("handle") && !kernel_lets_go_on(run->rip))
            return "stopped";
        run->event = is("forward") ? run->info & ~INTR_INFO_UNBLOCK_NMI : 0;
        run->error = run->info_error;
    }
}

/* The line: `ac` VM exits by #AC, with `info`, `error` and `ip` of the first (0x4: the split lock); the `end`, and the
 * last VM exit's reason and qualification; `executed`: what is in memory; `handler`: the error code and ip that the
 * guest's handler was given. */
static void report(const struct run *run, const char *end, bool detected)
{
    unsigned long guest = (unsigned long)blind_guest;
    bool handled = run->entered && run->rax == HANDLED;

    pr_notice("blind: way=%s idt=%d detection=%d ac=%d info=0x%lx error=0x%lx ip=0x%lx end=%s reason=0x%lx "
              "qualification=0x%lx instruction-error=%lu executed=%u handler-error=0x%lx handler-ip=0x%lx\n",
              way, idt, detected, run->acs, run->first_info, run->first_error, run->acs ? run->first_rip - guest : 0,
              end, run->reason, run->qualification, run->entered ? 0 : run->instruction_error, *counter,
              handled ? run->rsi : 0, handled ? run->rdx - guest : 0);
}

static int __init blind_init(void)
{
    unsigned long handler = (unsigned long)blind_handler;
    struct run run = { .rip = (unsigned long)blind_guest };
    u32 low = 0, high, *vmxon, *vmcs;
    bool there = !rdmsr_safe(MSR_TEST_CTRL, &low, &high);

    if (!is("forward") && !is("through") && !is("off") && !is("handle"))
        return -EINVAL;
    if (!boot_cpu_has(X86_FEATURE_VMX))
        return -ENODEV;
    if (mark)
        outb(0, mark);
    gates[AC] = (gate_desc){ .offset_low = handler, .offset_middle = handler >> 16, .offset_high = handler >> 32,
                             .segment = __KERNEL_CS, .bits = { .type = GATE_INTERRUPT, .p = 1 } };
    vmxon = region();
    vmcs = region();
    if (vmxon && vmcs)
        report(&run, run_guest(&run, vmxon, vmcs, there && is("off")), there && low & DETECTION);
    free_page((unsigned long)vmxon);
    free_page((unsigned long)vmcs);
    return vmxon && vmcs ? 0 : -ENOMEM;
}

static void __exit blind_exit(void)
{
}

module_init(blind_init);
module_exit(blind_exit);
MODULE_DESCRIPTION("A hypervisor that does not know of split-lock detection");

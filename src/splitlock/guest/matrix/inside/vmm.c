/*
 * vmm: what becomes of a split lock in a guest of KVM's? `vmm kvm_KIND`: one guest of a few instructions, in a fresh
 * virtual machine, entered once, and what came of it, as lines for the kernel's log. ../log.py reads them.
 * No library. Constants and structures: linux/kvm.h (Documentation/virt/kvm/api.rst). SDM: Intel's, volume 3. */
#include "kvm.h"

/* The guest's memory, from address 0 on. */
enum {
    SIZE = 0x10000, BEHIND_VECTORS = 0x500, CODE = 0x1000, PML4 = 0x2000, PDPT = 0x3000, DIRECTORY = 0x4000, IDT = 0x5000,
    GDT = 0x6000, TSS = 0x6800, HANDLERS = 0x7000, KERNEL_STACK = 0x9000, USER_STACK = 0xa000, COUNTER = 0xa03e,
};
#define LINUX "kvm_linux_"
enum { GP = 13, AC = 17 };
/* What the guest writes to the port as its last deed. */
enum { PORT = 0x10, COMPLETED = 1, DERAILED = 2, HANDLED = 0x80 /* and the vector */ };
enum { CODE_SEGMENT = 8, DATA_SEGMENT = 16, USER_DATA = 24 | 3, USER_CODE = 32 | 3, TSS_SEGMENT = 40 };
enum { FIXED = 2, IOPL_3 = 0x3000, ALIGNMENT_CHECK = 0x40000, ALIGNMENT_MASK = 0x40000, PAGING = 0x80000001 };
enum { PRESENT = 1, WRITE = 2, USER = 4, LARGE = 0x80 };

/* COUNTER crosses the end of a cache line. */
__asm__(".pushsection .rodata\n"
        ".code16\n"
        "real: lock addl $1, 0xa03e\n mov $1, %al\n out %al, $0x10\n hlt\n"
        "derailed: mov $2, %al\n out %al, $0x10\n hlt\n"
        ".code64\n"
        "long: lock addl $1, 0xa03e\n mov $1, %al\n out %al, $0x10\n hlt\n"
        "test_ctrl: mov $0x33, %ecx\n mov $0x20000000, %eax\n xor %edx, %edx\n wrmsr\n"
        "mov $1, %al\n out %al, $0x10\n hlt\n"
        ".balign 16\nhandlers: mov $0x8d, %al\n out %al, $0x10\n hlt\n .balign 16\n"
        "mov $0x91, %al\n out %al, $0x10\n hlt\n"
        "guests_end:\n.popsection");
extern const char real[], derailed[], test_ctrl[], handlers[], guests_end[];
extern const char long_guest[] __asm__("long");

static const struct guest {
    const char *name;
    bool real, user, am, ac, idt, wrmsr;
} guests[] = {
    {.name = "kvm_real", .real = true},
    {.name = "kvm_kernel"},
    {.name = "kvm_kernel_idt", .idt = true},
    {.name = "kvm_user_idt", .user = true, .idt = true},
    {.name = "kvm_am_idt", .user = true, .am = true, .idt = true},
    {.name = "kvm_ac_idt", .user = true, .ac = true, .idt = true},
    {.name = "kvm_asked", .user = true, .am = true, .ac = true},
    {.name = "kvm_asked_idt", .user = true, .am = true, .ac = true, .idt = true},
    {.name = "kvm_wrmsr_idt", .idt = true, .wrmsr = true},
};

const char *kind;
static char *memory;

static void copy(char *to, const char *from, const char *end)
{
    while (from < end)
        *to++ = *from++;
}

static void put(unsigned at, uint64_t value)
{
    *(uint64_t *)(memory + at) = value;
}

/* "64-Bit Mode IDT Gate Descriptors": an interrupt gate. */
static void gate(unsigned vector, uint64_t handler)
{
    put(IDT + 16 * vector, (handler & 0xffff) | CODE_SEGMENT << 16 | 0x8e00ull << 32);
}

static void fill(const struct guest *guest)
{
    if (guest->real) {
        copy(memory + CODE, real, derailed);
        copy(memory + BEHIND_VECTORS, derailed, long_guest); /* an empty vector leads to 0, and zeros lead here */
        return;
    }
    copy(memory + CODE, guest->wrmsr ? test_ctrl : long_guest, guest->wrmsr ? handlers : test_ctrl);
    copy(memory + HANDLERS, handlers, guests_end);
    put(PML4, PDPT | PRESENT | WRITE | USER);
    put(PDPT, DIRECTORY | PRESENT | WRITE | USER);
    put(DIRECTORY, PRESENT | WRITE | USER | LARGE);
    put(GDT + CODE_SEGMENT, 0x00af9b000000ffff);
    put(GDT + DATA_SEGMENT, 0x00cf93000000ffff);
    put(GDT + (USER_DATA & ~3), 0x00cff3000000ffff);
    put(GDT + (USER_CODE & ~3), 0x00affb000000ffff);
    *(uint64_t *)(memory + TSS + 4) = KERNEL_STACK; /* RSP0 */
    gate(GP, HANDLERS);
    gate(AC, HANDLERS + 16);
}

/* Registers of 64-bit mode. Real mode is how a virtual CPU begins, but for its code's address. */
static void enter_mode(const struct guest *guest, struct kvm_sregs *sregs)
{
    if (guest->real) {
        sregs->cs.selector = 0;
        sregs->cs.base = 0;
        return;
    }
    sregs->cs = segment(guest->user ? USER_CODE : CODE_SEGMENT, 11, true);
    sregs->ss = segment(guest->user ? USER_DATA : DATA_SEGMENT, 3, false);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss;
    sregs->tr = (struct kvm_segment){.base = TSS, .limit = 0x67, .selector = TSS_SEGMENT, .type = 11, .present = 1};
    sregs->gdt = (struct kvm_dtable){.base = GDT, .limit = 0x2f};
    sregs->idt = (struct kvm_dtable){.base = guest->idt ? IDT : 0, .limit = guest->idt ? 16 * (AC + 1) - 1 : 0};
    sregs->cr0 = PAGING | 0x10 /* ET */ | (guest->am ? ALIGNMENT_MASK : 0);
    sregs->cr3 = PML4;
    sregs->cr4 = 0x20;   /* PAE */
    sregs->efer = 0x500; /* LME, LMA */
}

static long virtual_cpu(const struct guest *guest, struct kvm_run **run)
{
    struct machine machine = new_machine(memory, SIZE);
    long cpu = new_cpu(&machine, run);
    struct kvm_sregs sregs;
    ask("sregs", cpu, KVM_GET_SREGS, &sregs);
    enter_mode(guest, &sregs);
    ask("sregs2", cpu, KVM_SET_SREGS, &sregs);
    struct kvm_regs regs = {.rip = CODE, .rsp = guest->user ? USER_STACK : KERNEL_STACK, .rflags = FIXED};
    if (guest->user)
        regs.rflags |= IOPL_3;
    if (guest->ac)
        regs.rflags |= ALIGNMENT_CHECK;
    ask("regs", cpu, KVM_SET_REGS, &regs);
    return cpu;
}

/* `exit`: KVM's reason; `value`: what the guest said at its end, or KVM's exception; `executed`: how often the split lock
 * was; `rip`; `error` and `ip`: what its handler was given. */
static void tell(long cpu, const struct kvm_run *run, long result)
{
    struct kvm_regs regs;
    uint64_t value = 0, error = 0, ip = 0;
    ask("regs2", cpu, KVM_GET_REGS, &regs);
    if (run->exit_reason == KVM_EXIT_IO)
        value = *((const unsigned char *)run + run->io.data_offset);
    else if (run->exit_reason == KVM_EXIT_EXCEPTION)
        value = run->ex.exception, error = run->ex.error_code;
    if (value & HANDLED && regs.rsp <= SIZE - 16)
        error = *(uint64_t *)(memory + regs.rsp), ip = *(uint64_t *)(memory + regs.rsp + 8);
    begin("exit", kind), number("reason", run->exit_reason), number("value", value), number("error", error);
    number("ip", ip), number("rip", regs.rip), number("returned", (uint64_t)result), end();
}

__attribute__((used)) static void start(char **stack)
{
    const struct guest *guest = guests;
    kind = (stack + 1)[1];
    handle(SIGBUS, on_sigbus, SA_RESETHAND);
    if (same(kind, LINUX, sizeof LINUX - 1)) {
        run_linux();
        CALL(exit_group, 0);
    }
    while (!same(guest->name, kind, length(kind) + 1))
        if (++guest == guests + sizeof guests / sizeof *guests)
            give_up("kind", 0);
    memory = shared(-1, SIZE);
    fill(guest);
    struct kvm_run *run;
    long cpu = virtual_cpu(guest, &run);
    int64_t began = now();
    long result = CALL(ioctl, cpu, KVM_RUN, 0);
    int64_t ended = now();
    begin("took", kind), number("ns", (uint64_t)(ended - began));
    number("executed", *(volatile uint32_t *)(memory + COUNTER)), end();
    tell(cpu, run, result);
    CALL(exit_group, 0);
}

__asm__(".global _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call start");

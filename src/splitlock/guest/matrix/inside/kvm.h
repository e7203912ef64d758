/* kvm.h: a virtual machine and its processor, as linux/kvm.h and Documentation/virt/kvm/api.rst have them: what the VMMs
 * for small guests (vmm.c) and for Linux (linux.c) share. */
#include <linux/kvm.h>
#include <asm/siginfo.h>

#include "syscalls.h"

extern const char *kind; /* what is tried, as the lines name it */

/* vmm.c and linux.c: a guest of their own for this kind, and what came of it. */
void run_linux(void);

static inline void give_up(const char *what, long error)
{
    begin("failed", kind), add(" step="), add(what), number("errno", (uint64_t)-error), end();
    CALL(exit_group, 1);
}

static inline long ask(const char *what, long fd, unsigned long request, const void *argument)
{
    long result = CALL(ioctl, fd, request, argument);
    if (result < 0)
        give_up(what, result);
    return result;
}

static inline void *shared(long fd, unsigned long size)
{
    unsigned long at = (unsigned long)CALL(mmap, 0, size, 3 /* read, write */, fd < 0 ? 0x21 /* shared, anonymous */ : 1, fd);
    if (at > -4096ul)
        give_up("mmap", (long)at);
    return (void *)at;
}

struct machine {
    long kvm, vm;
};

static inline struct machine new_machine(char *memory, unsigned long size)
{
    long kvm = CALL(open, "/kvm", 2);
    if (kvm < 0)
        give_up("open", kvm);
    struct machine machine = {kvm, ask("vm", kvm, KVM_CREATE_VM, 0)};
    struct kvm_userspace_memory_region region = {.memory_size = size, .userspace_addr = (uint64_t)memory};
    ask("memory", machine.vm, KVM_SET_USER_MEMORY_REGION, &region);
    return machine;
}

/* A processor that is shown all that KVM lets its guests see: no split-lock detection. */
static inline long new_cpu(const struct machine *machine, struct kvm_run **run)
{
    static struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[128]; } cpuid = {.head.nent = 128};
    long cpu = ask("cpu", machine->vm, KVM_CREATE_VCPU, 0);
    ask("cpuid", machine->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid);
    for (unsigned i = 0; i < cpuid.head.nent; i++)
        if (cpuid.entries[i].function == 1)
            cpuid.entries[i].ecx |= 1u << 31; /* "a hypervisor": KVM leaves that to its VMM, and Linux asks for it first */
    ask("cpuid2", cpu, KVM_SET_CPUID2, &cpuid);
    *run = shared(cpu, (unsigned long)ask("size", machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    return cpu;
}

static inline struct kvm_segment segment(unsigned selector, unsigned type, bool code)
{
    return (struct kvm_segment){
        .limit = 0xffffffff, .selector = (uint16_t)selector, .type = (uint8_t)type, .present = 1, .dpl = selector & 3,
        .db = !code, .s = 1, .l = code, .g = 1};
}

static inline void on_sigbus(int signal, struct siginfo *info)
{
    begin("signal", kind), number("number", (uint64_t)signal), number("code", (uint64_t)info->si_code);
    number("address", (uintptr_t)info->si_addr), end();
}

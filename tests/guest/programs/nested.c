/*
 * nested [N [unready]]: runs a guest of its own by /dev/kvm, which takes N split locks (20000 unless told) in 16-bit code, at
 * linear address 0x1000, and halts. It counts #AC, and goes on; unready: it has no handler for any exception.
 * Prints what became of it, and whether KVM sent SIGBUS; exit status 0 when the guest halted.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static const uint8_t code[] = {
    0xf0, 0xff, 0x06, 0x3f, 0x20, /* again: lock inc word ptr [0x203f] */
    0x66, 0x49,                   /* dec ecx */
    0x75, 0xf7,                   /* jnz again */
    0xf4,                         /* hlt */
};
static const uint8_t on_ac[] = {
    0xff, 0x06, 0x00, 0x22, /* inc word ptr [0x2200] */
    0xcf,                   /* iret */
};
enum { AC = 17 };
static volatile sig_atomic_t stopped;

static void on_sigbus(int number)
{
    stopped = number;
}

static int must(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

int main(int argc, char **argv)
{
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    int vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    uint8_t *memory = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memcpy(memory + 0x1000, code, sizeof code);
    memcpy(memory + 0x1100, on_ac, sizeof on_ac);
    *(uint32_t *)(memory + 4 * AC) = 0x1100; /* the real-mode vector: 0000:1100 */
    struct kvm_userspace_memory_region region = {.memory_size = 0x4000, .userspace_addr = (uintptr_t)memory};
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int cpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    size_t size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    struct kvm_sregs special;
    must(ioctl(cpu, KVM_GET_SREGS, &special), "KVM_GET_SREGS");
    special.cs.base = special.cs.selector = 0;
    if (argc > 2)
        special.idt.limit = 0;
    must(ioctl(cpu, KVM_SET_SREGS, &special), "KVM_SET_SREGS");
    struct kvm_regs registers = {.rip = 0x1000, .rsp = 0x3000, .rflags = 2, .rcx = argc > 1 ? strtoul(argv[1], NULL, 10) : 20000};
    must(ioctl(cpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");
    signal(SIGBUS, on_sigbus);
    do
        must(ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
    while (run->exit_reason == KVM_EXIT_INTR);
    printf("nested guest: exit reason %u, counter %u, #AC %u%s\n", run->exit_reason, *(uint16_t *)(memory + 0x203f),
           *(uint16_t *)(memory + 0x2200), stopped ? ", and SIGBUS" : "");
    return run->exit_reason != KVM_EXIT_HLT;
}

/* buslock: a virtual machine that locks the bus twice, under KVM, which is asked to tell of each (KVM_CAP_X86_BUS_LOCK_EXIT).
 *
 * Its code, in real mode at 0x1000: two locked additions over the end of a line, and HLT. A line for each exit:
 * `exit REASON flags FLAGS memory VALUE`. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { CODE = 0x1000, OPERAND = 0x203e, SIZE = 0x10000, MOST = 10 };
static const uint8_t code[] = {
    0x66, 0xf0, 0x83, 0x06, 0x3e, 0x20, 1, /* lock addl $1, 0x203e */
    0x66, 0xf0, 0x83, 0x06, 0x3e, 0x20, 1,
    0xf4,
};

static int must(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        _Exit(2);
    }
    return result;
}

static void *map(int fd, size_t size)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    must(at == MAP_FAILED ? -1 : 0, "mmap");
    return at;
}

int main(void)
{
    int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm"), machine = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    printf("capability %d\n", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_X86_BUS_LOCK_EXIT));
    struct kvm_enable_cap wanted = {.cap = KVM_CAP_X86_BUS_LOCK_EXIT, .args = {KVM_BUS_LOCK_DETECTION_EXIT}};
    must(ioctl(machine, KVM_ENABLE_CAP, &wanted), "KVM_ENABLE_CAP");
    uint8_t *memory = map(-1, SIZE);
    memcpy(memory + CODE, code, sizeof code);
    struct kvm_userspace_memory_region region = {.memory_size = SIZE, .userspace_addr = (uintptr_t)memory};
    must(ioctl(machine, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    int cpu = must(ioctl(machine, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    struct kvm_run *run = map(cpu, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"));
    struct kvm_sregs special;
    must(ioctl(cpu, KVM_GET_SREGS, &special), "KVM_GET_SREGS");
    special.cs.base = special.cs.selector = 0;
    must(ioctl(cpu, KVM_SET_SREGS, &special), "KVM_SET_SREGS");
    struct kvm_regs registers = {.rip = CODE, .rflags = 2};
    must(ioctl(cpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");
    for (int i = 0; i < MOST; i++) {
        must(ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
        uint32_t value;
        memcpy(&value, memory + OPERAND, sizeof value);
        printf("exit %u flags %u memory %u\n", run->exit_reason, run->flags, value);
        if (run->exit_reason == KVM_EXIT_HLT)
            return 0;
    }
    return 1;
}

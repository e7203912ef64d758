/*
 * linuxvm KERNEL INITRD COMMAND-LINE: boots Linux, a bzImage, in a virtual machine of KVM's with one CPU. What it says to the
 * serial port (earlyprintk=ttyS0,keep) goes to standard output. Its restart (reboot=p) is the end, and so is what KVM gives up with;
 * the last line says which, and whether KVM sent SIGBUS. Exit status 0 after a restart.
 *
 * Sources: Documentation/virt/kvm/api.rst, Documentation/arch/x86/boot.rst (64-bit boot protocol) and zero-page.rst.
 */
#include <asm/bootparam.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ZERO_PAGE = 0x1000, GDT = 0x2000, PML4 = 0x3000, PDPT = 0x4000, DIRECTORY = 0x5000, WORDS = 0x6000 };
enum { MEMORY = 256 << 20, KERNEL = 1 << 20, ENTRY_64 = 0x200, CODE = 0x10, DATA = 0x18 };
enum { TRANSMIT = 0x3f8, LINE_STATUS = 0x3fd, READY = 0x60, CLOCK = 0x71, RESET = 0xcf9, CPU_TOO = 4, NOTHING = 0xff };
enum { MISC_ENABLE = 0x1a0, FAST_STRINGS = 1 };
static const uint32_t HYPERVISOR = 1u << 31, DEADLINE_TIMER = 1u << 24;

static uint8_t *memory;
static volatile sig_atomic_t stopped;

static void on_sigbus(int number)
{
    stopped = number;
}

static long must(long result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

static long size_of(int file)
{
    long size = must(lseek(file, 0, SEEK_END), "lseek");
    must(lseek(file, 0, SEEK_SET), "lseek");
    return size;
}

static void load(const char *path, long from, long at, long size)
{
    int file = (int)must(open(path, O_RDONLY), path);
    while (size > 0) {
        long got = must(pread(file, memory + at, (size_t)size, from), path);
        if (!got)
            break;
        at += got, from += got, size -= got;
    }
    close(file);
}

static void load_linux(const char *kernel, const char *initrd, const char *words)
{
    struct boot_params *zero = (struct boot_params *)(memory + ZERO_PAGE);
    struct setup_header *header = &zero->hdr;
    int file = (int)must(open(kernel, O_RDONLY), kernel), second = (int)must(open(initrd, O_RDONLY), initrd);
    long code;

    must(pread(file, header, sizeof *header, 0x1f1), kernel);
    code = (header->setup_sects + 1) * 512;
    load(kernel, code, KERNEL, size_of(file) - code);
    header->ramdisk_size = (uint32_t)size_of(second);
    header->ramdisk_image = (MEMORY - header->ramdisk_size) & ~0xfffu;
    load(initrd, 0, header->ramdisk_image, header->ramdisk_size);
    header->type_of_loader = 0xff;
    header->cmd_line_ptr = WORDS;
    strcpy((char *)memory + WORDS, words);
    zero->e820_table[0] = (struct boot_e820_entry){.addr = 0, .size = 0xa0000, .type = 1};
    zero->e820_table[1] = (struct boot_e820_entry){.addr = KERNEL, .size = MEMORY - KERNEL, .type = 1};
    zero->e820_entries = 2;
}

/* Paging that maps the first GiB to itself, and flat segments. */
static void enter_64_bit(int cpu)
{
    struct kvm_segment code = {.limit = ~0u, .selector = CODE, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = DATA, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    struct kvm_sregs special;

    *(uint64_t *)(memory + GDT + CODE) = 0x00af9b000000ffff;
    *(uint64_t *)(memory + GDT + DATA) = 0x00cf93000000ffff;
    *(uint64_t *)(memory + PML4) = PDPT | 3;
    *(uint64_t *)(memory + PDPT) = DIRECTORY | 3;
    for (uint64_t i = 0; i < 512; i++)
        ((uint64_t *)(memory + DIRECTORY))[i] = i << 21 | 0x83;
    must(ioctl(cpu, KVM_GET_SREGS, &special), "KVM_GET_SREGS");
    special.cs = code;
    special.ds = special.es = special.fs = special.gs = special.ss = data;
    special.gdt = (struct kvm_dtable){.base = GDT, .limit = 0x1f};
    special.cr0 = 0x80000011;
    special.cr3 = PML4;
    special.cr4 = 0x20;
    special.efer = 0x500;
    must(ioctl(cpu, KVM_SET_SREGS, &special), "KVM_SET_SREGS");
    struct kvm_regs registers = {.rip = KERNEL + ENTRY_64, .rsi = ZERO_PAGE, .rflags = 2};
    must(ioctl(cpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");
}

/* What KVM offers, and three bits that it leaves to its user: that there is a hypervisor, whose clock Linux then takes; the
 * deadline timer; fast strings, without which Linux' memmove() goes wrong on processors with FSRM. */
static void settle(int kvm, int cpu)
{
    static struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entries[128];
    } leaves = {.head.nent = 128};
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } registers = {.head.nmsrs = 1, .entry = {.index = MISC_ENABLE, .data = FAST_STRINGS}};

    must(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &leaves), "KVM_GET_SUPPORTED_CPUID");
    for (uint32_t i = 0; i < leaves.head.nent; i++)
        if (leaves.entries[i].function == 1)
            leaves.entries[i].ecx |= HYPERVISOR | DEADLINE_TIMER;
    must(ioctl(cpu, KVM_SET_CPUID2, &leaves), "KVM_SET_CPUID2");
    must(ioctl(cpu, KVM_SET_MSRS, &registers), "KVM_SET_MSRS");
}

/* False: the guest restarts. */
static int answer(const struct kvm_run *run)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;

    if (run->io.direction == KVM_EXIT_IO_IN)
        memset(data, run->io.port == LINE_STATUS ? READY : run->io.port == CLOCK ? 0 : NOTHING, run->io.size * run->io.count);
    else if (run->io.port == TRANSMIT)
        must(write(1, data, run->io.size * run->io.count), "standard output");
    return !(run->io.direction == KVM_EXIT_IO_OUT && run->io.port == RESET && *data & CPU_TOO);
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: linuxvm KERNEL INITRD COMMAND-LINE\n");
        return 2;
    }
    int kvm = (int)must(open("/dev/kvm", O_RDWR), "/dev/kvm");
    int vm = (int)must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    load_linux(argv[1], argv[2], argv[3]);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory};
    struct kvm_pit_config timer = {.flags = KVM_PIT_SPEAKER_DUMMY};
    must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
    must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    must(ioctl(vm, KVM_CREATE_PIT2, &timer), "KVM_CREATE_PIT2");
    int cpu = (int)must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    long size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    settle(kvm, cpu);
    enter_64_bit(cpu);
    signal(SIGBUS, on_sigbus);
    int restarted = 0;
    do {
        must(ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
        restarted = run->exit_reason == KVM_EXIT_IO && !answer(run);
    } while (!restarted && !stopped && (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO));
    if (restarted)
        printf("virtual machine: restarts\n");
    else
        printf("virtual machine: exit reason %u%s\n", run->exit_reason, stopped ? ", and SIGBUS" : "");
    return !restarted;
}

/*
 * linux: a Linux guest in KVM that tries one kind of split lock, by the same init (`kvm_linux_KIND`: init.c's KIND). It is
 * entered by the 64-bit boot protocol (Documentation/arch/x86/boot.rst), with KVM's own interrupt controllers and timer,
 * and has a serial port to speak. What it says from the kind's begin on is passed on, as `splitlock-guest: ...`. */
#include "kvm.h"

enum {
    SIZE = 160 << 20, TABLES = 0x9000, GDT = 0xf000, PARAMETERS = 0x10000, COMMAND_LINE = 0x20000, LOW_END = 0x9f000,
    INITRD = 128 << 20,
};
/* of struct boot_params and the setup header, arch/x86/include/uapi/asm/bootparam.h */
enum {
    E820_COUNT = 0x1e8, SECTORS = 0x1f1, LOADER = 0x210, FLAGS = 0x211, RAMDISK = 0x218, RAMDISK_SIZE = 0x21c,
    COMMAND = 0x228, PREFERRED = 0x258, E820 = 0x2d0, ENTRY_64 = 0x200, HEADER_END = 0x290,
};
enum { PRESENT_WRITE = 3, LARGE = 0x80, CODE_SEGMENT = 0x10, DATA_SEGMENT = 0x18 };
enum { CLOCK = 0x70, SERIAL = 0x3f8, LINE_STATUS = 5, EMPTY = 0x60, MISC_ENABLE = 0x1a0, FAST_STRINGS = 1 };
enum { TOO_LONG = 999 /* ms, after the last line: a guest that then has not ended is stuck */ };

static char *memory;
static bool late; /* TOO_LONG is over */

static void on_alarm(void)
{
    late = true;
}

static unsigned long load(const char *path, unsigned long at)
{
    long file = CALL(open, path, 0), size = 0, more;
    if (file < 0)
        give_up(path + 1, file);
    while ((more = CALL(read, file, memory + at + size, 1 << 20)) > 0)
        size += more;
    return (unsigned long)size;
}

static void put(unsigned long at, unsigned long value, unsigned size)
{
    for (; size; size--, value >>= 8)
        memory[at++] = (char)value;
}

static unsigned long get(unsigned long at)
{
    return *(const uint64_t *)(memory + at);
}

/* The kernel, at its preferred address: the file goes there so that its second part lies right. Gives the entry. */
static unsigned long place_kernel(void)
{
    char *parameters = memory + PARAMETERS;
    load("/vmlinuz", INITRD); /* for a look at its header */
    for (unsigned long i = SECTORS; i < HEADER_END; i++)
        parameters[i] = memory[INITRD + i];
    unsigned long setup = ((unsigned char)parameters[SECTORS] + 1) * 512ul, kernel = get(PARAMETERS + PREFERRED);
    load("/vmlinuz", kernel - setup);
    return kernel + ENTRY_64;
}

/* cryptomgr.notests: since 6.12 the kernel tries its ciphers in threads beside init, for seconds here. Who sleeps then,
 * or is kept waiting by the host, does not run again within TOO_LONG, or within two jiffies: the host's detection is on
 * again before the split lock is tried, and again, and it looks like a livelock. */
static void command_line(void)
{
    static const char words[] = "console=ttyS0,115200 loglevel=6 printk.devkmsg=on panic=-1 random.trust_cpu=on "
                                "noreplace-smp mitigations=off cryptomgr.notests nokaslr splitlock=";
    char *at = memory + COMMAND_LINE;
    for (const char *text = words; *text;)
        *at++ = *text++;
    for (const char *text = kind + sizeof "kvm_linux_" - 1; *text;)
        *at++ = *text++;
    put(PARAMETERS + COMMAND, COMMAND_LINE, 4);
}

static void memory_map(void)
{
    const uint64_t ranges[][2] = {{0, LOW_END}, {1 << 20, SIZE - (1 << 20)}};
    for (unsigned i = 0; i < 2; i++) {
        put(PARAMETERS + E820 + 20 * i, ranges[i][0], 8);
        put(PARAMETERS + E820 + 20 * i + 8, ranges[i][1], 8);
        put(PARAMETERS + E820 + 20 * i + 16, 1 /* RAM */, 4);
    }
    put(PARAMETERS + E820_COUNT, 2, 1);
}

/* A gigabyte, each address where it is. */
static void page_tables(void)
{
    put(TABLES, (TABLES + 0x1000) | PRESENT_WRITE, 8);
    put(TABLES + 0x1000, (TABLES + 0x2000) | PRESENT_WRITE, 8);
    for (unsigned long i = 0; i < 512; i++)
        put(TABLES + 0x2000 + 8 * i, i << 21 | PRESENT_WRITE | LARGE, 8);
    put(GDT + CODE_SEGMENT, 0x00af9b000000ffff, 8);
    put(GDT + DATA_SEGMENT, 0x00cf93000000ffff, 8);
}

static void enter_at(long cpu, unsigned long entry)
{
    struct kvm_sregs sregs;
    ask("sregs", cpu, KVM_GET_SREGS, &sregs);
    sregs.cs = segment(CODE_SEGMENT, 11, true);
    sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = segment(DATA_SEGMENT, 3, false);
    sregs.gdt = (struct kvm_dtable){.base = GDT, .limit = 0x1f};
    sregs.cr0 = 0x80000011;
    sregs.cr3 = TABLES;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    ask("sregs2", cpu, KVM_SET_SREGS, &sregs);
    struct kvm_regs regs = {.rip = entry, .rsi = PARAMETERS, .rflags = 2};
    ask("regs", cpu, KVM_SET_REGS, &regs);
    /* without it Linux drops ERMS, keeps FSRM, and its memmove goes wrong */
    struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = {{.nmsrs = 1}, {.index = MISC_ENABLE, .data = FAST_STRINGS}};
    ask("msrs", cpu, KVM_SET_MSRS, &msr);
}

/* A line of the guest's is whole. From the kind's begin on it is passed on, but its init's lines are not to be taken for
 * the host's. True: the guest's init has done its work. */
static bool heard(char *text, size_t size)
{
    static const char begins[] = "splitlock-matrix: begin", done[] = "splitlock-matrix: done";
    static bool began;
    bool over = false;
    for (size_t i = 0; i < size; i++) {
        began |= same(text + i, begins, sizeof begins - 1);
        over |= same(text + i, done, sizeof done - 1);
        if (same(text + i, begins, sizeof "splitlock-matrix:" - 1))
            text[i + sizeof "splitlock" - 1] = '~';
    }
    struct { struct time every, first; } timer = {{0, 0}, {0, TOO_LONG * 1000l}};
    if (began)
        CALL(setitimer, 0 /* real time */, &timer, 0);
    if (began)
        line.at = 0, add("<5>splitlock-guest: "), add(text), end();
    return over;
}

/* The serial port; and a clock that is not just being set, for which the kernel would wait. */
static bool is_there(unsigned number)
{
    return number >> 3 == SERIAL >> 3 || number >> 1 == CLOCK >> 1;
}

/* A serial port that is always ready. True: the guest's init has done its work. */
static bool port(struct kvm_run *run)
{
    static char text[200];
    static size_t at;
    unsigned char *data = (unsigned char *)run + run->io.data_offset;
    bool over = false;
    for (unsigned i = 0; i < run->io.count * run->io.size; i++, data++) {
        if (run->io.direction == KVM_EXIT_IO_IN)
            *data = run->io.port == SERIAL + LINE_STATUS ? EMPTY : is_there(run->io.port) ? 0 : 0xff;
        else if (run->io.port == SERIAL && *data == '\n')
            text[at] = 0, over |= heard(text, at), at = 0;
        else if (run->io.port == SERIAL && *data != '\r' && at < sizeof text - 1)
            text[at++] = (char)*data;
    }
    return over;
}

void run_linux(void)
{
    memory = shared(-1, SIZE);
    unsigned long entry = place_kernel();
    unsigned long initrd = load("/guest", INITRD);
    put(PARAMETERS + LOADER, 0xff, 1);
    put(PARAMETERS + RAMDISK, INITRD, 4);
    put(PARAMETERS + RAMDISK_SIZE, initrd, 4);
    command_line();
    memory_map();
    page_tables();
    struct machine machine = new_machine(memory, SIZE);
    ask("tss", machine.vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000);
    ask("irqchip", machine.vm, KVM_CREATE_IRQCHIP, 0);
    struct kvm_pit_config pit = {0};
    ask("pit", machine.vm, KVM_CREATE_PIT2, &pit);
    struct kvm_run *run;
    long cpu = new_cpu(&machine, &run), result;
    enter_at(cpu, entry);
    handle(SIGALRM, on_alarm, 0);
    bool over = false;
    do {
        result = CALL(ioctl, cpu, KVM_RUN, 0);
        if (result < 0)
            break;
        if (run->exit_reason == KVM_EXIT_IO)
            over = port(run);
        else if (run->exit_reason == KVM_EXIT_MMIO)
            *(uint64_t *)run->mmio.data = ~0ull; /* there is nothing */
        else
            break;
    } while (!over && !late);
    begin("exit", kind), number("reason", run->exit_reason);
    number("value", run->exit_reason == KVM_EXIT_EXCEPTION ? run->ex.exception : 0);
    number("over", over), number("late", late), number("returned", (uint64_t)result), end();
}

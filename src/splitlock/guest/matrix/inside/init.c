/*
 * init: the guest's first process. Tries each kind of split lock that splitlock=KIND,... on the kernel's command line
 * names, and writes what came of it into the kernel's log: so it comes whole, and in order with the kernel's own lines.
 * It stops at the first kind that the kernel does not survive unharmed. ../log.py reads it.
 * No library; compiled for 64 and for 32 bits (the latter for the kind user32 alone). */
#include <asm/sigcontext.h>
#include <asm/siginfo.h>

#include "syscalls.h"

enum { REPEATS = 15, ROUNDS = 7, TAINT_DIE = 1 << 7, MS = 1000000, ALIGNMENT_CHECK = 1 << 18, MARK_PORT = 0x8902 };
#define MODULE "/splitlock_matrix.ko"
#define BLIND "blind_"
#define VIRTUAL "kvm_"

/* Three bytes before a line's end, as the kernel's own self test has it: bit 31 is in the next line. */
static char lines[128] __attribute__((aligned(64)));
#define OPERAND (lines + 61)
#define EXECUTED (lines[64] >> 7 & 1)

static const char *kind;
extern const char split_at[], split_after[];

__attribute__((noinline)) static void split(unsigned long flags)
{
    __asm__ volatile("pushf\n or %1, (" SP ")\n popf\n"
                     ".global split_at, split_after\n"
                     "split_at: lock btsl $31, (%0)\n"
                     "split_after: pushf\n andl $~0x40000, (" SP ")\n popf"
                     : : "r"(OPERAND), "r"(flags) : "memory", "cc");
}

struct times { int64_t began, ended; };

static struct times attempt(unsigned long flags)
{
    struct times times;
    lines[64] = 0;
    times.began = now();
    split(flags);
    times.ended = now();
    begin("took", kind), number("ns", (uint64_t)(times.ended - times.began)), number("executed", EXECUTED), end();
    return times;
}

struct context {
    unsigned long flags;
    struct context *link;
    stack_t stack;
    struct sigcontext machine;
};

/* The default action is in place again: after a fault the instruction is tried once more, and the kernel says and does
 * what it does to a program that is not prepared; after a trap the program goes on. */
static void on_sigbus(int signal, siginfo_t *info, struct context *context)
{
#ifdef __x86_64__
    uintptr_t ip = context->machine.rip;
#else
    uintptr_t ip = context->machine.eip;
#endif
    begin("signal", kind), number("number", (uint64_t)signal), number("code", (uint64_t)info->si_code);
    number("address", (uintptr_t)info->si_addr), number("executed", EXECUTED);
    add(" place="), add(ip == (uintptr_t)split_at ? "at" : ip == (uintptr_t)split_after ? "after" : "elsewhere"), end();
}

static void on_other(void)
{
    attempt(0);
}

/* Two processes, each on a processor of its own, begin at the same moment; how far apart do they end? Told where neither
 * had ended before the other began, until that was so in ROUNDS of at most MOST rounds: a busy host lets one wait. */
enum { MOST = 4 * ROUNDS };
struct meeting { int come[2 * MOST], met; struct times times[2]; };

static void meet(struct meeting *meeting, int number)
{
    int64_t give_up = now() + 4000ll * MS;
    __atomic_fetch_add(&meeting->come[number], 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&meeting->come[number], __ATOMIC_SEQ_CST) < 2)
        if (now() > give_up) /* the other has been killed */
            CALL(exit_group, 2);
}

static void run_on(unsigned number)
{
    unsigned long processors = 1ul << number;
    CALL(sched_setaffinity, 0, sizeof processors, &processors);
}

static void together(void)
{
    struct meeting *meeting = (void *)CALL(mmap, 0, 4096, 3 /* read, write */, 0x21 /* shared, anonymous */, -1);
    bool second = CALL(fork, 0) == 0;
    run_on(second);
    for (int round = 0; round < MOST; round++) {
        pause_for(50 * MS);
        meet(meeting, 2 * round);
        if (meeting->met == ROUNDS) /* counted before the first came here */
            break;
        meeting->times[second] = attempt(0);
        meet(meeting, 2 * round + 1);
        struct times *a = meeting->times, *b = a + 1;
        if (!second && a->began < b->ended && b->began < a->ended) {
            int64_t gap = a->ended - b->ended;
            begin("apart", kind), number("ns", (uint64_t)(gap < 0 ? -gap : gap)), end();
            meeting->met++;
        }
    }
    if (!second)
        CALL(wait4, -1, 0, 0, 0);
}

/* Where two at once have left detection off on one of the processors, the kernel says nothing there. */
static void on_each(void)
{
    pause_for(300 * MS); /* on a busy host it may merely be late */
    for (unsigned number = 0; number < 2; number++) {
        if (CALL(fork, 0) == 0) {
            run_on(number);
            attempt(0);
            CALL(exit_group, 0);
        }
        CALL(wait4, -1, 0, 0, 0);
    }
}

static void load(void)
{
    char parameter[32] = "kind=";
    for (size_t i = 0; i <= length(kind); i++)
        parameter[5 + i] = kind[i];
    long error = CALL(finit_module, CALL(open, MODULE, 0), parameter, 0);
    begin("loaded", kind), number("errno", (uint64_t)-error), end();
}

/* A hypervisor, inside/blind.c: `blind_WAY` or `blind_WAY_idt`, as its parameters. */
static void load_blind(void)
{
    char parameters[64];
    size_t at = 0;
    const char *way = kind + sizeof BLIND - 1;
    for (const char *text = "way="; *text;)
        parameters[at++] = *text++;
    while (*way && *way != '_')
        parameters[at++] = *way++;
    for (const char *text = *way ? " mark=35074 idt=1" : " mark=35074 idt=0"; *text;)
        parameters[at++] = *text++;
    parameters[at] = 0;
    long error = CALL(finit_module, CALL(open, "/blind.ko", 0), parameters, 0);
    begin("loaded", kind), number("errno", (uint64_t)-error), end();
}

/* What a child does: one kind. */
static void try(void)
{
    CALL(prctl, 15 /* PR_SET_NAME */, kind);
    if (same(kind, BLIND, sizeof BLIND - 1)) {
        load_blind();
        CALL(exit_group, 0);
    }
    if (same(kind, VIRTUAL, sizeof VIRTUAL - 1)) {
        const char *words[] = {"/vmm", kind, NULL};
        long error = CALL(execve, words[0], words, words + 2);
        begin("unavailable", kind), number("errno", (uint64_t)-error), end();
        CALL(exit_group, 0);
    }
    handle(SIGBUS, on_sigbus, SA_RESETHAND);
    if (same(kind, "user", 5) || (same(kind, "user32", 7) && sizeof(long) == 4)) {
        attempt(0);
    } else if (same(kind, "user32", 7)) {
        const char *words[] = {"/init32", kind, NULL};
        long error = CALL(execve, words[0], words, words + 2);
        begin("unavailable", kind), number("errno", (uint64_t)-error), end();
    } else if (same(kind, "signal", 7)) {
        handle(SIGUSR1, on_other, 0);
        CALL(kill, CALL(getpid, 0), SIGUSR1);
    } else if (same(kind, "ac", 3)) {
        attempt(ALIGNMENT_CHECK);
    } else if (same(kind, "repeat", 7)) {
        for (int i = 0; i < REPEATS; i++) {
            pause_for(50 * MS);
            attempt(0);
        }
    } else if (same(kind, "together", 9)) {
        together();
    } else if (same(kind, "after", 6)) {
        on_each();
    } else {
        load();
    }
    CALL(exit_group, 0);
}

/* What processor and kernel say of themselves. */
static void introduce(void)
{
    static char text[8192], flag[] = " split_lock_detect", bus[] = " bus_lock_detect";
    size_t n = read_file("/proc/cpuinfo", text, sizeof text);
    bool found[2] = {false, false};
    for (size_t i = 0; i < n; i++) {
        found[0] |= same(text + i, flag, sizeof flag - 1);
        found[1] |= same(text + i, bus, sizeof bus - 1);
    }
    begin("ready", NULL), number("split_lock_detect", found[0]), number("bus_lock_detect", found[1]);
    if (read_file("/proc/sys/kernel/split_lock_mitigate", text, sizeof text))
        number("split_lock_mitigate", (uint64_t)(text[0] - '0'));
    end();
}

/* KVM's modules, those that this kernel has as modules, in their order. Since 6.12 it turns VMX on as it is loaded, and
 * another hypervisor finds it on: it leaves before blind.ko comes. */
static void load_kvm(void)
{
    static const char *const modules[] = {"/irqbypass.ko", "/kvm.ko", "/kvm-intel.ko"};
    for (unsigned i = 0; i < sizeof modules / sizeof *modules; i++) {
        long file = CALL(open, modules[i], 0);
        if (file >= 0) {
            long error = CALL(finit_module, file, "", 0);
            if (error)
                begin("refused", modules[i] + 1), number("errno", (uint64_t)-error), end();
        }
    }
}

/* Where the emulator asks (bochs/instrument/instrument.h): splitlock notes how far the processor's log has come. Only as
 * long as blind.ko has not run, which leaves a TSS without the bitmap of ports; it says so itself. */
static void mark(void)
{
    CALL(ioperm, MARK_PORT, 1, 1);
    __asm__ volatile("outb %%al, %%dx" : : "a"(0), "d"(MARK_PORT));
}

static bool dead(void)
{
    static char text[32];
    unsigned long taint = 0;
    read_file("/proc/sys/kernel/tainted", text, sizeof text);
    for (const char *at = text; *at >= '0' && *at <= '9'; at++)
        taint = taint * 10 + (unsigned long)(*at - '0');
    return taint & TAINT_DIE;
}

static void one_after_the_other(char *kinds)
{
    bool over = false, kvm = false;
    while (*kinds && !over) {
        char *next = kinds;
        while (*next && *next != ',')
            next++;
        bool last = !*next;
        *next = 0;
        kind = kinds;
        pause_for(50 * MS); /* detection is on again, which takes the kernel 2 jiffies after a split lock */
        bool blind = same(kind, BLIND, sizeof BLIND - 1);
        bool virtual = same(kind, VIRTUAL, sizeof VIRTUAL - 1);
        if (virtual && !kvm)
            load_kvm();
        else if (blind && kvm)
            CALL(delete_module, "kvm_intel", 0);
        kvm = virtual;
        if (virtual)
            mark();
        begin("begin", kind), end();
        int status = 0;
        long child = CALL(fork, 0);
        if (child == 0)
            try();
        CALL(wait4, child, &status, 0, 0);
        if (blind)
            CALL(delete_module, "blind", 0);
        over = dead();
        begin("end", kind), number("status", (unsigned)status >> 8 & 0xff), number("killed", (unsigned)status & 0x7f);
        number("oops", over), end();
        kinds = last ? next : next + 1;
    }
}

__attribute__((used)) static void start(char **stack)
{
    long words = *(long *)stack;
    char **arguments = stack + 1, **environment = arguments + words + 1;
    if (CALL(getpid, 0) != 1) {
        kind = arguments[1];
        try();
    }
    CALL(mount, "proc", "/proc", "proc", 0, 0);
    introduce();
    for (; *environment; environment++)
        if (same(*environment, "splitlock=", 10))
            one_after_the_other(*environment + 10);
    begin("done", NULL), end();
    CALL(reboot, 0xfee1dead, 672274793, 0x4321fedc /* power off */);
    for (;;)
        pause_for(999 * MS);
}

#ifdef __x86_64__
__asm__(".global _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call start");
#else
__asm__(".global _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call start");
#endif

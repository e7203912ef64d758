/*
 * signals: signal handlers must see the program as it is, not as it was patched.
 *
 * 1. For a second and a hundred ticks, aligned locked instructions loop under two 1 kHz timers (SIGALRM, SIGPROF). Each handler checks that
 *    the interrupted rip lies in an executable segment of the program or a library it started with, and at the end
 *    each instruction must have been executed exactly as often as the loop went round.
 * 2. `lock inc dword ptr [rax]` on an unmapped page: the SIGSEGV handler sees its address, maps the page, returns.
 * 3. The same for `mov eax, [rbx]` right after a locked instruction, which must have been executed exactly once.
 * 4. siglongjmp out of such a handler.
 *
 * Expected: no split lock. Prints `ok`; exit status 0, or 1 with what was wrong.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static struct { uint64_t start, end; } code[64];
static unsigned code_count;
static volatile sig_atomic_t ticks, done;
static struct timespec deadline;

static _Noreturn void fail(const char *what, uint64_t got, uint64_t want)
{
    char text[200];
    int length = snprintf(text, sizeof text, "wrong: %s: %#lx, expected %#lx\n", what, got, want);
    if (write(STDOUT_FILENO, text, length) != length)
        _exit(2);
    _exit(1);
}

static uint64_t rip_of(void *context)
{
    return ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
}

/* The loader's own list, so that it holds whatever file the pages of a segment come from. */
static int note_code(struct dl_phdr_info *image, size_t size, void *unused)
{
    (void)size, (void)unused;
    for (int i = 0; i < image->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &image->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X) || code_count == 64)
            continue;
        code[code_count].start = image->dlpi_addr + segment->p_vaddr;
        code[code_count].end = code[code_count].start + segment->p_memsz;
        code_count++;
    }
    return 0;
}

static void on_tick(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    uint64_t rip = rip_of(context);
    bool known = false;
    for (unsigned i = 0; i < code_count; i++)
        known |= code[i].start <= rip && rip < code[i].end;
    if (!known)
        fail("a signal interrupted unknown code", rip, code[0].start);

    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ticks++;
    bool is_over = now.tv_sec > deadline.tv_sec || (now.tv_sec == deadline.tv_sec && now.tv_nsec >= deadline.tv_nsec);
    done = is_over && (ticks >= 100 || now.tv_sec > deadline.tv_sec + 20); /* a busy machine's come when they can */
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(number, &action, NULL);
}

static void test_timers(void)
{
    struct itimerval every_ms = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    int32_t rounds = 0, exchanged = 0, compared = 0;
    dl_iterate_phdr(note_code, NULL);
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec++;
    handle(SIGALRM, on_tick);
    handle(SIGPROF, on_tick);
    setitimer(ITIMER_REAL, &every_ms, NULL);
    setitimer(ITIMER_PROF, &every_ms, NULL);
    for (*ALIGNED = 0; !done; rounds++) {
        locked_xadd(ALIGNED, 1);
        if (locked_xchg(&exchanged, rounds + 1) != rounds)
            fail("xchg was executed twice or not at all", exchanged, rounds);
        int32_t old = rounds;
        __asm__ volatile("lock cmpxchgl %2, %0" : "+m"(compared), "+a"(old) : "r"(rounds + 1) : "cc");
        if (old != rounds)
            fail("cmpxchg was executed twice or not at all", old, rounds);
    }
    setitimer(ITIMER_REAL, &never, NULL);
    setitimer(ITIMER_PROF, &never, NULL);
    if (*ALIGNED != rounds)
        fail("xadd was executed twice or not at all", *ALIGNED, rounds);
    if (ticks < 100)
        fail("too few ticks", ticks, 100);
}

extern char first_fault[], second_fault[];
static char *page;
static volatile uint64_t expected_rip;
static volatile sig_atomic_t faults;
static sigjmp_buf escape;

static void check_fault(siginfo_t *info, void *context)
{
    faults++;
    if (rip_of(context) != expected_rip)
        fail("rip in the SIGSEGV handler", rip_of(context), expected_rip);
    if (info->si_addr != page)
        fail("si_addr", (uint64_t)info->si_addr, (uint64_t)page);
}

static void map_page(void)
{
    void *mapped = mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (mapped != page)
        fail("mmap", (uint64_t)mapped, (uint64_t)page);
}

static void on_fault_map(int number, siginfo_t *info, void *context)
{
    (void)number;
    check_fault(info, context);
    map_page();
}

static void on_fault_escape(int number, siginfo_t *info, void *context)
{
    (void)number;
    check_fault(info, context);
    siglongjmp(escape, 1);
}

/* lock inc dword ptr [rax]; mov eax, [rbx]: a short locked instruction and its successor */
__attribute__((noinline)) static int32_t inc_then_load(int32_t *operand, int32_t *other)
{
    int32_t value;
    __asm__ volatile(
        ".global first_fault\n first_fault: lock incl (%%rax)\n"
        ".global second_fault\n second_fault: movl (%%rbx), %%eax\n"
        : "=a"(value) : "a"(operand), "b"(other) : "memory", "cc");
    return value;
}

static void test_faults(void)
{
    int32_t there = 5;
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, 4096);

    handle(SIGSEGV, on_fault_map);
    expected_rip = (uint64_t)first_fault;
    if (inc_then_load((int32_t *)page, &there) != 5 || *(int32_t *)page != 1 || faults != 1)
        fail("the locked instruction that faulted: its result", *(int32_t *)page, 1);

    munmap(page, 4096);
    expected_rip = (uint64_t)second_fault;
    if (inc_then_load(&there, (int32_t *)page) != 0 || there != 6 || faults != 2)
        fail("the locked instruction before one that faulted: its result", there, 6);

    handle(SIGSEGV, on_fault_escape);
    for (int round = 0; round < 4; round++) {
        munmap(page, 4096);
        bool first = round % 2 == 0;
        expected_rip = (uint64_t)(first ? first_fault : second_fault);
        there = 7;
        if (sigsetjmp(escape, 1) == 0) {
            inc_then_load(first ? (int32_t *)page : &there, first ? &there : (int32_t *)page);
            fail("no fault", 0, 1);
        }
        if (there != (first ? 7 : 8))
            fail("the counter after siglongjmp", there, first ? 7 : 8);
    }
    if (faults != 6)
        fail("faults", faults, 6);
}

int main(void)
{
    test_timers();
    test_faults();
    puts("ok");
    return 0;
}

/*
 * handled KIND FLAGS [MILLISECONDS]: signal handlers under a load of locked instructions, none of them a split lock.
 *
 * FLAGS, of sigaction(2): letters r SA_RESTART, n SA_NODEFER, s SA_ONSTACK, h SA_RESETHAND (set anew by the handler),
 * o (values must come in their order), l (no look at addresses: the queue of signals may be full).
 * KIND: timer (4 kHz and 1 kHz timers), queued (values from another process), nested (a handler interrupted by
 * others), jump (siglongjmp out of every fourth), exec (failing executions meanwhile), fork (children meanwhile),
 * raised (by itself, no timer: SA_RESETHAND has a window, in the kernel, in which another signal kills).
 * Every handler checks: rip, and all of backtrace(), in an image's code. Prints ok, or what was wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { STACK = 1 << 20, VALUES = 2000, LONG = 20 };
static struct { uint64_t start, end; } code[64];
static unsigned code_count;
static volatile long ticks, depth, deepest, received, jumps;
static volatile long total;
static const char *kind, *flags;
static sigjmp_buf again;
static volatile bool may_jump;

static void fail(const char *what, uint64_t got, uint64_t want)
{
    char text[200];
    int size = snprintf(text, sizeof text, "wrong: %s: %#lx, not %#lx\n", what, got, want);
    _exit(write(1, text, (size_t)size) == size ? 1 : 3);
}

static int note_code(struct dl_phdr_info *image, size_t size, void *unused)
{
    (void)size, (void)unused;
    for (int i = 0; i < image->dlpi_phnum; i++)
        if (image->dlpi_phdr[i].p_type == PT_LOAD && image->dlpi_phdr[i].p_flags & PF_X && code_count < 64) {
            code[code_count].start = image->dlpi_addr + image->dlpi_phdr[i].p_vaddr;
            code[code_count].end = code[code_count].start + image->dlpi_phdr[i].p_memsz;
            code_count++;
        }
    return 0;
}

static bool is_code(uint64_t address)
{
    for (unsigned i = 0; i < code_count; i++)
        if (code[i].start <= address && address < code[i].end)
            return true;
    return false;
}

static void check(int number, siginfo_t *info, ucontext_t *context)
{
    void *frames[64];
    uint64_t rip = (uint64_t)context->uc_mcontext.gregs[REG_RIP], here = (uint64_t)&rip;
    sigset_t mask;
    if (!is_code(rip) && !strchr(flags, 'l'))
        fail("rip", rip, code[0].start);
    if (info->si_signo != number)
        fail("si_signo", (uint64_t)info->si_signo, (uint64_t)number);
    int count = backtrace(frames, 64);
    bool through = false;
    for (int i = 0; i < count; i++) {
        if (!is_code((uint64_t)frames[i]) && !strchr(flags, 'l'))
            fail("a frame", (uint64_t)frames[i], (uint64_t)i);
        through |= (uint64_t)frames[i] == rip;
    }
    if (!through && !strchr(flags, 'l'))
        fail("the unwinder does not come to rip", rip, (uint64_t)count);
    stack_t stack;
    sigaltstack(NULL, &stack);
    if (strchr(flags, 's') && !(stack.ss_flags & SS_ONSTACK && here - (uint64_t)stack.ss_sp < stack.ss_size))
        fail("not on the stack for signals", here, (uint64_t)stack.ss_sp);
    sigprocmask(SIG_BLOCK, NULL, &mask);
    if (sigismember(&mask, number) != !strchr(flags, 'n') || !sigismember(&mask, SIGUSR2))
        fail("mask", (uint64_t)sigismember(&mask, number), 2);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    action.sa_flags |= (strchr(flags, 'r') ? SA_RESTART : 0) | (strchr(flags, 'n') ? SA_NODEFER : 0);
    action.sa_flags |= (strchr(flags, 's') ? SA_ONSTACK : 0) | (strchr(flags, 'h') ? (int)SA_RESETHAND : 0);
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(number, &action, NULL);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    int code_before = errno;
    check(number, info, context);
    if (strchr(flags, 'h')) {
        struct sigaction now;
        sigaction(number, NULL, &now);
        if (now.sa_handler != SIG_DFL)
            fail("SA_RESETHAND", (uint64_t)now.sa_handler, 0);
        handle(number, on_signal);
    }
    ticks++;
    depth++;
    deepest = depth > deepest ? depth : deepest;
    if (!strcmp(kind, "nested") && depth < 4 && (depth > 1 || ticks % 16 == 0)) /* SIGPROF within SIGALRM within ... */
        raise(number == SIGALRM ? SIGPROF : SIGALRM);
    depth--;
    if (!strcmp(kind, "jump") && may_jump && ticks % 4 == 0) {
        jumps++;
        siglongjmp(again, 1);
    }
    errno = code_before;
}

static void on_value(int number, siginfo_t *info, void *context)
{
    check(number, info, context);
    if (info->si_code != SI_QUEUE || info->si_pid != getppid() || info->si_uid != getuid())
        fail("si_code, si_pid, si_uid", (uint64_t)info->si_code, (uint64_t)info->si_pid);
    total += info->si_value.sival_int;
    if (strchr(flags, 'o') && info->si_value.sival_int != received)
        fail("values out of order", (uint64_t)info->si_value.sival_int, (uint64_t)received);
    received++;
    ticks++;
    if (strchr(flags, 'h'))
        handle(number, on_value);
}

/* All widths and kinds of locked instructions, by pointers that the compiler cannot know; every second round misaligned within a
 * line, so that more of the agent's code is executed. */
struct counters { uint64_t u64; uint32_t u32; uint16_t u16; uint8_t u8, unused; } __attribute__((packed));
__attribute__((aligned(64))) static char storage[2][64];
static struct counters *volatile places[2] = {(struct counters *)storage[0], (struct counters *)(storage[1] + 5)};
__attribute__((aligned(16))) static uint64_t pair[2];
static uint64_t *volatile where = pair;

__attribute__((noinline)) static void work(uint64_t round, struct counters *at, uint64_t *both)
{
    uint64_t old = round, low = round, high = ~round;
    uint32_t other = (uint32_t)round + 1;
    __asm__ volatile("lock incq (%0)\n lock addl $1, 8(%0)\n lock incw 12(%0)\n lock addb $1, 14(%0)\n" : : "r"(at) : "cc", "memory");
    __asm__ volatile("mov $1, %%eax\n lock xaddl %%eax, 8(%0)\n lock decl 8(%0)\n lock negl 8(%0)\n lock notl 8(%0)\n lock incl 8(%0)\n"
                     : : "r"(at) : "rax", "cc", "memory"); /* -(-x) */
    __asm__ volatile("lock btcw $15, 12(%0)\n lock btcw $15, 12(%0)\n lock xorw $0x70, 12(%0)\n lock xorw $0x70, 12(%0)" : : "r"(at) : "cc", "memory");
    __asm__ volatile("xchgl %0, 8(%1)\n xchgl %0, 8(%1)" : "+r"(other) : "r"(at) : "memory");
    if (other != (uint32_t)round + 1)
        fail("xchg", other, round + 1);
    __asm__ volatile("lock cmpxchg16b (%2)" : "+a"(low), "+d"(high) : "D"(both), "b"(round + 1), "c"(~(round + 1)) : "cc", "memory");
    if (low != round || high != ~round)
        fail("cmpxchg16b", low, round);
    __asm__ volatile("lock cmpxchgq %1, (%2)\n" : "+a"(old) : "r"(old), "r"(at) : "cc", "memory");
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void timers(bool on)
{
    int period = !on ? 0 : strcmp(kind, "fork") ? 250 : 3000; /* microseconds; a fork begins anew when a signal comes */
    struct itimerval quick = {{0, period}, {0, period}}, slow = {{0, 4 * period}, {0, 4 * period}};
    setitimer(ITIMER_REAL, &quick, NULL);
    setitimer(ITIMER_PROF, &slow, NULL);
}

static void meanwhile(uint64_t round)
{
    if (!strcmp(kind, "raised"))
        raise(round % 2 ? SIGALRM : SIGPROF);
    if (!strcmp(kind, "exec") && round % 8 == 0) {
        char *const none[] = {NULL}, *const some[] = {"x", NULL};
        if (execve(round % 16 ? "/etc/passwd" : "/bin/true", round % 16 ? some : (char **)16, none) != -1 || (errno != EACCES && errno != EFAULT))
            fail("errno", (uint64_t)errno, EACCES);
    } else if (!strcmp(kind, "fork") && round % 512 == 0) {
        int status;
        pid_t child = round % 1024 ? fork() : vfork();
        if (!child)
            _exit(round & 63);
        while (waitpid(child, &status, 0) < 0)
            if (errno != EINTR)
                fail("waitpid", (uint64_t)errno, EINTR);
        if (status)
            fail("child", (uint64_t)status, 0);
    }
}

static void send_values(pid_t to)
{
    for (int i = 0; i < VALUES; i++) {
        while (sigqueue(to, SIGRTMIN, (union sigval){.sival_int = i}) && errno == EAGAIN)
            usleep(50);
        if (strchr(flags, 'o') && i % 8 == 0)
            usleep(30); /* the other works a little between */
    }
}

static bool are_few(void)
{
    return ticks < 50 || (!strcmp(kind, "nested") && deepest < 2) || (!strcmp(kind, "jump") && jumps < 10);
}

int main(int argc, char **argv)
{
    kind = argv[1], flags = argv[2];
    volatile double until = (argc > 3 ? atoi(argv[3]) : 300) / 1000.0;
    stack_t stack = {.ss_sp = malloc(STACK), .ss_size = STACK};
    void *frames[4];
    volatile uint64_t round = 0;
    backtrace(frames, 4); /* it loads a library */
    dl_iterate_phdr(note_code, NULL);
    sigaltstack(&stack, NULL);
    pair[1] = ~pair[0];
    bool queued = !strcmp(kind, "queued");
    pid_t child = 0;
    if (queued) {
        sigset_t set;
        sigemptyset(&set), sigaddset(&set, SIGRTMIN), sigprocmask(SIG_BLOCK, &set, NULL);
        handle(SIGRTMIN, on_value);
        if ((child = fork())) { /* the child does the work, its parent sends */
            int status;
            send_values(child);
            while (waitpid(child, &status, 0) < 0)
                ;
            return WEXITSTATUS(status);
        }
        sigprocmask(SIG_UNBLOCK, &set, NULL);
    } else {
        handle(SIGALRM, on_signal);
        handle(SIGPROF, on_signal);
        timers(strcmp(kind, "raised"));
    }
    until += seconds();
    while (queued ? received < VALUES : seconds() < until || (are_few() && seconds() < until + LONG)) { /* on a busy machine */
        if (sigsetjmp(again, 1)) { /* work may have been left in the middle */
            memset(storage, 0, sizeof storage);
            round = 0, pair[0] = 0, pair[1] = ~0ul;
        }
        may_jump = true;
        for (int i = 0; i < 50; i++) {
            for (int k = 0; k < 2; k++) {
                struct counters *at = places[k];
                work(round, at, where);
                pair[0] = round, pair[1] = ~round;
                if (at->u64 != round + 1 || at->u32 != (uint32_t)round + 1 || at->u16 != (uint16_t)(round + 1) || at->u8 != (uint8_t)(round + 1))
                    fail("a count", at->u64, round + 1);
            }
            round++;
            pair[0] = round, pair[1] = ~round;
            meanwhile(round);
        }
        may_jump = false;
    }
    timers(false);
    if (queued && total != (long)VALUES * (VALUES - 1) / 2)
        fail("sum of values", (uint64_t)total, 0);
    if (are_few())
        fail("too few signals", (uint64_t)ticks, (uint64_t)deepest);
    puts("ok");
    return 0;
}

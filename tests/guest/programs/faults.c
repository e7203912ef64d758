/*
 * faults: what does a program see of a split lock over two pages? A page fault comes before detection, and pages are copied.
 *
 * Prints a line a case: `signal N code M`, or `executed`; with `, kept` where memory is as it was. In mode warn it is to stay
 * on one CPU, since detection is off for two jiffies where something split.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, VALUE = 0x01ffffff };
static sigjmp_buf back;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    siglongjmp(back, number << 8 | info->si_code);
}

static void flags(unsigned long set, unsigned long clear)
{
    __asm__ volatile("sub $128, %%rsp; pushf; or %0, (%%rsp); and %1, (%%rsp); popf; add $128, %%rsp" : : "r"(set), "r"(~clear) : "memory", "cc");
}

static void try(const char *name, char *operand, int size)
{
    int came = sigsetjmp(back, 1);
    if (!came) {
        if (size == 16)
            __asm__ volatile("lock cmpxchg16b (%0)" : : "r"(operand) : "memory", "cc", "rax", "rdx");
        else
            __asm__ volatile("lock incl (%0)" : : "r"(operand) : "memory", "cc");
    }
    flags(0, 1 << 18);
    printf(came ? "case %s: signal %d code %d\n" : "case %s: executed\n", name, came >> 8, came & 255);
    fflush(stdout);
}

static char *pages(int first, int second)
{
    char *found = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(found, 0, 2 * PAGE);
    mprotect(found, PAGE, first);
    mprotect(found + PAGE, PAGE, second);
    return found + PAGE - 2;
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    const int both = PROT_READ | PROT_WRITE;

    char *operand = pages(both, both);
    munmap(operand + 2, PAGE);
    try("second page unmapped", operand, 4);
    try("second page read-only", pages(both, PROT_READ), 4);
    try("first page read-only", pages(PROT_READ, both), 4);
    try("cmpxchg16b", pages(both, both), 16);

    operand = pages(both, both);
    if (!fork()) {
        try("copied", operand, 4);
        printf("child has %d\n", *(int32_t *)operand);
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    printf("parent has %d\n", *(int32_t *)operand);
    fflush(stdout);

    operand = pages(both, both);
    usleep(200000);             /* until detection is on again */
    flags(1 << 18, 0);
    try("EFLAGS.AC", operand, 4);
    return 0;
}

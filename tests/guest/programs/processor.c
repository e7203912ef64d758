/*
 * processor: detection as CPUID and MSRs have it, CPU by CPU, through /dev/cpu/N/msr; then turned off on CPU 1 alone.
 *
 * Prints for each CPU: CPUID.7 EDX[30] and ECX[24], CORE_CAPABILITIES, TEST_CTRL; and what a split lock became, with CPU 1 off.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

static _Alignas(64) char memory[128];
static sigjmp_buf back;
static int msrs[2];

static void on_sigbus(int number)
{
    siglongjmp(back, number);
}

static const char *text(int cpu, int number)
{
    static char texts[2][32];
    static int turn;
    uint64_t value;
    char *found = texts[turn ^= 1];
    if (pread(msrs[cpu], &value, 8, number) != 8)
        return "none";
    snprintf(found, sizeof texts[0], "%#llx", (unsigned long long)value);
    return found;
}

static const char *written(int cpu, int number, uint64_t value)
{
    return pwrite(msrs[cpu], &value, 8, number) == 8 ? "written" : "refused";
}

static void on(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

int main(void)
{
    signal(SIGBUS, on_sigbus);
    for (int cpu = 0; cpu < 2; cpu++) {
        char name[32];
        snprintf(name, sizeof name, "/dev/cpu/%d/msr", cpu);
        msrs[cpu] = open(name, O_RDWR);
        on(cpu);
        unsigned a, b, c, d;
        __cpuid_count(7, 0, a, b, c, d);
        printf("CPU %d: EDX[30] %u ECX[24] %u CORE_CAPABILITIES %s TEST_CTRL %s\n", cpu, d >> 30 & 1, c >> 24 & 1,
               text(cpu, 0xcf), text(cpu, 0x33));
    }
    printf("CORE_CAPABILITIES %s, TEST_CTRL bit 0 %s, off on CPU 1 %s\n", written(0, 0xcf, 0), written(0, 0x33, 1),
           written(1, 0x33, 0));
    for (volatile int cpu = 0; cpu < 2; cpu++) {
        on(cpu);
        if (sigsetjmp(back, 1)) {
            printf("CPU %d: SIGBUS\n", cpu);
        } else {
            __asm__ volatile("lock incl %0" : "+m"(*(int *)(memory + 62)));
            printf("CPU %d: executed\n", cpu);
        }
    }
    return 0;
}

/*
 * mended HOW: SIGSEGV handlers under moved instructions. A locked instruction, or its neighbour in the same run, meets a page
 * that is not there; HOW: map (the handler maps it and returns), skip (it goes on at the next instruction), change (it sets the
 * register that holds the address), jump (siglongjmp), child (all that in a forked child), nest (the handler itself faults so).
 * Flags are not looked at where a locked instruction is about to change all of them.
 * Prints rip's distance from the function's start, si_code, si_addr, the trap's number and error code, then the results.
 */
#define _GNU_SOURCE
#include <execinfo.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { PAGE = 4096, SITES = 6 };
__asm__(
    ".text\n.globl body\n.type body, @function\nbody: .cfi_startproc\n push %rbx\n .cfi_adjust_cfa_offset 8\n"
    "mov $3, %ebx\n mov $5, %eax\n s0: lock incl (%rdi)\n s1: mov (%rsi), %eax\n s2: lock addl $1, (%rdx)\n s3: xchg %ebx, (%rdi)\n"
    "s4: lock cmpxchg %ebx, (%rsi)\n s5: mov %eax, (%rdx)\n s6: pop %rbx\n .cfi_adjust_cfa_offset -8\n ret\n.cfi_endproc\n.size body, . - body\n");
extern int body(int *, int *, int *);
extern char s0[], s1[], s2[], s3[], s4[], s5[], s6[];
static char *const sites[] = {s0, s1, s2, s3, s4, s5, s6};
static const int uses[SITES] = {REG_RDI, REG_RSI, REG_RDX, REG_RDI, REG_RSI, REG_RDX};
static char *page;
static int spare[4], depth;
static const char *how;
static sigjmp_buf out;

static void unmap(void)
{
    mmap(page, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    void *frames[32];
    int site = 0, count = backtrace(frames, 32), through = 0;
    while (site < SITES && (char *)registers[REG_RIP] != sites[site])
        site++;
    for (int i = 0; i < count; i++)
        through |= frames[i] == (void *)registers[REG_RIP];
    printf("%d at %ld, code %d, address %ld, trap %lld, error %lld, flags %#llx, unwound %d\n", number, (long)registers[REG_RIP] - (long)body,
           info->si_code, (long)((char *)info->si_addr - page), registers[REG_TRAPNO], registers[REG_ERR], site == 1 || site == 5 ? registers[REG_EFL] & 0x8d5 : 0, through);
    if (!strcmp(how, "jump"))
        siglongjmp(out, 1);
    if (site == SITES)
        _exit(4);
    if (!strcmp(how, "nest") && !depth++)
        body(spare, (int *)page, spare + 1);
    if (!strcmp(how, "skip"))
        registers[REG_RIP] = (greg_t)sites[site + 1];
    else if (!strcmp(how, "change"))
        registers[uses[site]] = (greg_t)(spare + 2);
    else
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

static void all(void)
{
    for (volatile int bad = 0; bad < 3; bad++) {
        static int values[3], *operands[3];
        for (int i = 0; i < 3; i++)
            values[i] = i + 1, operands[i] = values + i;
        operands[bad] = (int *)(page + 4 * bad);
        depth = 0;
        unmap();
        if (!sigsetjmp(out, 1))
            printf("result %d\n", body(operands[0], operands[1], operands[2]));
        mprotect(page, PAGE, PROT_READ | PROT_WRITE);
        printf("%d %d %d, %d, %d %d %d\n", values[0], values[1], values[2], ((int *)page)[bad], spare[0], spare[1], spare[2]);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    void *frames[2];
    backtrace(frames, 2);
    how = argc > 1 ? argv[1] : "map";
    page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    if (!strcmp(how, "child") && !fork())
        how = "map";
    else if (!strcmp(how, "child"))
        return wait(NULL) < 0;
    all();
    return 0;
}

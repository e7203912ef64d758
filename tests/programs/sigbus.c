/*
 * sigbus [block|ignore|skip]: what a program sees whose split lock is answered with SIGBUS, as the kernel's
 * split_lock_detect=fatal does.
 *
 * Without an argument the handler prints `SIGBUS code=C addr=A rip_is_site=B counter=N` and leaves by siglongjmp, then
 * `survived` is printed. With `skip` it moves rip past the instruction and returns. With `block` or `ignore` the signal
 * is blocked or ignored beforehand, which a forced signal overrides: the program is killed.
 *
 * Expected: 1 split lock; exit status 0. Where nothing traps, `no trap` is printed instead of the two lines.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

extern char site[], after_site[];
static sigjmp_buf escape;
static bool skip;
static volatile sig_atomic_t trapped;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    (void)number;
    greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    trapped = 1;
    printf("SIGBUS code=%d addr=%p rip_is_site=%d counter=%d\n", info->si_code, info->si_addr, *rip == (greg_t)site,
           *CROSSING);
    fflush(stdout);
    if (!skip)
        siglongjmp(escape, 1);
    *rip = (greg_t)after_site;
}

__attribute__((noinline)) static void split(counter *operand)
{
    __asm__ volatile(
        ".global site\n site: lock incl (%0)\n"
        ".global after_site\n after_site:\n"
        : : "D"(operand) : "memory", "cc");
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    skip = strcmp(mode, "skip") == 0;
    if (strcmp(mode, "ignore") == 0)
        action = (struct sigaction){.sa_handler = SIG_IGN};
    sigaction(SIGBUS, &action, NULL);
    if (strcmp(mode, "block") == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGBUS);
        sigprocmask(SIG_BLOCK, &set, NULL);
    }

    if (sigsetjmp(escape, 1) == 0)
        split(CROSSING);
    puts(trapped ? "survived" : "no trap");
    return 0;
}

/*
 * doomed HOW: a child is about to take a split lock, and is killed for it (fatal). HOW: `default`, `ignored`, `blocked` (there is a
 * handler, which is never called), `again` (a handler was there, and is taken away), each set in the child; `inherited` (the parent
 * ignores), `handled` (then it lives). The parent traces the child, once it is there.
 * Prints how the child ended, and whether its last SIGBUS came at the locked instruction; exit status 0.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

__asm__(
    ".text\n.globl split\n.type split, @function\nsplit: .cfi_startproc\n mov $1, %eax\n site: lock xadd %eax, (%rdi)\n"
    "after: ret\n.cfi_endproc\n.size split, . - split\n");
extern int split(void *);
extern char site[], after[];
static char line[128] __attribute__((aligned(64)));

static void step_over(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (greg_t)after;
}

static void set(const char *how)
{
    struct sigaction action = {.sa_sigaction = step_over, .sa_flags = SA_SIGINFO};
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    if (strcmp(how, "default") && strcmp(how, "inherited"))
        sigaction(SIGBUS, &action, NULL);
    if (!strcmp(how, "ignored"))
        signal(SIGBUS, SIG_IGN);
    if (!strcmp(how, "again"))
        signal(SIGBUS, SIG_DFL);
    if (!strcmp(how, "blocked"))
        sigprocmask(SIG_BLOCK, &bus, NULL);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "default";
    if (!strcmp(how, "inherited"))
        signal(SIGBUS, SIG_IGN);
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        set(how);
        split(line + 62);
        _exit(line[62]);
    }
    int status;
    long rip = 0;
    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        if (WSTOPSIG(status) == SIGBUS)
            rip = ptrace(PTRACE_PEEKUSER, child, offsetof(struct user_regs_struct, rip), NULL);
        ptrace(PTRACE_CONT, child, NULL, WSTOPSIG(status));
    }
    printf("%s %d, at its instruction: %d\n", WIFSIGNALED(status) ? "killed by" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
           rip == (long)site);
    return 0;
}

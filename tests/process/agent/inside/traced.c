/*
 * traced HOW: a process of ours traces another, as crash handlers and wineserver do. HOW: sibling (attaches to a brother that adds,
 * steps it, writes to its memory, lets go), parent (a handler of SIGSEGV forks a child that attaches to its parent, reads where it is
 * and ends), me (PTRACE_TRACEME, then an execution). Prints what the tracer finds; the tracee's sum must be right.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ADDED = 300000, STEPS = 300 };
static struct shared { long sum, added; volatile int let_go; long *where; } *shared;
static volatile int *volatile nowhere;

static void check(bool good, const char *what)
{
    if (!good) {
        printf("%s: %s\n", what, strerror(errno));
        fflush(stdout);
        _exit(1);
    }
}

static void add(void)
{
    long *volatile where = &shared->sum;
    while (!shared->let_go)
        __atomic_fetch_add(where, 1, __ATOMIC_SEQ_CST), shared->added++;
    for (int i = 0; i < ADDED; i++)
        __atomic_fetch_add(where, 1, __ATOMIC_SEQ_CST), shared->added++;
}

static void trace(pid_t other)
{
    struct user_regs_struct registers;
    int status, steps = 0;
    check(!ptrace(PTRACE_ATTACH, other, 0, 0), "attach");
    check(waitpid(other, &status, 0) == other && WIFSTOPPED(status), "stop");
    for (; steps < STEPS; steps++) {
        check(!ptrace(PTRACE_GETREGS, other, 0, &registers), "registers");
        errno = 0;
        ptrace(PTRACE_PEEKDATA, other, (void *)registers.rip, 0);
        check(!errno, "code");
        check(!ptrace(PTRACE_SINGLESTEP, other, 0, 0), "step");
        check(waitpid(other, &status, 0) == other && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP, "stepped");
    }
    check(!ptrace(PTRACE_POKEDATA, other, &shared->let_go, 1L), "write");
    check(!ptrace(PTRACE_DETACH, other, 0, 0), "detach");
    printf("stepped %d\n", steps);
    fflush(stdout);
}

static void on_crash(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    pid_t parent = getpid(), child = fork();
    int status;
    if (!child) {
        struct user_regs_struct registers;
        check(!ptrace(PTRACE_ATTACH, parent, 0, 0), "attach");
        check(waitpid(parent, &status, __WALL) == parent && WIFSTOPPED(status), "stop");
        check(!ptrace(PTRACE_GETREGS, parent, 0, &registers), "registers");
        check(ptrace(PTRACE_PEEKDATA, parent, (void *)registers.rsp, 0) != -1 || !errno, "stack");
        printf("crash of signal %d\n", number);
        fflush(stdout);
        check(!ptrace(PTRACE_DETACH, parent, 0, 0), "detach");
        _exit(6);
    }
    prctl(PR_SET_PTRACER, child);
    check(waitpid(child, &status, 0) == child, "wait");
    printf("handler %d\n", WEXITSTATUS(status));
    fflush(stdout);
    signal(SIGSEGV, SIG_DFL);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    int status;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!strcmp(how, "parent")) {
        struct sigaction action = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO};
        sigaction(SIGSEGV, &action, NULL);
        __atomic_fetch_add(nowhere, 1, __ATOMIC_SEQ_CST);
        return 2;
    }
    pid_t tracee = fork();
    if (!tracee && !strcmp(how, "me")) {
        check(!ptrace(PTRACE_TRACEME, 0, 0, 0), "traceme");
        execl("/bin/echo", "echo", "traced", NULL);
        _exit(9);
    }
    if (!tracee) {
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
        add();
        _exit(shared->sum != shared->added);
    }
    if (!strcmp(how, "me")) {
        for (int stops = 0; waitpid(tracee, &status, 0) == tracee && WIFSTOPPED(status); stops++) {
            printf("stopped by %d, %d\n", WSTOPSIG(status), stops);
            fflush(stdout);
            ptrace(PTRACE_CONT, tracee, 0, 0);
        }
        return WEXITSTATUS(status);
    }
    usleep(20000);
    pid_t tracer = fork();
    if (!tracer) {
        trace(tracee);
        _exit(0);
    }
    check(waitpid(tracer, &status, 0) == tracer && !status, "tracer");
    shared->let_go = 1;
    check(waitpid(tracee, &status, 0) == tracee, "tracee");
    printf("tracee %#x\n", status);
    return 0;
}

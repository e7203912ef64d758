/*
 * clonevm: a process that shares this one's memory without being one of its threads, clone(CLONE_VM | SIGCHLD).
 *
 * Expected: 3 split locks, 2 in the child and 1 in the parent. Prints `ok`; exit status 0, 1 when wrong.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[64 * 1024] __attribute__((aligned(16)));

static int child_main(void *argument)
{
    locked_inc(argument);
    locked_xadd(argument, 10);
    _exit(3);
}

int main(void)
{
    int status;
    pid_t child = clone(child_main, stack + sizeof stack, CLONE_VM | SIGCHLD, CROSSING);
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("clonevm");
        return 1;
    }
    locked_xadd(CROSSING, 100);
    int good = WIFEXITED(status) && WEXITSTATUS(status) == 3 && *CROSSING == 111;
    puts(good ? "ok" : "wrong");
    return !good;
}

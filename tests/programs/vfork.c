/*
 * vfork: a split lock in a vfork(2) child, which shares the parent's memory, then one in the program it executes
 * (this one, with the argument `child`).
 *
 * Expected: 2 split locks, one in each process. Prints `ok`; exit status 0, 1 when wrong.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        locked_inc(CROSSING);
        return *CROSSING == 1 ? 0 : 1;
    }
    int status;
    pid_t child = vfork();
    if (child == 0) {
        locked_inc(CROSSING);
        execl("/proc/self/exe", argv[0], "child", NULL);
        _exit(127);
    }
    int good = child > 0 && waitpid(child, &status, 0) == child && status == 0 && *CROSSING == 1;
    puts(good ? "ok" : "wrong");
    return !good;
}

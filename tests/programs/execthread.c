/*
 * execthread: execve from a thread that is not the first one. The thread takes over the process id, all others vanish.
 *
 * Expected: 2 split locks, one in that thread and one in the new image (this program, with the argument `child`).
 * Prints `ok`; exit status 0, 1 when wrong.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void *execute(void *name)
{
    locked_inc(CROSSING);
    if (*CROSSING == 1)
        execl("/proc/self/exe", name, "child", NULL);
    _exit(1);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        locked_inc(CROSSING);
        puts(*CROSSING == 1 ? "ok" : "wrong");
        return *CROSSING != 1;
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, execute, argv[0]) != 0)
        return 1;
    pthread_join(thread, NULL);
    return 1;
}

/* `knocks PID`, in a run: a process without our rights, which has the run's memory, asks for a tracer of thread PID ("parent": of
 * ours) as an agent does for its own. Says what becomes of it, and whether that thread was ever traced. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "run.h"

static struct run *find(void)
{
    FILE *file = fopen("/proc/self/maps", "r");
    char line[512];
    while (file && fgets(line, sizeof line, file))
        if (strstr(line, "/SYSV"))
            return (struct run *)strtoul(line, NULL, 16);
    exit(9);
}

static int tracer_of(int thread)
{
    char path[64], line[256];
    int tracer = -1;
    snprintf(path, sizeof path, "/proc/%d/status", thread);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        sscanf(line, "TracerPid: %d", &tracer);
    if (file)
        fclose(file);
    return tracer;
}

int main(int argc, char **argv)
{
    int victim = argc > 1 && strcmp(argv[1], "parent") ? atoi(argv[1]) : getpid(), tracer = 0, status;
    struct run *run = find();
    struct door *door = &run->doors[DOORS - 1];
    pid_t worker = fork();
    if (!worker) {
        if (!getuid() && (setgid(65534) || setuid(65534)))
            _exit(9);
        door->tid = victim;
        door->reason = IS_STATIC;
        strcpy(door->name, "nothing");
        atomic_store(&door->state, KNOCKED);
        atomic_fetch_add(&run->asked, 1);
        syscall(SYS_futex, &run->asked, FUTEX_WAKE, 100, 0, 0, 0);
        for (int i = 0; i < 10000 && door->state < TRACED; i++) {
            uint32_t there = THERE;
            if (atomic_compare_exchange_strong(&door->state, &there, ALLOWED))
                i = 9000; /* a second for it to look */
            usleep(1000);
        }
        uint32_t state = atomic_exchange(&door->state, SHUT);
        _exit(state == TRACED ? 1 : state == UNABLE || state == ALLOWED ? 0 : 2);
    }
    while (!waitpid(worker, &status, WNOHANG)) {
        tracer = tracer_of(victim) ? tracer_of(victim) : tracer;
        usleep(500);
    }
    printf("%d %d\n", WEXITSTATUS(status), tracer);
    return 0;
}

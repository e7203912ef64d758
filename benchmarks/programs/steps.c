/* steps WHAT COUNT: does one thing COUNT times, and prints how many nanoseconds of CPU each took, children
 * included. WHAT: signal, thread, fork, exec and posix_spawn (of true), map (executable memory, and away again),
 * private (kB that are its own). */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static volatile int seen;

static void handle(int number)
{
    seen += number;
}

static void *begin(void *argument)
{
    seen++;
    return argument;
}

static double used(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e9 + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e3;
}

static void step(const char *what)
{
    static char *words[] = {"/bin/true", NULL};
    pthread_t thread;
    pid_t child;
    if (!strcmp(what, "signal")) {
        raise(SIGUSR1);
    } else if (!strcmp(what, "thread")) {
        pthread_create(&thread, NULL, begin, NULL);
        pthread_join(thread, NULL);
    } else if (!strcmp(what, "fork")) {
        if (!(child = fork()))
            _exit(0);
        waitpid(child, NULL, 0);
    } else if (!strcmp(what, "exec")) {
        if (!(child = fork())) {
            execv(words[0], words);
            _exit(9);
        }
        waitpid(child, NULL, 0);
    } else if (!strcmp(what, "map")) {
        munmap(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
    } else if (!strcmp(what, "posix_spawn")) {
        posix_spawn(&child, words[0], NULL, NULL, words, environ);
        waitpid(child, NULL, 0);
    }
}

int main(int argc, char **argv)
{
    long count = argc > 2 ? atol(argv[2]) : 1;
    char line[256];
    if (!strcmp(argv[1], "private")) {
        FILE *file = fopen("/proc/self/smaps_rollup", "r");
        while (fgets(line, sizeof line, file))
            if (!strncmp(line, "Private_Dirty:", 14))
                printf("%ld\n", atol(line + 14));
        return 0;
    }
    signal(SIGUSR1, handle);
    step(argv[1]);
    double before = used(RUSAGE_SELF) + used(RUSAGE_CHILDREN);
    for (long i = 0; i < count; i++)
        step(argv[1]);
    printf("%.0f\n", (used(RUSAGE_SELF) + used(RUSAGE_CHILDREN) - before) / (double)count);
    return 0;
}

/*
 * spawn fork|posix_spawn N PROGRAM: starts the program N times, one after the other, and waits for each. Its own time
 * divided by N is the price of a fork and an exec.
 */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int by_fork = strcmp(argv[1], "fork") == 0;
    long times = atol(argv[2]), good = 0;
    char *arguments[] = {argv[3], NULL};
    for (long i = 0; i < times; i++) {
        pid_t child;
        int status;
        if (by_fork) {
            child = fork();
            if (child == 0) {
                execve(argv[3], arguments, environ);
                _exit(127);
            }
        } else if (posix_spawn(&child, argv[3], NULL, NULL, arguments, environ)) {
            return 1;
        }
        good += child > 0 && waitpid(child, &status, 0) == child && status == 0;
    }
    printf("%ld\n", good);
    return good == times ? 0 : 1;
}

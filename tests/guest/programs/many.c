/*
 * many: who is who? Each of 40 children, one after another, takes its number times 10 split locks at one and the same
 * address, and then starts itself anew under another name (`second`), which takes as many and one more. Then 3 at a time.
 *
 * Prints a line for each: the name, the process's number, how many.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crossing.h"

static void take(const char *name, int count)
{
    prctl(PR_SET_NAME, name);
    for (int i = 0; i < count; i++)
        locked_inc(CROSSING);
    printf("took %s %d %d\n", name, getpid(), count);
    fflush(stdout);
}

static void child(char *self, int number)
{
    char text[16];
    pid_t pid = fork();
    if (pid)
        return;
    snprintf(text, sizeof text, "first%d", number);
    take(text, number * 10);
    snprintf(text, sizeof text, "%d", number);
    execl(self, self, text, NULL);
    _exit(1);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        char name[16];
        snprintf(name, sizeof name, "second%s", argv[1]);
        take(name, atoi(argv[1]) * 10 + 1);
        return 0;
    }
    for (int i = 1; i <= 40; i++) {
        child(argv[0], i);
        wait(NULL);
    }
    for (int i = 41; i <= 61; i += 3) {
        for (int j = 0; j < 3; j++)
            child(argv[0], i + j);
        while (wait(NULL) > 0)
            ;
    }
    return 0;
}

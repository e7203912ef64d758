/* fails WHY PROGRAM OTHER: executes PROGRAM so that the kernel refuses it (busy: it is open for writing; fault: arguments that are
 * nowhere; argument: one that is too long), prints the error, then has two children execute OTHER. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int seen;

static void handle(int number)
{
    seen += number;
}

int main(int argc, char **argv)
{
    char *words[] = {argv[2], NULL, NULL}, **volatile nowhere = (char **)8;
    (void)argc;
    signal(SIGUSR1, handle);
    if (!strcmp(argv[1], "busy")) {
        int file = open(argv[2], O_WRONLY);
        execv(argv[2], words);
        printf("%d\n", errno);
        close(file);
    } else if (!strcmp(argv[1], "fault")) {
        execv(argv[2], nowhere);
        printf("%d\n", errno);
    } else {
        words[1] = malloc(1 << 20);
        memset(words[1], 'x', (1 << 20) - 1);
        words[1][(1 << 20) - 1] = 0;
        execv(argv[2], words);
        printf("%d\n", errno);
        words[1] = NULL;
    }
    raise(SIGUSR1);
    printf("%d\n", seen);
    fflush(stdout);
    words[0] = argv[3];
    for (int i = 0; i < 2; i++) {
        if (!fork()) {
            execv(argv[3], words);
            _exit(9);
        }
        wait(NULL);
    }
    return 0;
}

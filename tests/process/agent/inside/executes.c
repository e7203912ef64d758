/*
 * executes HOW DIRECTORY NAME...: children that execute each, one after the other, and how they ended.
 *
 * HOW: execve (DIRECTORY is gone to, the name as it stands), execveat (by a descriptor of DIRECTORY), spawn (posix_spawn); flagged
 * (execveat with AT_EMPTY_PATH, which a name makes void), empty (a descriptor of the file that reads nothing); crowded (execve, with
 * one descriptor free). Without a name: itself executes DIRECTORY, with an environment whose only line is nowhere.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void execute(const char *how, int directory, char *name)
{
    char *words[] = {name, NULL};
    if (!strcmp(how, "execve")) {
        execve(name, words, environ);
    } else if (!strcmp(how, "execveat")) {
        syscall(SYS_execveat, directory, name, words, environ, 0);
    } else if (!strcmp(how, "flagged")) {
        syscall(SYS_execveat, directory, name, words, environ, AT_EMPTY_PATH);
    } else if (!strcmp(how, "empty")) {
        syscall(SYS_execveat, openat(directory, name, O_PATH | O_CLOEXEC), "", words, environ, AT_EMPTY_PATH);
    } else {
        struct rlimit few = {20, 20};
        int last = -1, next;
        setrlimit(RLIMIT_NOFILE, &few);
        while ((next = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
            last = next;
        close(last);
        execve(name, words, environ);
    }
    _exit(errno);
}

int main(int argc, char **argv)
{
    if (argc == 3) {
        execve(argv[2], (char *[]){argv[2], NULL}, (char *[]){"A=1", (char *)16, NULL});
        return errno;
    }
    int directory = open(argv[2], O_PATH | O_DIRECTORY); /* a script's interpreter opens the script by it */
    if (directory < 0 || chdir(argv[2]))
        return 2;
    for (int i = 3; i < argc; i++) {
        char *words[] = {argv[i], NULL};
        pid_t child = 0;
        int status = 0;
        if (!strcmp(argv[1], "spawn"))
            status = posix_spawn(&child, argv[i], NULL, NULL, words, environ) << 8;
        else if (!(child = fork()))
            execute(argv[1], directory, argv[i]);
        if (!status)
            waitpid(child, &status, 0);
        printf("%s: %s\n", argv[i], WEXITSTATUS(status) == 77 ? "ran" : strerror(WEXITSTATUS(status)));
        fflush(stdout);
    }
    return 0;
}

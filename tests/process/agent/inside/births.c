/*
 * births HOW: clone3(2) with arguments anywhere (bad), or that fails and succeeds (fails: none of them a process, all: three
 * processes). Prints what each call gives.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void try(const char *what, void *arguments, size_t size)
{
    errno = 0;
    long pid = syscall(SYS_clone3, arguments, size);
    if (!pid)
        _exit(3);
    int status = 0, code = errno;
    if (pid > 0)
        waitpid((pid_t)pid, &status, 0);
    printf("%s: %d %s %#x\n", what, pid > 0 ? 1 : (int)pid, strerror(code), status);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct clone_args good = {.exit_signal = SIGCHLD}, *edge = (struct clone_args *)(pages + 2 * 4096 - sizeof good);
    mprotect(pages + 2 * 4096, 4096, PROT_NONE);
    if (argc > 1 && !strcmp(argv[1], "bad")) {
        try("null", NULL, sizeof good);
        try("low", (void *)8, sizeof good);
        try("high", (void *)-8, sizeof good);
        try("not canonical", (void *)(1ul << 60), sizeof good);
        try("no right", pages + 2 * 4096, sizeof good);
        try("half", pages + 2 * 4096 - 4, sizeof good);
        try("cut", pages + 2 * 4096 - 16, sizeof good);
        *edge = good;
        try("edge", edge, sizeof good);
        try("stack", &good, sizeof good);
        try("small", &good, 8);
        return 0;
    }
    for (int i = 0; i < 20; i++) {
        errno = 0;
        printf("%ld ", syscall(SYS_clone, CLONE_FS | CLONE_NEWNS | SIGCHLD, NULL, NULL, NULL, NULL)); /* not both */
        printf("%s\n", strerror(errno));
    }
    fflush(stdout);
    for (int i = 0; i < 3 && argc > 1 && !strcmp(argv[1], "all"); i++) {
        pid_t pid = i == 0 ? fork() : i == 1 ? vfork() : (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
        if (!pid)
            _exit(0);
        waitpid(pid, NULL, 0);
    }
    return 0;
}

/*
 * survivor LIBRARY [ROUNDS]: forks, executes itself and others, opens and closes LIBRARY, starts threads, takes signals; all of it
 * checked. Prints "begun", then "whole" and leaves with 7, or says what went wrong.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 2, ADDED = 2000 };
extern char **environ;
static const char *library;
static int counter;
static volatile int signals;

static void fail(const char *what, int got)
{
    printf("%s: %d\n", what, got);
    fflush(stdout);
    _exit(1);
}

static void on_signal(int number)
{
    signals += number == SIGUSR1;
}

static void *add(void *unused)
{
    for (int i = 0; i < ADDED; i++)
        __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
    return unused;
}

static void run_threads(void)
{
    pthread_t threads[THREADS];
    counter = 0;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, add, NULL))
            fail("pthread_create", i);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    if (counter != THREADS * ADDED)
        fail("counter", counter);
}

static void open_library(void)
{
    int value = 5;
    void *handle = dlopen(library, RTLD_NOW);
    int (*bump)(int *) = handle ? (int (*)(int *))dlsym(handle, "bump") : NULL;
    if (!bump || bump(&value) != 5 || value != 6 || dlclose(handle))
        fail("library", value);
}

static void wait_for(pid_t child, int wanted)
{
    int status;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != wanted)
        fail("child", status);
}

int main(int argc, char **argv)
{
    library = argv[1];
    if (argc > 2 && !strcmp(argv[2], "child")) {
        run_threads();
        open_library();
        return getenv("LD_AUDIT") || getenv("SPLITLOCK_RUN") ? 8 : 5;
    }
    puts("begun");
    fflush(stdout);
    signal(SIGUSR1, on_signal);
    char *again[] = {argv[0], argv[1], "child", NULL}, *other[] = {"sh", "-c", "exit 4", NULL};
    int rounds = argc > 2 ? atoi(argv[2]) : 12;
    for (int i = 0; i < rounds; i++) {
        pid_t child = i % 2 ? vfork() : fork();
        if (!child) {
            execv(argv[0], again);
            _exit(9);
        }
        run_threads();
        wait_for(child, 5);
        open_library();
        if (posix_spawnp(&child, "sh", NULL, NULL, other, environ))
            fail("posix_spawnp", i);
        wait_for(child, 4);
        raise(SIGUSR1);
        if (!(child = fork())) {
            run_threads();
            _exit(counter == THREADS * ADDED ? 3 : 1);
        }
        wait_for(child, 3);
    }
    if (signals != rounds)
        fail("signals", signals);
    puts("whole");
    return 7;
}

/*
 * churn: threads that come and go on two sides at once, while a split lock has been answered with SIGBUS.
 *
 * Expected: 1 split lock, which does not execute where it is answered so; 1 process. Prints `ok`; exit status 0.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>

static sigjmp_buf escape;

static void on_sigbus(int number)
{
    (void)number;
    siglongjmp(escape, 1);
}

static void *nothing(void *argument)
{
    return argument;
}

static void *come_and_go(void *argument)
{
    for (int i = 0; i < 150; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, nothing, NULL))
            return NULL;
        pthread_join(thread, NULL);
    }
    return argument;
}

int main(void)
{
    pthread_t sides[2];
    int all = 1;
    signal(SIGBUS, on_sigbus);
    if (sigsetjmp(escape, 1) == 0)
        __atomic_fetch_add(CROSSING, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++)
        all &= !pthread_create(&sides[i], NULL, come_and_go, &all);
    for (int i = 0; i < 2; i++) {
        void *done = NULL;
        pthread_join(sides[i], &done);
        all &= done == &all;
    }
    puts(all ? "ok" : "wrong");
    return !all;
}

/*
 * forms COUNT [skip]: two threads, each on a CPU of its own, execute eight forms of a locked instruction COUNT times each on an
 * operand that crosses a line, and then on one that does not: memory and registers must become the same.
 *
 * With `skip`: a SIGBUS is expected for each, before anything was done; its handler passes the instruction over.
 * Prints a line for each thread and form; exit status 1 where something is wrong.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "forms.h"

static int count, skip, wrong;
static _Thread_local const unsigned long *place;
static _Thread_local int signals;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    greg_t *ip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (number != SIGBUS || info->si_code != BUS_ADRALN || info->si_addr || (unsigned long)*ip != place[0])
        abort();
    signals++;
    *ip = (greg_t)place[1];
}

static void *run(void *argument)
{
    static const char start[8] = "\x11\x22\x33\x44\x55\x66\x77\x08";
    static struct { _Alignas(64) char bytes[192]; } memories[2];
    long thread = (long)argument;
    char *memory = memories[thread].bytes;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(thread, &set);
    sched_setaffinity(0, sizeof set, &set);
    for (int i = 0; i < FORMS; i++) {
        unsigned long long values[2] = {42, 42};
        memcpy(memory + CROSSING, start, sizeof start);
        memcpy(memory + INSIDE, start, sizeof start);
        place = forms[i].place;
        signals = 0;
        for (int j = 0; j < count; j++)
            forms[i].run(memory + CROSSING, &values[0]);
        for (int j = 0; j < count; j++)
            forms[i].run(memory + INSIDE, &values[1]);
        int right = skip ? signals == count && !memcmp(memory + CROSSING, start, sizeof start)
                         : !signals && values[0] == values[1] && !memcmp(memory + CROSSING, memory + INSIDE, sizeof start);
        printf("form %s on CPU %ld: %s\n", forms[i].name, thread, right ? "right" : "wrong");
        wrong |= !right;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    count = atoi(argv[1]);
    skip = argc > 2;
    pthread_t threads[2];
    for (long i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, run, (void *)i);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return wrong;
}

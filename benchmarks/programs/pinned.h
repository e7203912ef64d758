/* Threads with a processor of their own each: left alone, Linux at times keeps two new ones on one for a second. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>

/* pthread_create with the thread on the number-th of the processors we may use, counted round. 0 or an error number. */
static inline int create_pinned(pthread_t *thread, int number, void *(*work)(void *), void *argument)
{
    cpu_set_t allowed, one;
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        int skip = number % CPU_COUNT(&allowed);
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &allowed) && skip-- == 0) {
                CPU_ZERO(&one);
                CPU_SET(cpu, &one);
                pthread_attr_setaffinity_np(&attributes, sizeof one, &one);
            }
        }
    }
    error = pthread_create(thread, &attributes, work, argument);
    pthread_attr_destroy(&attributes);
    return error;
}

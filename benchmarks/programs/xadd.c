/*
 * xadd N: two threads do N `lock xadd` each, aligned, each thread on a cache line of its own, and nothing else. The worst
 * case for a tool that looks at every locked instruction, and harmless: no operand ever crosses a line.
 */
#include "pinned.h"
#include <stdio.h>
#include <stdlib.h>

static long times;
static struct {
    _Alignas(128) long value; /* 128: the neighbouring line is prefetched along */
} counters[2];

static void *work(void *operand)
{
    long *value = operand, one;
    for (long i = 0; i < times; i++) {
        one = 1;
        __asm__ volatile("lock xaddq %0, %1" : "+r"(one), "+m"(*value) : : "memory", "cc");
    }
    return NULL;
}

int main(int argc, char **argv)
{
    times = argc > 1 ? atol(argv[1]) : 1000;
    pthread_t one, two;
    if (create_pinned(&one, 0, work, &counters[0].value) || create_pinned(&two, 1, work, &counters[1].value))
        return 1;
    pthread_join(one, NULL);
    pthread_join(two, NULL);
    printf("%ld %ld\n", counters[0].value, counters[1].value);
    return 0;
}

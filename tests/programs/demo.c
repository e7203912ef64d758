/*
 * demo [N]: three threads count N events (300 unless told) in a packed structure, where the counter happens to
 * cross a cache line.
 *
 * Expected: N split locks, all in bump(), at stats+0x3e. Prints the count; exit status 0, 1 if an event was lost.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 3 };

struct stats {
    char name[62];
    uint32_t events;            /* offset 0x3e of a 64-byte line: two bytes in this line, two in the next */
} __attribute__((packed));

struct stats stats __attribute__((aligned(64))) = {.name = "requests served"};

__attribute__((noinline)) static void bump(struct stats *s)
{
    __asm__ volatile("lock addl $1, %0" : "+m"(s->events) : : "cc");
}

static void *serve(void *argument)
{
    for (long left = (long)argument; left > 0; left--)
        bump(&stats);
    return NULL;
}

int main(int argc, char **argv)
{
    long total = argc > 1 ? strtol(argv[1], NULL, 10) : 300;
    pthread_t threads[THREADS];

    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, serve, (void *)(total / THREADS + (i < total % THREADS))) != 0)
            return 1;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);

    printf("%s: %u\n", stats.name, stats.events);
    return stats.events != total;
}

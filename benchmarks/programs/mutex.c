/*
 * mutex THREADS N [THREADS N]...: for each pair in turn, that many threads lock and unlock one pthread mutex N times each,
 * around an increment. Prints the count.
 *
 * The loop never runs in the main thread: as long as a process has one thread only, glibc locks without a locked
 * instruction, which is not what is to be measured.
 */
#include "pinned.h"
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 64 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long count;

static void *work(void *times)
{
    for (long i = 0; i < *(long *)times; i++) {
        pthread_mutex_lock(&mutex);
        count++;
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        pthread_t threads[MOST];
        int wanted = atoi(argv[i]);
        long times = atol(argv[i + 1]);
        if (wanted < 1 || wanted > MOST)
            return 2;
        for (int thread = 0; thread < wanted; thread++)
            if (create_pinned(&threads[thread], thread, work, &times))
                return 1;
        for (int thread = 0; thread < wanted; thread++)
            pthread_join(threads[thread], NULL);
    }
    printf("%ld\n", count);
    return 0;
}

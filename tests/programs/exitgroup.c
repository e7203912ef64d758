/*
 * exitgroup: 8 threads loop on aligned locked instructions until one more ends the process after 50 ms.
 *
 * Expected: no split lock; exit status 7.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *loop(void *unused)
{
    (void)unused;
    for (;;)
        locked_xadd(ALIGNED, 1);
    return NULL;
}

static void *end(void *unused)
{
    (void)unused;
    usleep(50 * 1000);
    syscall(SYS_exit_group, 7);
    return NULL;
}

int main(void)
{
    pthread_t thread;
    for (int i = 0; i < 9; i++)
        if (pthread_create(&thread, NULL, i < 8 ? loop : end, NULL) != 0)
            return 1;
    pthread_join(thread, NULL);
    return 1;
}

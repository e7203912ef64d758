/*
 * crowd WHERE THREADS ROUNDS [COMMAND]: all threads at once, ROUNDS times, are about to take a split lock at each of three sites.
 * None is taken: WHERE is `line` (for fatal: SIGBUS) or `page` (the second half of the operand is on a page that is not there:
 * SIGSEGV), and the handler goes on behind the instruction. Executes COMMAND, and prints how often the handler was called.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { PAGE = 4096, SIZE = 8 }; /* SIZE: bytes of each instruction */
static char *operand;
static long rounds;
static _Atomic long calls, stopped;
static pthread_barrier_t barrier;

static void step_over(int number, siginfo_t *info, void *context)
{
    (void)info;
    calls++;
    stopped += number == SIGBUS;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += SIZE;
}

static void *work(void *unused)
{
    for (long i = 0; i < rounds; i++) {
        pthread_barrier_wait(&barrier);
        __asm__ volatile("lock addl $1, 0x1000(%0)\n nop\n lock addl $2, 0x1000(%0)\n nop\n lock addl $3, 0x1000(%0)\n"
                         : : "D"(operand - 0x1000) : "memory", "cc");
    }
    return unused;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 1;
    rounds = argc > 3 ? atol(argv[3]) : 1;
    char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    operand = pages + PAGE - 2;
    if (argc > 1 && !strcmp(argv[1], "page"))
        munmap(pages + PAGE, PAGE);
    struct sigaction action = {.sa_sigaction = step_over, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    pthread_barrier_init(&barrier, NULL, (unsigned)count);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 16);
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], &small, work, NULL))
            return 2;
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    if (argc > 4 && system(argv[4]))
        return 2;
    printf("%ld calls, %ld for SIGBUS\n", calls, stopped);
    return 0;
}

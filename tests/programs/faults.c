/*
 * A page that another thread keeps write-protecting, as garbage collectors do, under a locked instruction whose slow
 * path is taken at each execution (misaligned within its line: no split lock), with a timer at 2 kHz.
 * The SIGSEGV handler unprotects the page; the timer's signals must keep their siginfo. Expected: 0 split locks;
 * prints `ok`, exit status 0; 1 when a locked add was lost or done twice, or a signal came without its value.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, VALUE = 4711, SECONDS = 1 };
static char *page;
static volatile long ticks, foreign;
static volatile int stop;

static void unprotect(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    mprotect(page, PAGE, PROT_READ | PROT_WRITE);
}

static void tick(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    ticks++;
    foreign += info->si_code != SI_TIMER || info->si_value.sival_int != VALUE;
}

static void *protect(void *unused)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (!stop) {
        mprotect(page, PAGE, PROT_READ);
        usleep(50);
    }
    return unused;
}

int main(void)
{
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_sigaction = unprotect, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    action.sa_sigaction = tick;
    sigaction(SIGRTMIN, &action, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = VALUE};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    pthread_t thread;
    pthread_create(&thread, NULL, protect, NULL);
    timer_settime(timer, 0, &(struct itimerspec){{0, 500000}, {0, 500000}}, NULL);

    struct timespec start, now;
    long added = 0, *counter = (long *)(page + 4);
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        for (int i = 0; i < 1000; i++, added++)
            __asm__ volatile("lock addq $1, %0" : "+m"(*counter));
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec <= SECONDS);

    timer_settime(timer, 0, &(struct itimerspec){0}, NULL);
    stop = 1;
    pthread_join(thread, NULL);
    int wrong = *counter != added || foreign || !ticks;
    printf(wrong ? "wrong: %ld of %ld added, %ld of %ld signals foreign\n" : "ok\n", *counter, added, foreign, ticks);
    return wrong;
}

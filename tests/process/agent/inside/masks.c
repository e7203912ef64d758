/*
 * masks HOW: handlers run with the mask that the kernel gives them.
 *
 * suspend: handlers that sigsuspend, pselect, ppoll and epoll_pwait let in, one and two at once; each prints its mask and the one it
 * returns to. wait: such a handler waits for another signal, which only the mask of sigsuspend lets in. together: two signals come at
 * the same instruction, which may be a moved one, so that one's handler is interrupted before its first instruction; prints what was wrong.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { TIMES = 300 };
extern char __executable_start, etext;
static volatile sig_atomic_t ticks[65];
static volatile unsigned long outside, wrong_mask;
static volatile bool works;
static sigset_t all, none;

static void show(const char *what, const sigset_t *set)
{
    printf("%s", what);
    for (int i = 1; i < 65; i++)
        if (sigismember(set, i) == 1)
            printf(" %d", i);
    puts("");
}

static void tell(int number, siginfo_t *info, void *context)
{
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    printf("handler %d, code %d\n", number, info->si_code);
    show("  mask", &now), show("  before", &((ucontext_t *)context)->uc_sigmask);
}

/* not by libc: another signal may come meanwhile, and is to find this program's own code */
static void ask_mask(sigset_t *now)
{
    register long size __asm__("r10") = 8;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_rt_sigprocmask), "D"(SIG_BLOCK), "S"(NULL), "d"(now), "r"(size)
                     : "rcx", "r11", "memory");
}

static bool holds(const sigset_t *set, int number)
{
    return *(const uint64_t *)set >> (number - 1) & 1;
}

static void count(int number, siginfo_t *info, void *context)
{
    const ucontext_t *before = context;
    uint64_t ip = (uint64_t)before->uc_mcontext.gregs[REG_RIP];
    sigset_t now;
    int other = number == SIGUSR1 ? SIGUSR2 : SIGUSR1;
    ask_mask(&now);
    static const unsigned char restorer[] = {0x48, 0xc7, 0xc0, 0x0f}; /* libc's, behind a handler */
    bool returns = !memcmp((const void *)ip, restorer, sizeof restorer) || !memcmp((const char *)ip - 7, restorer, sizeof restorer);
    outside += works && !returns && (ip < (uint64_t)&__executable_start || ip >= (uint64_t)&etext);
    wrong_mask += !holds(&now, number) || holds(&now, other) != holds(&before->uc_sigmask, other) ||
                  holds(&before->uc_sigmask, number) || info->si_signo != number;
    ticks[number]++;
}

static void tick(int number)
{
    ticks[number]++;
}

static void wait_for_alarm(int number)
{
    struct itimerval soon = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    while (!ticks[SIGALRM])
        pause();
    ticks[number]++;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(number, &action, NULL);
}

static void suspend(int how)
{
    struct timespec moment = {0, 1000};
    struct epoll_event event;
    int polled = how == 3 ? epoll_create1(0) : -1;
    switch (how) {
    case 0: sigsuspend(&none); break;
    case 1: pselect(0, NULL, NULL, NULL, &moment, &none); break;
    case 2: ppoll(NULL, 0, &moment, &none); break;
    default: epoll_pwait(polled, &event, 1, 1, &none); close(polled);
    }
    printf("after %d\n", how);
}

static void together(void)
{
    static _Atomic int counter;
    pid_t worker = fork();
    if (worker) {
        int status;
        for (int i = 0; i < TIMES && !waitpid(worker, &status, WNOHANG); i++) {
            usleep(300);
            kill(worker, SIGSTOP);
            waitpid(worker, &status, WUNTRACED);
            kill(worker, SIGUSR1), kill(worker, SIGUSR2);
            kill(worker, SIGCONT);
        }
        usleep(100000);
        kill(worker, SIGTERM);
        waitpid(worker, &status, 0);
        printf("status %x\n", status);
        return;
    }
    signal(SIGTERM, tick);
    works = true;
    while (!ticks[SIGTERM]) /* aligned */
        __asm__ volatile("lock incl %0\n mov $1, %%eax\n lock xaddl %%eax, %0\n lock decl %0" : "+m"(counter) : : "rax", "cc");
    works = false;
    printf("outside %d, wrong %lu, some %d\n", outside > 9, wrong_mask, ticks[SIGUSR1] > TIMES / 2 && ticks[SIGUSR2] > TIMES / 2);
    exit(0);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    sigemptyset(&none), sigemptyset(&all);
    sigaddset(&all, SIGUSR1), sigaddset(&all, SIGUSR2), sigaddset(&all, SIGALRM);
    if (argc > 1 && !strcmp(argv[1], "together")) {
        handle(SIGUSR1, count, 0), handle(SIGUSR2, count, 0);
        together();
        return 0;
    }
    sigprocmask(SIG_BLOCK, &all, NULL);
    if (argc > 1 && !strcmp(argv[1], "wait")) {
        signal(SIGALRM, tick), signal(SIGUSR1, wait_for_alarm);
        raise(SIGUSR1);
        sigsuspend(&none);
        puts("done");
        return 0;
    }
    for (int flags = 0; flags < 3; flags++)
        for (int how = 0; how < 4; how++) {
            for (int k = 0; k < 2; k++) {
                handle(SIGUSR1, tell, flags == 1 ? SA_NODEFER : flags == 2 ? (int)SA_RESETHAND : 0);
                handle(SIGUSR2, tell, 0);
                raise(SIGUSR1);
                if (k)
                    raise(SIGUSR2);
                suspend(how);
            }
        }
    sigprocmask(SIG_BLOCK, NULL, &none);
    show("end", &none);
    return 0;
}

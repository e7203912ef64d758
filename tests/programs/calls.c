/* A program with a known stack: the first argument says which, and SIGSTOP to itself when it stands.
 *
 * deep [N], signal, timer (whenever one comes), vdso (when one comes in the vdso), threads (which wait), callback (from
 * the library each.cc, with -DLIBRARY).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#define OWN __attribute__((noipa))
static volatile int sink;
static int wanted;
void each(int, void (*)(void *), void *);
OWN void stop(void) { kill(getpid(), SIGSTOP); sink++; }
OWN int deep(int n)
{
    volatile char room[48 + n];
    room[0] = n;
    if (n == 0) stop(); else deep(n - 1);
    return sink++ + room[0];
}
OWN void handler(int n) { deep(3); sink += n; }
OWN void interrupted(void) { kill(getpid(), SIGUSR1); sink++; }
OWN int few(int a, int b) { return a * b + sink; }
OWN int some(int a) { int s = 0; for (int i = 0; i < 9; i++) s += few(a + i, s); return s; }
OWN void tick(int n, siginfo_t *info, void *context)
{
    unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP], vdso = getauxval(AT_SYSINFO_EHDR);
    if (!wanted || rip - vdso < 0x2000) stop();
    sink += n + info->si_code;
}
OWN void timed(int vdso)
{
    struct sigaction action = { .sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART };
    struct itimerval every = { { 0, 1000 }, { 0, 1000 } };
    struct timespec now;
    wanted = vdso;
    sigaction(SIGPROF, &action, 0);
    setitimer(ITIMER_PROF, &every, 0); /* of its own time: none passes while it is stopped */
    for (;;) { if (vdso) clock_gettime(CLOCK_MONOTONIC, &now); else sink += some(3); }
}
OWN void *thread(void *p) { while (write(1, "x", 1)) pause(); return p; }
OWN void *lower(void *p) { void *q = thread(p); sink++; return q; }
OWN void callback(void *p) { deep((int)(long)p); sink++; }
int main(int argc, char **argv)
{
    const char *mode = argv[1];
    if (!strcmp(mode, "deep")) deep(argc > 2 ? atoi(argv[2]) : 20);
    else if (!strcmp(mode, "signal")) { signal(SIGUSR1, handler); interrupted(); }
    else if (!strcmp(mode, "timer")) timed(0);
    else if (!strcmp(mode, "vdso")) timed(1);
#ifdef LIBRARY
    else if (!strcmp(mode, "callback")) each(5, callback, (void *)4);
#endif
    else if (!strcmp(mode, "threads")) {
        pthread_t others[3];
        for (int i = 0; i < 3; i++) pthread_create(others + i, 0, lower, 0);
        lower(0);
    }
    sink++;
    return 0;
}

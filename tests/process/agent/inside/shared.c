/*
 * shared HOW [NUMBER]: dispositions that are set and asked for where memory is shared.
 *
 * HOW: fork (children ask, forked while another thread sets), exchange (threads set: each setting is told as the former one once,
 * and whole), vfork, clone (with CLONE_VM and CLONE_VFORK), together (CLONE_VM alone: at the same time), spawn (posix_spawn(3) sets to
 * default). The child sets, raises; then its parent raises and asks. Prints who got the signals.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HANDLERS = 6, THREADS = 3, ROUNDS = 20000, SIZE = 64 << 10 };
static volatile int got_by[HANDLERS];
static void h0(int n) { (void)n, got_by[0]++; }
static void h1(int n) { (void)n, got_by[1]++; }
static void h2(int n) { (void)n, got_by[2]++; }
static void h3(int n) { (void)n, got_by[3]++; }
static void h4(int n) { (void)n, got_by[4]++; }
static void h5(int n) { (void)n, got_by[5]++; }
static void (*const handlers[])(int) = {h0, h1, h2, h3, h4, h5};
static _Atomic long set_times[HANDLERS], told_times[HANDLERS];
static _Atomic int torn;
static volatile int stop;

/* All that is set differs from handler to handler. */
static struct sigaction setting(int which)
{
    struct sigaction action = {.sa_handler = handlers[which], .sa_flags = which & 1 ? SA_RESTART : SA_NODEFER};
    for (int i = 0; i < 3; i++)
        if (which >> i & 1)
            sigaddset(&action.sa_mask, SIGRTMIN + i);
    return action;
}

static int which_is(const struct sigaction *action)
{
    for (int i = 0; i < HANDLERS; i++)
        if (action->sa_handler == handlers[i]) {
            struct sigaction whole = setting(i);
            torn += (action->sa_flags & ~0x04000000 /* SA_RESTORER */) != whole.sa_flags || memcmp(&action->sa_mask, &whole.sa_mask, 8);
            return i;
        }
    torn++;
    return 0;
}

static void *exchange(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    for (int i = 0; i < ROUNDS; i++) {
        int mine = (int)((state = state * 1103515245 + 12345) >> 16) % HANDLERS;
        struct sigaction new = setting(mine), old;
        set_times[mine]++;
        sigaction(SIGUSR1, &new, &old);
        told_times[which_is(&old)]++;
    }
    return NULL;
}

static void *keep_setting(void *unused)
{
    struct sigaction each[2] = {setting(0), setting(1)};
    while (!stop)
        for (int i = 0; i < 2; i++)
            sigaction(SIGUSR1, &each[i], NULL);
    return unused;
}

static void say(const char *who)
{
    struct sigaction now;
    sigaction(SIGUSR1, NULL, &now);
    int which = now.sa_handler == SIG_DFL ? -1 : now.sa_handler == SIG_IGN ? -2 : which_is(&now);
    printf("%s: now %d, torn %d; got", who, which, torn);
    for (int i = 0; i < HANDLERS; i++)
        printf(" %d", got_by[i]);
    puts("");
    fflush(stdout);
}

static int child(void *unused)
{
    (void)unused;
    struct sigaction now, mine[] = {setting(1), setting(3), {.sa_handler = SIG_IGN}};
    for (int i = 0; i < 3; i++) {
        sigaction(SIGUSR1, &mine[i], &now);
        syscall(SYS_tgkill, syscall(SYS_getpid), syscall(SYS_gettid), SIGUSR1);
    }
    mine[2] = setting(5); /* a signal for which there has been no handler */
    sigaction(SIGUSR2, &mine[2], &now);
    syscall(SYS_tgkill, syscall(SYS_getpid), syscall(SYS_gettid), SIGUSR2);
    _exit(now.sa_handler != SIG_DFL);
}

static int forked(int count)
{
    pthread_t thread;
    struct timespec moment = {0, 2000000};
    int hung = 0, wrong = 0, status;
    struct sigaction first = setting(0), now;
    sigaction(SIGUSR1, &first, NULL);
    pthread_create(&thread, NULL, keep_setting, NULL);
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (!pid) {
            sigaction(SIGUSR1, NULL, &now);
            _exit(which_is(&now) > 1 || torn);
        }
        int waited = 0;
        for (; waited < 1000 && !waitpid(pid, &status, WNOHANG); waited++)
            nanosleep(&moment, NULL);
        if (waited == 1000) {
            hung++;
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            break;
        }
        wrong += status != 0;
    }
    stop = 1;
    pthread_join(thread, NULL);
    return printf("hung %d, wrong %d\n", hung, wrong) < 0;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "vfork";
    static char stack[SIZE];
    int status = 0;
    pid_t pid = 0;
    if (!strcmp(how, "fork"))
        return forked(argc > 2 ? atoi(argv[2]) : 1000);
    struct sigaction first = setting(0), last;
    sigaction(SIGUSR1, &first, NULL);
    if (!strcmp(how, "exchange")) {
        pthread_t threads[THREADS];
        set_times[0]++;
        for (uintptr_t i = 0; i < THREADS; i++)
            pthread_create(&threads[i], NULL, exchange, (void *)(i + 1));
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        sigaction(SIGUSR1, NULL, &last);
        told_times[which_is(&last)]++;
        for (int i = 0; i < HANDLERS; i++)
            printf("%ld ", set_times[i] - told_times[i]);
        return printf("torn %d\n", torn) < 0;
    }
    if (!strcmp(how, "vfork")) {
        if (!(pid = vfork()))
            child(NULL);
    } else if (!strcmp(how, "clone")) {
        pid = clone(child, stack + SIZE, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    } else if (!strcmp(how, "together")) {
        pid = clone(child, stack + SIZE, CLONE_VM | SIGCHLD, NULL);
    } else {
        posix_spawnattr_t how_to;
        sigset_t set;
        char *words[] = {"sh", "-c", "kill -USR1 $$", NULL}, *none[] = {NULL};
        sigemptyset(&set), sigaddset(&set, SIGUSR1);
        posix_spawnattr_init(&how_to);
        posix_spawnattr_setsigdefault(&how_to, &set);
        posix_spawnattr_setflags(&how_to, POSIX_SPAWN_SETSIGDEF);
        posix_spawn(&pid, "/bin/sh", NULL, &how_to, words, none);
    }
    waitpid(pid, &status, 0);
    printf("child %#x\n", status);
    say("before");
    raise(SIGUSR1);
    say("after");
    return 0;
}

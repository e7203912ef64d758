/*
 * once WHAT: calls that may be made once only, while signals come at every instruction: a timer whose period changes. Prints what
 * has come of them.
 *
 * WHAT: sigaction (which says what there was before), map (executable memory, unmapped again), fixed (a mapping where there must be
 * none), attach (executable shared memory), filter (seccomp filters, which add up), forks (4,000 children, by several calls),
 * behind (a filter of its own, which forbids what the agent calls: from stacks that are aligned, and not).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PERIODS = 40 };
static volatile long ticks;
static void tick(int number) { (void)number, ticks++; }
static void one(int number) { (void)number; }
static void two(int number) { (void)number; }

static void timer(int microseconds)
{
    struct itimerval period = {{0, microseconds}, {0, microseconds}};
    setitimer(ITIMER_REAL, &period, NULL);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static long number_in(const char *path, const char *name)
{
    char line[512];
    long found = 0;
    FILE *file = fopen(path, "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)))
            found = atol(line + strlen(name));
    fclose(file);
    return found;
}

static long wrong;
static char *place;
static int segment;

static void change(void)
{
    static int turn;
    struct sigaction new = {.sa_handler = turn ? one : two}, old;
    sigaction(SIGUSR1, &new, &old);
    wrong += old.sa_handler != (turn ? two : one);
    turn = !turn;
}

static void map(void)
{
    void *made = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    wrong += made == MAP_FAILED || munmap(made, 4096);
}

static void fix(void)
{
    void *made = mmap(place, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    wrong += made != place;
    munmap(place, 4096);
}

static void attach(void)
{
    void *made = shmat(segment, NULL, SHM_EXEC);
    wrong += made == (void *)-1 || shmdt(made);
}

static void install(int by_prctl)
{
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    wrong += by_prctl ? prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) : syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

__asm__(".text\n.globl protect, protect_lower\n"
        ".type protect, @function\nprotect: .cfi_startproc\n mov $10, %eax\n syscall\n ret\n.cfi_endproc\n.size protect, . - protect\n"
        ".type protect_lower, @function\nprotect_lower: .cfi_startproc\n push %rbx\n mov $10, %eax\n syscall\n pop %rbx\n ret\n"
        ".cfi_endproc\n.size protect_lower, . - protect_lower\n");
long protect(void *start, size_t size, int rights), protect_lower(void *start, size_t size, int rights);

static void forbid(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    wrong += prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void behind(void)
{
    for (int i = 0; i < 100; i++)
        wrong += protect(place, 4096, PROT_READ | PROT_EXEC) != 0 || protect_lower(place, 4096, PROT_READ | PROT_EXEC) != 0;
}

static void born(void)
{
    static int turn;
    uint64_t arguments[8] = {0, 0, 0, 0, SIGCHLD};
    pid_t child = turn == 0 ? fork() : (pid_t)(turn == 1 ? syscall(SYS_clone3, arguments, sizeof arguments)
                                                         : syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL));
    if (!child)
        _exit(0);
    wrong += child < 0;
    turn = (turn + 1) % 3;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    struct sigaction ticking = {.sa_handler = tick, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &ticking, NULL);
    signal(SIGUSR1, one);
    place = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(place, 4096);
    place -= 64 << 20;
    segment = shmget(IPC_PRIVATE, 4096, 0700);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    long size = number_in("/proc/self/status", "VmSize:"), children = 0, filters = 0, reaped = 0;
    if (!strcmp(what, "behind")) {
        place = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        forbid();
    }
    for (int i = 0; i < PERIODS; i++) {
        double until = seconds() + 0.05;
        int forks = !strcmp(what, "forks"), filter = !strcmp(what, "filter");
        timer(50 + 3 * i);
        for (long round = 0; filter || forks ? round < (forks ? 100 : 20) : seconds() < until; round++) {
            if (filter)
                install(round % 2), filters++;
            else if (forks)
                born(), children++;
            else if (!strcmp(what, "sigaction"))
                change();
            else if (!strcmp(what, "map"))
                map();
            else if (!strcmp(what, "fixed"))
                fix();
            else if (!strcmp(what, "behind"))
                behind();
            else
                attach();
        }
        timer(0);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            reaped++;
    }
    while (waitpid(-1, NULL, 0) > 0)
        reaped++;
    struct shmid_ds about;
    shmctl(segment, IPC_STAT, &about);
    shmctl(segment, IPC_RMID, NULL);
    long installed = number_in("/proc/self/status", "Seccomp_filters:");
    printf("wrong %ld, memory more %d, attached %ld, children that nobody wanted %ld, filters %ld of %ld\n", wrong,
           number_in("/proc/self/status", "VmSize:") > size + 2000, (long)about.shm_nattch, reaped - children, installed, filters);
    if (ticks < (!strcmp(what, "forks") ? 5 : 50))
        puts("too few signals");
    return 0;
}

/*
 * filtered ACTION WHAT [ARGUMENT...]: a program that lets itself make only the calls that WHAT takes, and then does WHAT.
 *
 * ACTION, of a call that is not among them: kill, errno, trap (SIGSYS, which has no handler), listen (kill, and the filter has a
 * listener, as container runtimes' have), high (trap, only from below 0x700000000000, as Proton's), strict.
 * Prints WHAT and leaves with 7.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((aligned(64))) static char memory[192];
#define LINE(at) (*(int *)(memory + (at)))
static volatile int handled;

static void handle(int number)
{
    handled += number;
}

static void say(int number)
{
    handled += write(1, "handled\n", 8) == 8 ? number : 0;
}

static void allow(struct sock_filter *code, unsigned *count, int number)
{
    code[(*count)++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1);
    code[(*count)++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
}

static const struct {
    const char *what;
    int calls[20];
} allowed[] = {
    {"hit", {0}},
    {"handler", {SYS_rt_sigaction, SYS_kill, SYS_getpid, SYS_gettid, SYS_tgkill, SYS_rt_sigprocmask, SYS_rt_sigreturn}},
    {"bare handler", {SYS_rt_sigaction, SYS_kill, SYS_rt_sigreturn}},
    {"earlier", {SYS_rt_sigreturn}},
    {"once", {SYS_rt_sigreturn}},
    {"failed once", {SYS_rt_sigreturn}},
    {"make", {SYS_mmap, SYS_mprotect, SYS_munmap}},
    {"fork", {SYS_clone, SYS_wait4, SYS_set_robust_list, SYS_gettid, SYS_rt_sigprocmask}},
    {"exec", {SYS_execve, SYS_brk, SYS_mmap, SYS_access, SYS_openat, SYS_newfstatat, SYS_fstat, SYS_lseek, SYS_close, SYS_pread64,
              SYS_arch_prctl, SYS_set_tid_address, SYS_set_robust_list, SYS_rseq, SYS_mprotect, SYS_prlimit64, SYS_getrandom,
              SYS_munmap}},
    {"nothing", {0}},
};

static int install(const char *action, const char *what)
{
    struct sock_filter code[80];
    unsigned count = 0;
    bool high = !strcmp(action, "high");
    if (high) {
        code[count++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4);
        code[count++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x7000, 0, 1);
        code[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    } else {
        code[count++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        allow(code, &count, SYS_read);
        allow(code, &count, SYS_write);
        allow(code, &count, SYS_exit_group);
        for (unsigned i = 0; i < sizeof allowed / sizeof *allowed; i++)
            for (unsigned k = 0; !strcmp(allowed[i].what, what) && k < 20 && allowed[i].calls[k]; k++)
                allow(code, &count, allowed[i].calls[k]);
    }
    unsigned other = !strcmp(action, "errno") ? SECCOMP_RET_ERRNO | EPERM : high || !strcmp(action, "trap") ? SECCOMP_RET_TRAP
                                                                         : SECCOMP_RET_KILL_PROCESS;
    if (!strcmp(action, "all"))
        other = SECCOMP_RET_ALLOW;
    code[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, other);
    struct sock_fprog program = {(unsigned short)count, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!strcmp(action, "strict"))
        return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) ? -1 : 0;
    if (!strcmp(action, "listen"))
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) < 0 ? -1 : 0;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int act(const char *what, char **argv)
{
    static const unsigned char code[] = {0xf0, 0x83, 0x07, 0x01, 0xc3}; /* lock add dword [rdi], 1; ret */
    if (!strcmp(what, "hit")) {
        for (int i = 0; i < 3; i++)
            __atomic_fetch_add(&LINE(62), 1, __ATOMIC_SEQ_CST);
        return LINE(62) == 3;
    }
    if (strstr(what, "handler")) {
        pid_t own = atoi(argv[0]);
        struct sigaction action = {.sa_handler = handle};
        sigaction(SIGUSR1, &action, NULL);
        for (int i = 0; i < 100; i++) {
            __atomic_fetch_add(&LINE(0), 1, __ATOMIC_SEQ_CST);
            syscall(SYS_kill, own, SIGUSR1);
        }
        return handled == 100 * SIGUSR1 && LINE(0) == 100;
    }
    if (!strcmp(what, "earlier") || strstr(what, "once")) { /* a timer's: strict allows no kill */
        while (!handled)
            __atomic_fetch_add(&LINE(0), 1, __ATOMIC_SEQ_CST);
        return handled == SIGALRM;
    }
    if (!strcmp(what, "make")) {
        char *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(made, code, sizeof code);
        if (mprotect(made, 4096, PROT_READ | PROT_EXEC))
            return 0;
        ((void (*)(int *))made)(&LINE(128));
        void *other = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return !munmap(made, 4096) && other != MAP_FAILED && LINE(128) == 1;
    }
    if (!strcmp(what, "fork")) {
        int status = 1;
        pid_t child = fork();
        if (!child)
            _exit(__atomic_add_fetch(&LINE(128), 1, __ATOMIC_SEQ_CST) != 1);
        return syscall(SYS_wait4, child, &status, 0, NULL) == child && !status;
    }
    if (!strcmp(what, "exec")) {
        execv(argv[0], argv);
        return 0;
    }
    if (!strcmp(what, "open")) {
        int (*bump)(int *) = (int (*)(int *))dlsym(dlopen(argv[0], RTLD_NOW), "bump");
        return bump(&LINE(62)) + bump(&LINE(62)) + bump(&LINE(62)) == 3;
    }
    return 1;
}

int main(int argc, char **argv)
{
    char own[16], *pid[] = {own, NULL};
    sprintf(own, "%d", getpid());
    if (argc > 2 && (!strcmp(argv[2], "earlier") || strstr(argv[2], "once"))) {
        struct sigaction action = {.sa_handler = say, .sa_flags = strstr(argv[2], "once") ? (int)SA_RESETHAND : 0};
        struct itimerval soon = {{0, 0}, {0, 100000}};
        struct sock_filter none = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 3);
        struct sock_fprog refused = {1, &none};
        sigaction(SIGALRM, &action, NULL);
        if (!strcmp(argv[2], "failed once") && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &refused))
            return 2;
        setitimer(ITIMER_REAL, &soon, NULL);
    }
    if (argc < 3 || install(argv[1], argv[2]))
        return 2;
    bool good = act(argv[2], argc > 3 ? argv + 3 : pid);
    if (write(1, argv[2], strlen(argv[2])) < 1 || write(1, "\n", 1) < 1)
        return 3;
    if (!strcmp(argv[1], "strict"))
        syscall(SYS_exit, good ? 7 : 1);
    syscall(SYS_exit_group, good ? 7 : 1);
}

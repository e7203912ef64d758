/*
 * told HOW: what the kernel keeps and says, and we must not change.
 * direction: the direction flag, over locks at an operand that crosses a line (for fatal; SIGBUS steps over them) and over calls.
 * once: SA_RESETHAND, with each set of other flags and masks: what is set when the handler runs, and after it.
 * refused: the address of a system call that a filter of the program's refuses by SIGSYS, and that the handler was called at.
 * divided: that of an instruction beside a locked one that divides by zero.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static char line[128] __attribute__((aligned(64)));
static long step;

static void step_over(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    if (number != SIGBUS)
        printf("signal %d, code %d, at rip: %d\n", number, info->si_code, info->si_addr == (void *)registers[REG_RIP]);
    registers[REG_RIP] += step;
}

static void test_direction(void)
{
    unsigned long flags[4];
    step = 4;
    struct sigaction action = {.sa_sigaction = step_over, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    __asm__ volatile("std\n lock incl (%1)\n nop\n pushfq\n popq %0\n cld" : "=r"(flags[0]) : "D"(line + 62) : "memory", "cc");
    __asm__ volatile("std\n mov $7, %%eax\n lock xadd %%eax, (%1)\n pushfq\n popq %0\n cld" : "=r"(flags[1]) : "D"(line + 62) : "eax", "memory", "cc");
    __asm__ volatile("std\n mov $13, %%eax\n syscall\n pushfq\n popq %0\n cld" /* rt_sigaction */
                     : "=a"(flags[2]) : "D"((long)SIGBUS), "S"(NULL), "d"(NULL) : "rcx", "r11", "r10", "memory", "cc");
    register long rights __asm__("r10") = MAP_PRIVATE | MAP_ANONYMOUS, file __asm__("r8") = -1, offset __asm__("r9") = 0;
    __asm__ volatile("std\n mov $9, %%eax\n syscall\n pushfq\n popq %0\n cld" /* mmap */
                     : "=a"(flags[3]) : "D"(0L), "S"(4096L), "d"((long)(PROT_READ | PROT_EXEC)), "r"(rights), "r"(file), "r"(offset)
                     : "rcx", "r11", "memory", "cc");
    for (int i = 0; i < 4; i++)
        printf("direction %lu\n", flags[i] >> 10 & 1);
}

static void show(void)
{
    struct sigaction now;
    memset(&now, 0, sizeof now);
    sigaction(SIGUSR1, NULL, &now);
    printf(" %d flags %x mask %d %d", now.sa_handler == SIG_DFL, now.sa_flags, sigismember(&now.sa_mask, SIGUSR2), sigismember(&now.sa_mask, SIGUSR1));
}

static void note(int number)
{
    (void)number;
    show();
}

static void test_once(void)
{
    static const int flags[] = {0, SA_RESTART, SA_SIGINFO, SA_NODEFER, SA_ONSTACK, SA_SIGINFO | SA_NODEFER | SA_RESTART};
    for (int i = 0; i < 12; i++) {
        struct sigaction action = {.sa_handler = note, .sa_flags = flags[i / 2] | (int)SA_RESETHAND};
        if (i % 2)
            sigaddset(&action.sa_mask, SIGUSR2);
        sigaction(SIGUSR1, &action, NULL);
        show();
        raise(SIGUSR1);
        show();
        puts("");
    }
}

static void refuse(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    printf("signal %d, call %d, at rip: %d\n", number, info->si_syscall, info->si_call_addr == (void *)registers[REG_RIP]);
    registers[REG_RAX] = -EPERM;
}

static void test_refused(void)
{
    static struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fork, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_vfork, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {6, filter};
    struct sigaction action = {.sa_sigaction = refuse, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    long result;
    printf("%d\n", fork());
    __asm__ volatile("mov $57, %%eax\n syscall" : "=a"(result) : : "rcx", "r11", "memory");
    printf("%ld\n", result);
    __asm__ volatile("mov $58, %%eax\n syscall" : "=a"(result) : : "rcx", "r11", "memory");
    printf("%ld\n", result);
}

static void test_divided(void)
{
    int value = 0;
    struct sigaction action = {.sa_sigaction = step_over, .sa_flags = SA_SIGINFO};
    sigaction(SIGFPE, &action, NULL);
    step = 2;
    __asm__ volatile("xor %%edx, %%edx\n xor %%ecx, %%ecx\n mov (%0), %%eax\n lock incl (%0)\n div %%ecx\n div %%ecx\n lock incl (%0)"
                     : : "D"(&value) : "rax", "rcx", "rdx", "memory", "cc");
    printf("%d\n", value);
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    setvbuf(stdout, NULL, _IOLBF, 1024);
    if (!strcmp(how, "direction"))
        test_direction();
    else if (!strcmp(how, "once"))
        test_once();
    else if (!strcmp(how, "refused"))
        test_refused();
    else
        test_divided();
    return 0;
}

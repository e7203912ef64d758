/* tails: functions in which something follows a locked instruction to the end in each way that is copied: both ways of each branch
 * are gone, and an instruction behind the lock faults. Prints what each gives, and where faults are. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define FUNCTION(name, body) \
    __asm__(".text\n.type " name ", @function\n" name ":\n.cfi_startproc\n" body "\n.cfi_endproc\n.size " name ", .-" name "\n"); \

long plain(int *), over(int *), both(int *), back(int *), jump(int *), faults(int *, int *), popped(int *), other(int *), loop(int *);
FUNCTION("plain", "lock incl (%rdi)\n mov (%rdi), %eax\n add $1, %eax\n cltq\n ret")
FUNCTION("over", "lock incl (%rdi)\n nop\n nop\n jle 1f\n push %rdi\n call helper\n pop %rdi\n 1: movslq (%rdi), %rax\n ret")
FUNCTION("both", "lock decl (%rdi)\n js 1f\n jz 2f\n mov $3, %eax\n ret\n 1: mov $1, %eax\n ret\n 2: mov $2, %eax\n ret")
FUNCTION("back", "jmp 2f\n 1: movslq (%rdi), %rax\n ret\n 2: lock decl (%rdi)\n nop\n nop\n jg 1b\n push %rdi\n call helper\n pop %rdi\n jmp 1b")
FUNCTION("jump", "lock incl (%rdi)\n mov $7, %eax\n jmp plain")
FUNCTION("faults", "lock incl (%rdi)\n mov (%rsi), %eax\n cltq\n ret")
FUNCTION("popped", "push %rdi\n lock incl (%rdi)\n movslq (%rdi), %rax\n pop %rdi\n rep ret")
FUNCTION("other", "lock incl (%rdi)\n mov $4, %eax\n lock incl (%rdi)\n cltq\n ret")
FUNCTION("loop", "mov $3, %ecx\n 1: lock incl (%rdi)\n dec %ecx\n jnz 1b\n movslq (%rdi), %rax\n ret")

static int helped;
static void *unreadable;

__attribute__((used)) void helper(int *value)
{
    helped += *value;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    (void)info;
    printf("signal %d at faults+%lld\n", number, (long long)(state->uc_mcontext.gregs[REG_RIP] - (long long)faults));
    mprotect(unreadable, 4096, PROT_READ | PROT_WRITE);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    long (*each[])(int *) = {plain, over, both, back, jump, popped, other, loop};
    for (unsigned i = 0; i < sizeof each / sizeof each[0]; i++)
        for (int value = -3; value <= 3; value++) {
            int held = value;
            long got = each[i](&held);
            printf("%u %d: %ld %d %d\n", i, value, got, held, helped);
        }
    for (int i = 0; i < 2; i++) {
        int held = 5;
        unreadable = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        printf("%ld %d\n", faults(&held, unreadable), held);
    }
    return 0;
}

/*
 * steps HOW: a program that steps itself by EFLAGS.TF through locked instructions.
 *
 * all: prints each step's distance from the function's start. hit: through a split lock, too. set: through sigaction(2). Both print
 * whether a step was seen outside of the images.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

__asm__(".text\n.globl body\n.type body, @function\nbody: .cfi_startproc\n mov $3, %ecx\n"
        "0: mov $1, %eax\n lock xadd %eax, (%rdi)\n mov $5, %eax\n lock incl (%rdi)\n xchg %eax, 4(%rdi)\n test %eax, %eax\n"
        " dec %ecx\n jnz 0b\n lock decl (%rdi)\n mov %ecx, %eax\n ret\n.cfi_endproc\n.size body, . - body\n");
extern char body[];
static unsigned long seen[1000], count;
__attribute__((aligned(64))) static char memory[128];

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    if (count < 1000)
        seen[count++] = (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
}

static void ignore(int number)
{
    (void)number;
}

static void step(bool on)
{
    if (on)
        __asm__ volatile("pushfq\n orq $0x100, (%%rsp)\n popfq" : : : "memory", "cc");
    else
        __asm__ volatile("pushfq\n andq $~0x100, (%%rsp)\n popfq" : : : "memory", "cc");
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "all";
    struct sigaction action = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO}, other = {.sa_handler = ignore};
    int *at = (int *)(memory + (strcmp(how, "hit") ? 0 : 62)), outside = 0;
    Dl_info info;
    sigaction(SIGTRAP, &action, NULL);
    step(true);
    ((int (*)(int *))(void *)body)(at);
    if (!strcmp(how, "set"))
        sigaction(SIGUSR1, &other, NULL);
    step(false);
    for (unsigned long i = 0; i < count; i++) {
        long distance = (long)seen[i] - (long)body;
        outside += !dladdr((void *)seen[i], &info);
        if (!strcmp(how, "all") && distance >= 0 && distance < 60)
            printf("%ld\n", distance);
    }
    printf("%d %d, outside %d\n", at[0], at[1], outside);
    return 0;
}

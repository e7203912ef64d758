/*
 * cramped BYTES PROGRAM: executes PROGRAM in a signal handler, on a stack for signals of so many bytes with nothing below it.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };
static char **program;

static void on_signal(int number)
{
    (void)number;
    execv(program[0], program);
    _exit(9);
}

int main(int argc, char **argv)
{
    size_t size = (size_t)atoi(argv[argc > 2 ? 1 : 0]);
    program = argv + 2;
    char *stack = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(stack, PAGE, PROT_NONE);
    sigaltstack(&(stack_t){.ss_sp = stack + PAGE, .ss_size = size}, NULL);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_signal, .sa_flags = SA_ONSTACK}, NULL);
    raise(SIGUSR1);
    return 8;
}

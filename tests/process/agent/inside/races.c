/*
 * races HOW TIMES: changes the rights of memory while a thread executes there, TIMES times, each in a child of its own, and prints
 * how many of them were killed: 0.
 *
 * text, locked: a page of the program's, without and with locked instructions. same: a page of the program's, whose rights stay the same.
 * turns: code made at run time, after so much of it that nobody keeps count.
 * forks: nobody executes; while a thread maps and unmaps code, children do so too, and say whether that took long.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, SIZE = 16 * PAGE, MANY = 1500, MADE = 50, SLOW_MS = 100 };
typedef void run(int *counter, _Atomic int *stop);

#define LOOPING(name, instruction) \
    __asm__(".pushsection .text." name ", \"ax\"\n .p2align 12\n .globl " name "\n .type " name ", @function\n" name ":\n" \
            " .cfi_startproc\n 1: " instruction "\n cmpl $0, (%rsi)\n je 1b\n ret\n .cfi_endproc\n .size " name ", .-" name "\n" \
            " .p2align 12\n .popsection");
LOOPING("plain_loop", "incl (%rdi)")
LOOPING("locked_loop", "lock incl (%rdi)\n lock addl $1, (%rdi)\n lock xaddl %eax, (%rdi)\n xchgl (%rdi), %eax")
extern run plain_loop, locked_loop;

static int counter;
static _Atomic int stop, begun;

static void *execute(void *code)
{
    begun = 1;
    ((run *)code)(&counter, &stop);
    return NULL;
}

static void *map(int rights)
{
    void *made = mmap(NULL, SIZE, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED)
        _exit(3);
    return made;
}

static void *make_many(void)
{
    char *last = NULL, *all = mmap(NULL, 2L * MANY * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < MANY; i++) {
        last = all + 2L * i * PAGE;
        mprotect(last, PAGE, PROT_READ | PROT_WRITE);
        memcpy(last, (void *)plain_loop, 32);
        mprotect(last, PAGE, PROT_READ | PROT_EXEC);
    }
    return last;
}

static void change(const char *how, void *code)
{
    usleep(500);
    if (!strcmp(how, "turns"))
        for (int i = 0; i < 3000; i++) {
            mprotect(code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
            mprotect(code, PAGE, PROT_READ | PROT_EXEC);
        }
    else if (!strcmp(how, "same"))
        mprotect(code, PAGE, PROT_READ | PROT_EXEC);
    else
        mprotect(code, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    usleep(500);
}

static void race(const char *how)
{
    void *code = !strcmp(how, "locked") ? (void *)locked_loop : !strcmp(how, "turns") ? make_many() : (void *)plain_loop;
    pthread_t thread;
    pthread_create(&thread, NULL, execute, code);
    while (!begun)
        ;
    change(how, code);
    stop = 1;
    pthread_join(thread, NULL);
}

static void *map_and_unmap(void *unused)
{
    for (begun = 1; !stop;)
        munmap(map(PROT_READ | PROT_WRITE | PROT_EXEC), SIZE);
    return unused;
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int in_child(const char *how)
{
    double before = milliseconds();
    if (strcmp(how, "forks")) {
        race(how);
        return 0;
    }
    for (int i = 0; i < MADE; i++)
        munmap(map(PROT_READ | PROT_WRITE | PROT_EXEC), SIZE);
    return milliseconds() - before > SLOW_MS;
}

int main(int argc, char **argv)
{
    int killed = 0, status;
    pthread_t thread;
    if (argc < 3)
        return 2;
    if (!strcmp(argv[1], "forks")) {
        pthread_create(&thread, NULL, map_and_unmap, NULL);
        while (!begun)
            ;
    }
    for (int i = 0; i < atoi(argv[2]); i++) {
        pid_t child = fork();
        if (!child)
            _exit(in_child(argv[1]));
        waitpid(child, &status, 0);
        killed += status != 0;
    }
    printf("%d\n", killed);
    fflush(stdout);
    _exit(0);
}

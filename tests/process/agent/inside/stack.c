/*
 * stack HOW [LIBRARY]: executes a locked instruction (its operand aligned) in memory that nobody has asked to execute, and prints its
 * counter: 1.
 *
 * stack, thread: on the stack of the program, of a thread. library: after a library is opened. data: with personality(2).
 * none: nothing of that, it is executed where it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>

static const unsigned char code[] = {0xf0, 0xff, 0x07, 0xc3}; /* lock inc dword [rdi]; ret */
static int counter;

static void *on_stack(void *unused)
{
    unsigned char copy[sizeof code];
    memcpy(copy, code, sizeof code);
    __asm__ volatile("" :: "r"(copy) : "memory");
    ((void (*)(int *))(void *)copy)(&counter);
    return unused;
}

int main(int argc, char **argv)
{
    const char *how = argv[1];
    pthread_t thread;
    if (argc > 2 && !dlopen(argv[2], RTLD_NOW))
        return 2;
    if (!strcmp(how, "stack") || !strcmp(how, "library")) {
        on_stack(NULL);
    } else if (!strcmp(how, "thread")) {
        pthread_create(&thread, NULL, on_stack, NULL);
        pthread_join(thread, NULL);
    } else if (!strcmp(how, "data")) {
        personality(READ_IMPLIES_EXEC);
        void *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(made, code, sizeof code);
        __asm__ volatile("" :: "r"(made) : "memory");
        ((void (*)(int *))made)(&counter);
    } else {
        counter = 1;
    }
    printf("%d\n", counter);
    return 0;
}

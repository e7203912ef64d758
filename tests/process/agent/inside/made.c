/*
 * made HOW [LIBRARY]: makes code with one locked instruction (its operand aligned), executes it, and lets it go as HOW says.
 * Prints its counter: 3.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };
static const unsigned char code[] = {0xf0, 0x83, 0x07, 0x01, 0xc3}; /* lock add dword [rdi], 1; ret */
static int counter;

static char *make(char *place)
{
    int fixed = place ? MAP_FIXED : 0;
    char *made = mmap(place, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    memcpy(made, code, sizeof code);
    if (made == MAP_FAILED || mprotect(made, PAGE, PROT_READ | PROT_EXEC))
        exit(2);
    return made;
}

static void use(char *made)
{
    for (int i = 0; i < 3; i++)
        ((void (*)(int *))made)(&counter);
}

static void *in_thread(void *unused)
{
    char *made = make(NULL);
    use(made);
    munmap(made, PAGE);
    return unused;
}

int main(int argc, char **argv)
{
    const char *how = argv[1];
    if (!strcmp(how, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, in_thread, NULL);
        pthread_join(thread, NULL);
    } else if (!strcmp(how, "fork") || !strcmp(how, "vfork")) {
        pid_t child = !strcmp(how, "fork") ? fork() : vfork();
        if (!child) {
            use(make(NULL));
            _exit(0);
        }
        waitpid(child, NULL, 0);
        counter = 3;
    } else if (!strcmp(how, "library") && argc > 2) { /* where a closed library was */
        struct link_map *map = dlopen(argv[2], RTLD_NOW);
        char *place = (char *)map->l_addr;
        dlclose(map);
        use(make(place));
    } else if (!strcmp(how, "hole") && argc > 2) { /* in the middle of one that is open */
        struct link_map *map = dlopen(argv[2], RTLD_NOW);
        char *place = (char *)((uintptr_t)dlsym(map, "bump") & -PAGE);
        munmap(place, PAGE);
        use(make(place));
        printf("%d\n", counter);
        fflush(stdout);
        _exit(0);
    } else {
        char *made = make(NULL);
        use(made);
        if (!strcmp(how, "unmap"))
            munmap(made, PAGE);
        else if (!strcmp(how, "over"))
            mmap(made, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        else if (!strcmp(how, "move"))
            mremap(made, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        else if (!strcmp(how, "write"))
            mprotect(made, PAGE, PROT_READ | PROT_WRITE), memset(made, 0, PAGE);
        else if (!strcmp(how, "unreadable"))
            mprotect(made, PAGE, PROT_NONE);
    }
    printf("%d\n", counter);
    fflush(stdout);
    if (!strcmp(how, "exec"))
        execl("/bin/true", "true", NULL);
    if (!strcmp(how, "raw"))
        syscall(SYS_exit_group, 0);
    if (!strcmp(how, "inline"))
        __asm__ volatile("xor %%edi, %%edi; mov $231, %%eax; syscall" ::: "rax", "rdi", "rcx", "r11");
    if (!strcmp(how, "kill"))
        raise(SIGKILL);
    if (!strcmp(how, "abort"))
        abort();
    return 0;
}

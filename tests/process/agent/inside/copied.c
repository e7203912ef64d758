/*
 * copied HOW WHAT [LIBRARY]: executes a copy of code that has locked instructions, elsewhere than where it was loaded.
 *
 * WHAT: one (functions, each alone), cramped (those with an island in another), all (from a page before the first to a
 * page behind the last), of the program or of LIBRARY, which has the same symbols. HOW: where the copy lies and how it becomes executable. Prints the results.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };
typedef int function(int *, int);

/* Room for a jump; a short site that needs a neighbour; two so cramped that they need an island. */
__asm__(
    ".text\n.p2align 12\n.skip 4096, 0xcc\n"
    ".globl wide\n.type wide, @function\nwide: .cfi_startproc\n mov %esi, %eax\n lock xadd %eax, (%rdi)\n add %esi, %eax\n ret\n"
    ".cfi_endproc\n.size wide, . - wide\n"
    ".globl short_\n.type short_, @function\nshort_: .cfi_startproc\n lock incl (%rdi)\n mov (%rdi), %eax\n add %esi, %eax\n ret\n"
    ".cfi_endproc\n.size short_, . - short_\n"
    ".globl tiny\n.type tiny, @function\ntiny: .cfi_startproc\n xchg %esi, (%rdi)\n ret\n.cfi_endproc\n.size tiny, . - tiny\n"
    ".globl tight\n.type tight, @function\ntight: .cfi_startproc\n xchg %eax, (%rdi)\n ret\n.cfi_endproc\n.size tight, . - tight\n"
    ".globl room\n.type room, @function\nroom: .cfi_startproc\n mov $1, %eax\n mov $2, %ecx\n mov $3, %edx\n lea 7(%rsi), %eax\n ret\n"
    ".cfi_endproc\n.size room, . - room\n"
    ".globl last\n.type last, @function\nlast: .cfi_startproc\n ret\n.cfi_endproc\n.size last, . - last\n"
    ".p2align 12\n.skip 4096, 0xcc\n");
extern char wide[], short_[], tiny[], tight[], room[], last[];
static char *const names[] = {"wide", "short_", "tiny", "tight", "room"};
static char *starts[6];

#ifndef LIBRARY
static void *checked(void *place, const char *what)
{
    if (place == MAP_FAILED) {
        printf("%s: %s\n", what, strerror(errno));
        exit(2);
    }
    return place;
}

/* `first`: where in it the function `wide` begins, for a child to try. */
static void *executable(const char *how, const void *from, size_t size, size_t first)
{
    size_t whole = (size + PAGE - 1) & -(size_t)PAGE;
    int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    if (!strcmp(how, "rwx")) {
        void *to = checked(mmap(NULL, whole, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
        return memcpy(to, from, size);
    }
    if (!strcmp(how, "memfd") || !strcmp(how, "file") || !strcmp(how, "shared")) {
        char name[] = "/tmp/copied-XXXXXX";
        int file = !strcmp(how, "file") ? mkstemp(name) : memfd_create("code", 0);
        if (!strcmp(how, "file"))
            unlink(name);
        if (write(file, from, size) != (ssize_t)size || ftruncate(file, (off_t)whole))
            exit(2);
        int kind = !strcmp(how, "shared") ? MAP_SHARED : MAP_PRIVATE;
        return checked(mmap(NULL, whole, PROT_READ | PROT_EXEC, kind, file, 0), "mmap");
    }
    char *to = checked(mmap(NULL, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    memcpy(to, from, size);
    if (!strcmp(how, "parts")) { /* page by page, as a JIT grows; then all of it once more */
        for (size_t at = 0; at < whole; at += PAGE)
            if (mprotect(to + at, PAGE, PROT_READ | PROT_EXEC))
                exit(2);
        if (mprotect(to, whole, all))
            exit(2);
    } else if (!strcmp(how, "only")) {
        if (mprotect(to, whole, PROT_EXEC))
            exit(2);
    } else if (!strcmp(how, "all")) {
        if (mprotect(to, whole, all))
            exit(2);
    } else if (!strcmp(how, "pkey")) {
        if (syscall(SYS_pkey_mprotect, to, whole, PROT_READ | PROT_EXEC, -1))
            exit(2);
    } else if (!strcmp(how, "fork")) {
        if (!fork())
            _exit(mprotect(to, whole, PROT_READ | PROT_EXEC) || ((function *)(to + first))((int[]){40}, 2) != 42);
        int status;
        wait(&status);
        printf("child %d\n", status);
        if (mprotect(to, whole, PROT_READ | PROT_EXEC))
            exit(2);
    } else if (!strcmp(how, "moved")) { /* made executable, then moved */
        if (mprotect(to, whole, PROT_READ | PROT_EXEC))
            exit(2);
        char *there = checked(mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
        to = checked(mremap(to, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, there), "mremap");
    } else if (mprotect(to, whole, PROT_READ | PROT_EXEC)) {
        exit(2);
    }
    return to;
}

int main(int argc, char **argv)
{
    void *library = argc > 3 ? dlopen(argv[3], RTLD_NOW) : NULL;
    char *own[] = {wide, short_, tiny, tight, room, last};
    for (int i = 0; i < 6; i++)
        starts[i] = library ? dlsym(library, i == 5 ? "last" : names[i]) : own[i];
    char *begin = starts[0] - PAGE;
    size_t size = (size_t)(starts[5] - begin) + PAGE;
    char *all = !strcmp(argv[2], "all") ? executable(argv[1], begin, size, PAGE) : NULL;
    int from = !strcmp(argv[2], "cramped") ? 2 : 0, to = !strcmp(argv[2], "one") ? 2 : 5;
    for (int i = from; i < to; i++) {
        int value = 5;
        char *copy = all ? all + (starts[i] - begin) : executable(argv[1], starts[i], (size_t)(starts[i + 1] - starts[i]), 0);
        int result = ((function *)copy)(&value, 3 + i);
        printf("%s %d %d\n", names[i], i == 2 || i == 3 ? 0 : result, i == 3 ? 0 : value);
    }
    return 0;
}
#endif

/*
 * edited HOW [FILE OFFSET]: changes the constant in code that holds locked instructions, as a loader or a hot patcher does, and
 * executes it. HOW: own (its own text, made writable and executable), turns (writable, then executable), file (a private
 * mapping of an ELF file, changed before it is executable), site (the locked instruction itself becomes another).
 * Prints what the code returns and its counter.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096 };
__asm__(".text\n.p2align 12\n.globl edit\n.type edit, @function\nedit: .cfi_startproc\n lock incl (%rdi)\n"
        "mov $1, %eax\n lock incl (%rdi)\n lock addl $1, (%rdi)\n nop\n nop\n ret\n"
        ".cfi_endproc\n.size edit, . - edit\n.p2align 12\n");
extern unsigned char edit[];
#ifndef LIBRARY

int main(int argc, char **argv)
{
    const char *how = argv[1];
    unsigned char *code = edit;
    int counter = 0, before = ((int (*)(int *))edit)(&counter), new = 42;
    if (!strcmp(how, "file")) {
        int file = open(argv[2], O_RDONLY);
        code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, argc > 3 ? strtol(argv[3], NULL, 0) : 0);
        if (code == MAP_FAILED)
            return 2;
    } else if (mprotect(code, PAGE, PROT_READ | PROT_WRITE | (strcmp(how, "turns") ? PROT_EXEC : 0))) {
        return 2;
    }
    if (!strcmp(how, "site"))
        memcpy(code, "\xf0\xff\x0f", 3); /* lock decl (%rdi) */
    else
        memcpy(code + 4, &new, 4);
    if (mprotect(code, PAGE, PROT_READ | PROT_EXEC))
        return 2;
    int after = ((int (*)(int *))code)(&counter);
    printf("%d %d %d\n", before, after, counter);
    return 0;
}
#endif

/*
 * again HOW: maps its own text a second time, from the file that /proc/self/maps names, and executes it there. HOW: private,
 * shared, later (readable, then made executable), fixed (over itself), read (the file's bytes, copied), exe (from /proc/self/exe,
 * by its segment). Prints 3, the counter.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

__asm__(".text\n.globl add\n.type add, @function\nadd: .cfi_startproc\n lock addl $1, (%rdi)\n ret\n.cfi_endproc\n.size add, . - add\n");
extern char add[];
static unsigned long start, end, offset;
static char path[4096];

static void find(void)
{
    char line[4400];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %*s %lx %*s %*s %4095[^\n]", &start, &end, &offset, path) == 4 && start <= (unsigned long)add &&
            (unsigned long)add < end)
            break;
    fclose(maps);
}

static int find_segment(struct dl_phdr_info *image, size_t size, void *unused)
{
    (void)size, (void)unused;
    for (int i = 0; i < image->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &image->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X) {
            start = image->dlpi_addr + (segment->p_vaddr & -4096ul);
            end = image->dlpi_addr + segment->p_vaddr + segment->p_filesz;
            offset = segment->p_offset & -4096ul;
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "private";
    if (!strcmp(how, "exe"))
        dl_iterate_phdr(find_segment, strcpy(path, "/proc/self/exe"));
    else
        find();
    size_t size = end - start;
    int file = open(path, O_RDONLY), counter = 0;
    int kind = !strcmp(how, "shared") ? MAP_SHARED : MAP_PRIVATE, first = strcmp(how, "later") ? PROT_READ | PROT_EXEC : PROT_READ;
    char *text;
    if (!strcmp(how, "read")) {
        text = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pread(file, text, size, (off_t)offset) < 1 || mprotect(text, size, PROT_READ | PROT_EXEC))
            return 2;
    } else if (!strcmp(how, "fixed")) {
        text = mmap((void *)start, size, first, MAP_PRIVATE | MAP_FIXED, file, (off_t)offset);
    } else {
        text = mmap(NULL, size, first, kind, file, (off_t)offset);
    }
    if (text == MAP_FAILED || (!strcmp(how, "later") && mprotect(text, size, PROT_READ | PROT_EXEC)))
        return 2;
    for (int i = 0; i < 3; i++)
        ((void (*)(int *))(text + ((unsigned long)add - start)))(&counter);
    printf("%d\n", counter);
    return 0;
}

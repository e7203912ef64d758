/*
 * jitpages KIND N: makes N pages executable as JIT compilers do. `written`: each a new mapping, written before;
 * `untouched`: each new, made executable before anything is written; `toggled`: one page, N times; `shared`: as
 * `untouched`, shared with other processes. Each page is followed by one that is not executable, so that none merge.
 *
 * Expected: no split locks; exit status 0, 1 when a call fails.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 1;
    int written = !strcmp(argv[1], "written"), toggled = !strcmp(argv[1], "toggled");
    int sharing = strcmp(argv[1], "shared") ? MAP_PRIVATE : MAP_SHARED;
    char *page = NULL;
    for (int i = 0; i < atoi(argv[2]); i++) {
        if (!page || !toggled)
            page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
            return 1;
        if (toggled && mprotect(page, 4096, PROT_READ | PROT_WRITE))
            return 1;
        if (written || toggled)
            page[0] = (char)0xc3;
        if (mprotect(page, 4096, written || toggled ? PROT_READ | PROT_EXEC : PROT_READ | PROT_WRITE | PROT_EXEC))
            return 1;
    }
    _exit(0);
}

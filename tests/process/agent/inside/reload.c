/*
 * reload SEED STEPS LIBRARY...: opens and closes libraries in a random order, so that they come to lie where others were, and
 * has each do its work at every step. Prints a checksum, which depends on every result.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { MOST = 64 };
static uint64_t state;

static unsigned next(unsigned below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(state >> 33) % below;
}

int main(int argc, char **argv)
{
    void *open[MOST] = {NULL}, *blocks[MOST] = {NULL};
    uint32_t sum = 0;
    int count = argc - 3;
    state = strtoull(argv[1], NULL, 10);
    for (int step = 0; step < atoi(argv[2]); step++) {
        int i = (int)next((unsigned)count), b = (int)next(MOST);
        if (open[i]) {
            dlclose(open[i]);
            open[i] = NULL;
        } else if (!(open[i] = dlopen(argv[3 + i], next(2) ? RTLD_NOW : RTLD_LAZY))) {
            puts(dlerror());
            return 2;
        }
        if (next(4) == 0) { /* something of the program's may take the place instead */
            if (blocks[b])
                munmap(blocks[b], 1 << 16), blocks[b] = NULL;
            else
                memset(blocks[b] = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 0xcc, 1 << 16);
        }
        for (int k = 0; k < count; k++) {
            uint32_t (*work)(uint32_t *) = open[k] ? (uint32_t(*)(uint32_t *))dlsym(open[k], "work") : NULL;
            uint32_t value = (uint32_t)step;
            if (work)
                sum = sum * 31 + work(&value) + value;
        }
    }
    printf("%u\n", sum);
    return 0;
}

/*
 * closing LIBRARY...: opens each, has it do its work (`work`, or `bump` with an operand that crosses a line if SPLIT is defined),
 * and closes it. Prints each one's result.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

#ifndef SPLIT
#define SPLIT 0
#endif

int main(int argc, char **argv)
{
    __attribute__((aligned(64))) static char memory[128];
    for (int i = 1; i < argc; i++) {
        void *library = dlopen(argv[i], RTLD_NOW);
        if (!library) {
            puts(dlerror());
            return 2;
        }
        int (*work)(int *) = (int (*)(int *))dlsym(library, "work"), (*bump)(int *) = (int (*)(int *))dlsym(library, "bump");
        int value = i;
        if (work)
            printf("%d %d\n", work(&value), value);
        for (int k = 0; bump && k < SPLIT; k++)
            bump((int *)(memory + 62));
        if (dlclose(library))
            return 3;
    }
    return 0;
}

/* places WHERE FILE: one split lock in memory of each kind: heap, stack, thread (its stack), mapped, shared, file, data. */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

__attribute__((aligned(64))) static char data[128];

static void split(void *memory)
{
    char *line = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    __atomic_fetch_add((int *)(line + 62), 1, __ATOMIC_SEQ_CST);
}

static void *on_stack(void *argument)
{
    char memory[256];
    memset(memory, 0, sizeof memory);
    split(memory);
    return argument;
}

int main(int argc, char **argv)
{
    const char *where = argv[argc > 1];
    pthread_t thread;
    int file = open(argv[2], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 4096))
        return 2;
    if (!strcmp(where, "heap"))
        split(malloc(256));
    else if (!strcmp(where, "stack"))
        on_stack(NULL);
    else if (!strcmp(where, "thread"))
        pthread_create(&thread, NULL, on_stack, NULL), pthread_join(thread, NULL);
    else if (!strcmp(where, "data"))
        split(data);
    else
        split(mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                   !strcmp(where, "mapped") ? MAP_PRIVATE | MAP_ANONYMOUS
                   : !strcmp(where, "shared") ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED,
                   !strcmp(where, "file") ? file : -1, 0));
    return 0;
}

/* wander: takes five split locks with code that lies at another address each time it is run. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

static _Alignas(64) char memory[128];

int main(void)
{
    static const unsigned char code[] = {0xf0, 0xff, 0x07, 0xc3}; /* lock incl (%rdi); ret */
    uint64_t chance;
    if (getrandom(&chance, sizeof chance, 0) != sizeof chance)
        return 2;
    void *place = mmap((void *)(0x100000000000 + (chance >> 30 << 12)), 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED)
        return 2;
    memcpy(place, code, sizeof code);
    for (int i = 0; i < 5; i++)
        ((void (*)(void *))place)(memory + 62);
    printf("wandered\n");
    return 0;
}

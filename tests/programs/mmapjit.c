/*
 * mmapjit: writes `mov eax, esi; lock xadd dword ptr [rdi], eax; ret` into an anonymous page and calls it, as a JIT
 * compiler does.
 *
 * Expected: 2 split locks, in code that no file holds. Prints `ok`; exit status 0, 1 when wrong.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void)
{
    static const unsigned char code[] = {0x89, 0xf0, 0xf0, 0x0f, 0xc1, 0x07, 0xc3};
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        perror("mmapjit");
        return 1;
    }
    memcpy(page, code, sizeof code);
    int32_t (*xadd)(counter *, int32_t) = (int32_t (*)(counter *, int32_t))page;
    int good = xadd(CROSSING, 1) == 0 && xadd(CROSSING, 2) == 1 && *CROSSING == 3;
    puts(good ? "ok" : "wrong");
    return !good;
}

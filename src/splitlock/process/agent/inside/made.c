/* made.c: executable memory without a file: code that is made at run time. It is not watched; what of it looks like a locked
 * instruction is kept for the report, before it is unmapped and at the program's end. */
#include "agent.h"

enum { RANGES = 256, MOST = 64 << 20, SPINS = 100000 };

static struct {
    uint64_t start, end;
} ranges[RANGES];
_Atomic uint32_t range_count; /* entry.S asks for it before munmap */
static _Atomic uint32_t locked;

/* Not for ever: in a forked child nobody may be left to unlock it. */
static bool lock(void)
{
    for (int i = 0; i < SPINS; i++) {
        uint32_t open = 0;
        if (atomic_compare_exchange_weak(&locked, &open, 1))
            return true;
        __builtin_ia32_pause();
    }
    return false;
}

static void unlock(void)
{
    atomic_store(&locked, 0);
}

static uint64_t total(void)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < range_count; i++)
        bytes += ranges[i].end - ranges[i].start;
    return bytes;
}

/* Whether it has been known for some time. */
bool is_made(uint64_t start, uint64_t size)
{
    for (uint32_t i = 0; i < range_count; i++)
        if (ranges[i].start <= start && start + size <= ranges[i].end)
            return true;
    return false;
}

/* So many bytes of made code are in this process now. */
void note_made_bytes(uint64_t bytes)
{
    uint64_t most = atomic_load(&run->made_bytes);
    while (bytes > most && !atomic_compare_exchange_strong(&run->made_bytes, &most, bytes))
        ;
}

void made_code(uint64_t start, uint64_t size)
{
    uint64_t end = (start + size + PAGE - 1) & -(uint64_t)PAGE;
    if (!lock())
        return;
    for (uint32_t i = 0; i < range_count; i++) /* take in what it touches */
        if (ranges[i].start <= end && start <= ranges[i].end) {
            start = ranges[i].start < start ? ranges[i].start : start;
            end = ranges[i].end > end ? ranges[i].end : end;
            ranges[i] = ranges[range_count - 1];
            range_count--;
            i = -1U; /* from the beginning: it is larger now */
        }
    if (range_count < RANGES) {
        ranges[range_count].start = start;
        ranges[range_count].end = end;
        range_count++;
    }
    note_made_bytes(total());
    unlock();
}

/* ... of up to four prefixes, then an opcode that takes LOCK (SDM vol. 2A, LOCK) with a memory operand. */
static bool may_be_locked(const uint8_t *at)
{
    for (int i = 0; i < 4 && (*at == 0xf0 || *at == 0x66 || *at == 0x67 || *at == 0xf2 || *at == 0xf3 || *at == 0x2e || *at == 0x3e ||
                              *at == 0x64 || *at == 0x65 || *at == 0x26 || *at == 0x36 || (*at & 0xf0) == 0x40); i++)
        at++;
    if (at[0] == 0x0f)
        return at[2] < 0xc0 && (at[1] == 0xb1 || at[1] == 0xc1 || at[1] == 0xab || at[1] == 0xb3 || at[1] == 0xbb ||
                                at[1] == 0xba || at[1] == 0xc7);
    return at[1] < 0xc0 && ((at[0] < 0x38 && (at[0] & 7) == 1) || at[0] == 0x81 || at[0] == 0x83 || at[0] == 0x87 ||
                            at[0] == 0xf7 || at[0] == 0xff);
}

static void keep(const uint8_t *from, const uint8_t *end, const uint8_t *at)
{
    uint32_t number = atomic_fetch_add(&run->finds_used, 1);
    if (number >= FINDS) {
        atomic_store(&run->finds_used, FINDS + 1);
        return;
    }
    struct find *find = &run->finds[number];
    uint64_t before = (uint64_t)(at - from) < FIND_BEFORE ? (uint64_t)(at - from) : FIND_BEFORE;
    uint64_t after = (uint64_t)(end - at) < sizeof find->code - FIND_BEFORE ? (uint64_t)(end - at) : sizeof find->code - FIND_BEFORE;
    memcpy(find->code, at - before, before + after);
    find->at = (uint8_t)before;
    find->size = (uint8_t)(before + after);
}

static void look(uint64_t start, uint64_t end)
{
    if (is_filtered) {
        atomic_store(&run->finds_used, FINDS + 1);
        return;
    }
    uint8_t *piece = (uint8_t *)call6(NR_MMAP, 0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(piece))
        return;
    for (uint64_t at = start; at < end && at - start < MOST; at += PAGE) {
        struct iovec here = {piece, 2 * PAGE}, there = {(const void *)at, end - at < 2 * PAGE ? end - at : 2 * PAGE};
        long size = call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0);
        if (FAILED(size)) /* it may not be read, or is gone already */
            continue;
        for (long i = 0; i < size && i < PAGE; i++)
            if (piece[i] == 0xf0 && i + 16 < size && may_be_locked(piece + i + 1))
                keep(piece, piece + size, piece + i);
    }
    call2(NR_MUNMAP, (long)piece, 2 * PAGE);
}

/* The process ends, or another program takes its place, where that call does not fail. A child of vfork has the memory of
 * its parent, which goes on. */
void code_ends(bool for_certain)
{
    if (is_filtered) { /* what is not looked at is not known */
        if (range_count)
            atomic_store(&run->finds_used, FINDS + 1);
        return;
    }
    if (own->process && own->process != (uint64_t)call1(NR_GETPID, 0))
        return;
    if (for_certain) {
        code_goes(0, -1UL);
        return;
    }
    if (!lock())
        return;
    for (uint32_t i = 0; i < range_count; i++)
        look(ranges[i].start, ranges[i].end);
    unlock();
}

/* Memory goes away: look at what of it is code, and forget it. */
void code_goes(uint64_t start, uint64_t size)
{
    uint64_t end = size > -start ? -1UL : start + size;
    if (!lock())
        return;
    for (uint32_t i = 0; i < range_count; i++) {
        uint64_t low = ranges[i].start > start ? ranges[i].start : start, high = ranges[i].end < end ? ranges[i].end : end;
        if (low >= high)
            continue;
        look(low, high);
        if (low > ranges[i].start && high < ranges[i].end && range_count < RANGES) {
            ranges[range_count].start = high;
            ranges[range_count].end = ranges[i].end;
            range_count++;
        }
        if (low > ranges[i].start)
            ranges[i].end = low;
        else if (high < ranges[i].end)
            ranges[i].start = high;
        else
            ranges[i--] = ranges[--range_count];
    }
    unlock();
}

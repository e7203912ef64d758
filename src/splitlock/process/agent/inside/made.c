/* made.c: executable memory without a file: code that is made at run time. It is not watched; what of it looks like a locked
 * instruction is kept for the report, before it is unmapped and at the program's end. */
#include "agent.h"

enum { RANGES = 1024, MOST = 64 << 20, SPINS = 100000, AT_ONCE = 16, READ_IMPLIES_EXEC = 0x400000, LINE = 512 };

struct range {
    uint64_t start, end;
};
static struct range ranges[RANGES];
_Atomic uint32_t range_count; /* entry.S asks for it before munmap */
static _Atomic uint64_t besides; /* bytes of what is in no range */
static uint64_t gaps;            /* bytes that are in one, and are no code */

/* It lies where the kernel wipes it in a forked child: there nobody is left to unlock it. Held for short, but its holder may
 * have to wait for a processor. */
static bool lock(void)
{
    for (int i = 0; i < SPINS; i++) {
        uint32_t open = 0;
        if (atomic_compare_exchange_weak(&own->made_lock, &open, 1))
            return true;
        __builtin_ia32_pause();
    }
    return false;
}

static void unlock(void)
{
    atomic_store(&own->made_lock, 0);
}

static uint64_t total(void)
{
    uint64_t bytes = atomic_load(&besides);
    for (uint32_t i = 0; i < range_count; i++)
        bytes += ranges[i].end - ranges[i].start;
    return bytes > gaps ? bytes - gaps : 0;
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

/* Nobody will look at all of the code: how many locked instructions it holds is not known. */
static void is_not_looked_at(void)
{
    atomic_store(&run->finds_used, FINDS + 1);
}

/* Code that no range can be kept of. */
static void note_besides(uint64_t bytes)
{
    atomic_fetch_add(&besides, bytes);
    is_not_looked_at();
    note_made_bytes(total());
}

static uint64_t distance(const struct range *range, uint64_t start, uint64_t end)
{
    return range->start > end ? range->start - end : start > range->end ? start - range->end : 0;
}

/* Where there is no room for one more range, the nearest one takes in what lies between, too. */
static void add(uint64_t start, uint64_t end)
{
    if (range_count < RANGES) {
        ranges[range_count] = (struct range){start, end};
        range_count++;
        return;
    }
    struct range *nearest = ranges;
    for (uint32_t i = 1; i < RANGES; i++)
        if (distance(&ranges[i], start, end) < distance(nearest, start, end))
            nearest = &ranges[i];
    gaps += distance(nearest, start, end);
    nearest->start = start < nearest->start ? start : nearest->start;
    nearest->end = end > nearest->end ? end : nearest->end;
    is_not_looked_at();
}

void made_code(uint64_t start, uint64_t size)
{
    uint64_t end = (start + size + PAGE - 1) & -(uint64_t)PAGE;
    if (!lock()) {
        note_besides(end - start);
        return;
    }
    for (uint32_t i = 0; i < range_count; i++) /* take in what it touches */
        if (ranges[i].start <= end && start <= ranges[i].end) {
            start = ranges[i].start < start ? ranges[i].start : start;
            end = ranges[i].end > end ? ranges[i].end : end;
            ranges[i] = ranges[range_count - 1];
            range_count--;
            i = -1U; /* from the beginning: it is larger now */
        }
    add(start, end);
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
    if (atomic_load(&run->finds_used) > FINDS)
        return;
    if (is_filtered) {
        is_not_looked_at();
        return;
    }
    uint8_t *piece = (uint8_t *)call6(NR_MMAP, 0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(piece)) {
        is_not_looked_at();
        return;
    }
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
            is_not_looked_at();
        return;
    }
    if (own->process && own->process != (uint64_t)call1(NR_GETPID, 0))
        return;
    if (for_certain) {
        code_goes(0, -1UL);
        return;
    }
    for (uint32_t i = 0;; i++) {
        if (!lock()) {
            is_not_looked_at();
            return;
        }
        struct range range = i < range_count ? ranges[i] : (struct range){0, 0};
        unlock();
        if (!range.end)
            return;
        look(range.start, range.end);
    }
}

/* Cut some of the memory from start to end out of the ranges; gives how many pieces, AT_ONCE where there may be more. */
static int cut(uint64_t start, uint64_t end, struct range pieces[AT_ONCE])
{
    int count = 0;
    for (uint32_t i = 0; i < range_count && count < AT_ONCE; i++) {
        struct range range = ranges[i];
        uint64_t low = range.start > start ? range.start : start, high = range.end < end ? range.end : end;
        if (low >= high)
            continue;
        pieces[count++] = (struct range){low, high};
        if (low > range.start) {
            ranges[i].end = low;
            if (high < range.end)
                add(high, range.end);
        } else if (high < range.end) {
            ranges[i].start = high;
        } else {
            ranges[i--] = ranges[range_count - 1];
            range_count--;
        }
    }
    return count;
}

/* Memory goes away: forget what of it is code, and look at it. That takes long: nobody waits meanwhile. */
void code_goes(uint64_t start, uint64_t size)
{
    uint64_t end = size > -start ? -1UL : start + size;
    struct range pieces[AT_ONCE];
    int count;
    do {
        if (!lock()) {
            is_not_looked_at();
            return;
        }
        count = cut(start, end, pieces);
        unlock();
        for (int i = 0; i < count; i++)
            look(pieces[i].start, pieces[i].end);
    } while (count == AT_ONCE);
}

/* Bytes of mappings that can be written and executed. */
static uint64_t writable_code(void)
{
    char text[LINE];
    uint64_t bytes = 0;
    struct maps maps;
    struct mapping mapping = {.name = NULL};
    if (!open_maps(&maps, text, sizeof text))
        return 0;
    while (next_mapping(&maps, &mapping))
        bytes += mapping.writes && mapping.executes ? mapping.end - mapping.start : 0;
    close_maps(&maps);
    return bytes;
}

/* Memory that nobody has asked to execute can be executed: any of it may be code. */
static void note_writable_code(void)
{
    uint64_t bytes = is_filtered ? PAGE : writable_code(), before = atomic_load(&besides);
    bytes = bytes < PAGE ? PAGE : bytes; /* ld.so may be about to see to it */
    note_besides(bytes > before ? bytes - before : 0);
}

/* The program, or a library, has these headers: without PT_GNU_STACK, or with PF_X there, the kernel or ld.so makes the stack
 * executable. */
void note_stack(const struct segment *segments, uint64_t count)
{
    bool executable = true;
    for (uint64_t i = 0; i < count; i++)
        if (segments[i].type == PT_GNU_STACK)
            executable = segments[i].flags & PF_X;
    if (executable)
        note_writable_code();
}

/* The program sets its personality(2), or asks for it. No execution inherits this bit (arch/x86/kernel/process_64.c). */
void note_personality(uint64_t personality)
{
    if ((uint32_t)personality != 0xffffffff && personality & READ_IMPLIES_EXEC)
        note_writable_code();
}

/* placing.c: an image's arena is mapped near it, and its patches are put in; and the end of both. */
#include "agent.h"

enum { TRIES = 20, JUMP = 0xe9 };
static const int64_t REACH = (1L << 31) - (1 << 26); /* of a 32-bit displacement, with room for the arena */

static uint64_t map_arena(const struct image *image, uint64_t bias, long file)
{
    uint64_t want = image->arena + bias;
    for (int i = 0; i < TRIES; i++) {
        int64_t away = i ? (2L << 20) << (i - 1) / 2 : 0;
        uint64_t at = i % 2 ? want - (uint64_t)away : want + (uint64_t)away;
        int64_t from_low = (int64_t)(at - image->low - bias);
        if (from_low >= REACH - (int64_t)(image->high - image->low) || from_low <= -REACH)
            break;
        long got = call6(NR_MMAP, (long)at, image->total, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, PAGE);
        if (!FAILED(got) && (uint64_t)got != at) { /* before Linux 4.17 it is a mere hint */
            call2(NR_MUNMAP, got, image->total);
            continue;
        }
        if (!FAILED(got))
            return (uint64_t)got;
    }
    return 0;
}

/* The file that was looked up by its name may be another than the one that ld.so has mapped just before: one that has come in
 * its place. A build-id tells; without one, the bytes under every patch. */
static bool is_unchanged(const struct arena *arena)
{
    const struct image *image = arena->image;
    if (image->id)
        return !memcmp((const void *)(image->id + arena->bias), image->id_bytes, image->id_size);
    const struct patch *patches = table(arena, image->patches);
    for (uint32_t i = 0; i < image->patch_count; i++) {
        const char *old = (const char *)arena->begin + patches[i].bytes + patches[i].size;
        if (memcmp((const void *)(patches[i].address + arena->bias), old, patches[i].size))
            return false;
    }
    return true;
}

static void add(uint64_t at, uint64_t moved)
{
    uint32_t value;
    memcpy(&value, (void *)at, 4);
    value += (uint32_t)moved;
    memcpy((void *)at, &value, 4);
}

/* The arena may lie elsewhere than it was meant to, by `moved` bytes: displacements in it and to it change. */
static bool write_patches(const struct arena *arena, uint64_t moved)
{
    const struct image *image = arena->image;
    const uint32_t *fields = table(arena, image->fields);
    const struct patch *patches = table(arena, image->patches);
    const struct text *texts = table(arena, image->texts);
    if (call3(NR_MPROTECT, (long)arena->begin, image->code_size, PROT_READ | PROT_WRITE))
        return false;
    for (uint32_t i = 0; i < image->field_count; i++)
        add(arena->begin + fields[i], -moved);
    if (call3(NR_MPROTECT, (long)arena->begin, image->code_size, PROT_READ | PROT_EXEC))
        return false;
    for (uint32_t i = 0, next = 0; i < image->text_count; i++) {
        uint64_t at = texts[i].address + arena->bias;
        if (call3(NR_MPROTECT, (long)at, (long)texts[i].size, PROT_READ | PROT_WRITE))
            return false; /* what is patched already works */
        for (; next < image->patch_count && patches[next].address < texts[i].address + texts[i].size; next++) {
            memcpy((void *)(patches[next].address + arena->bias), (void *)(arena->begin + patches[next].bytes), patches[next].size);
            if (*(const uint8_t *)(patches[next].address + arena->bias) == JUMP) /* else it is one to an island */
                add(patches[next].address + arena->bias + 1, moved);
        }
        if (call3(NR_MPROTECT, (long)at, (long)texts[i].size, PROT_READ | PROT_EXEC))
            return false;
    }
    return true;
}

static bool map_patches(const struct arena *arena, long file)
{
    const struct text *texts = table(arena, arena->image->texts);
    for (uint32_t i = 0; i < arena->image->text_count; i++)
        if (FAILED(call6(NR_MMAP, (long)(texts[i].address + arena->bias), (long)texts[i].size, PROT_READ | PROT_EXEC,
                         MAP_PRIVATE | MAP_FIXED, file, (long)texts[i].at)))
            return false; /* what is mapped already works */
    return true;
}

bool place(struct arena *arena, struct seen_image *seen, const struct image *image, long file)
{
    uint64_t begin = map_arena(image, arena->bias, file);
    if (!begin) {
        seen->reason = NOT_PLACED;
        return false;
    }
    struct page *page = (void *)(begin + image->total - PAGE);
    arena->begin = begin;
    arena->image = (const void *)(begin + image->code_size);
    arena->end = begin + image->code_size;
    uint64_t moved = begin - image->arena - arena->bias;
    enum reason reason = NO_REASON;
    uint32_t counters = atomic_load(&seen->counters); /* others may write there what they like */
    if (counters > COUNTERS || image->sites > COUNTERS - counters)
        reason = NO_COUNTERS;
    else if (call3(NR_MPROTECT, (long)page, PAGE, PROT_READ | PROT_WRITE))
        reason = NOT_PLACED;
    else if (!is_unchanged(arena))
        reason = CHANGED;
    if (reason) {
        arena->image = NULL;
        call2(NR_MUNMAP, (long)begin, image->total);
        seen->reason = reason;
        return false;
    }
    page->hit = (uint64_t)hit_entry;
    page->call = (uint64_t)call_entry;
    page->leave = (uint64_t)leave_entry;
    page->counters = (uint64_t)&run->counters[counters];
    page->seen = (uint64_t)own->seen;
    page->id = (uint64_t)arena->seen << 20;
    know_arena(arena);
    if (!(moved || is_traced ? write_patches(arena, moved) : map_patches(arena, file))) {
        seen->reason = NOT_MAPPED;
        return false; /* the arena stays: some of the text may be patched */
    }
    return true;
}

/* Arenas go whose images are closed *and* unmapped: at the program's end ld.so closes everything, whose code still runs.
 * It is certain where another image, at low..high, has taken the place. */
void free_arenas(uint64_t low, uint64_t high)
{
    for (uint32_t i = 0, n = atomic_load(&arena_count); i < n; i++) {
        bool replaced = arenas[i].low < high && low < arenas[i].high;
        if (arenas[i].closed != 1 || (!replaced && (is_filtered || call3(NR_MSYNC, (long)(arenas[i].low & -PAGE), PAGE, 1) != -ENOMEM)))
            continue;
        const struct image *image = arenas[i].image;
        if (image) {
            uint64_t begin = arenas[i].begin, total = image->total;
            arenas[i].image = NULL;
            call2(NR_MUNMAP, (long)begin, (long)total);
        }
        arenas[i].closed = 2;
    }
}

/* arenas.c: the arenas of this process, by address, and what their tables say. */
#include "agent.h"

struct run *run;
struct own *own;
struct arena arenas[ARENAS];
_Atomic uint32_t arena_count;
static uint64_t lowest = -1UL, highest; /* of all arenas */

struct arena *arena_at(uint64_t address)
{
    if (address < lowest || address >= highest)
        return NULL;
    for (uint32_t i = 0, n = atomic_load(&arena_count); i < n; i++)
        if (arenas[i].image && address >= arenas[i].begin && address < arenas[i].end)
            return &arenas[i];
    return NULL;
}

void know_arena(const struct arena *arena)
{
    if (arena->begin < lowest)
        lowest = arena->begin;
    if (arena->end > highest)
        highest = arena->end;
}

const void *table(const struct arena *arena, uint32_t at)
{
    return (const void *)(arena->begin + at);
}

/* The last entry of a sorted table (of 32-bit words, `width` an entry) whose first word is not above `key`. */
static const uint32_t *search(const uint32_t *words, uint32_t count, uint32_t width, uint32_t key)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (words[middle * width] <= key)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? words + (low - 1) * width : NULL;
}

const struct copy *copy_at(const struct arena *arena, uint32_t offset)
{
    const struct image *image = arena->image;
    const uint32_t *found = search(table(arena, image->copies), image->copy_count, 2, offset);
    return found && *found == offset ? (const struct copy *)found : NULL;
}

const struct resume *resume_at(const struct arena *arena, uint32_t address)
{
    const struct image *image = arena->image;
    const uint32_t *found = search(table(arena, image->resumes), image->resume_count, 2, address);
    return found && *found == address ? (const struct resume *)found : NULL;
}

const struct operand *operand_at(const struct arena *arena, uint32_t offset)
{
    const struct image *image = arena->image;
    const uint32_t *found = search(table(arena, image->operands), image->sites, sizeof(struct operand) / 4, offset);
    return found && *found == offset ? (const struct operand *)found : NULL;
}

/* Whether one may get from an address into a run, past its start, by a step, or is there: an instruction has 15 bytes at most. */
bool leads_into_run(const struct arena *arena, uint32_t address)
{
    const struct image *image = arena->image;
    const uint32_t *found = search(table(arena, image->resumes), image->resume_count, 2, address + 15);
    return found && *found >= address;
}

const struct hook *hook_at(const struct arena *arena, uint32_t offset)
{
    const struct image *image = arena->image;
    const struct hook *hook = (const void *)search(table(arena, image->hooks), image->hook_count, 4, offset);
    return hook && offset < hook->end + 5 ? hook : NULL; /* 5: the jump behind it */
}

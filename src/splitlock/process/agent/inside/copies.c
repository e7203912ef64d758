/* copies.c: patched text that the program copies or maps elsewhere, as V8 does with its builtins: there our jumps would lead
 * astray, so it gets its own bytes. */
#include "agent.h"

enum { JUMP = 0xe9, SHORT = 256, CHUNK = 256 };

/* A patch as it is in this process; false where it is too long for `bytes`. */
static bool write_patch(const struct arena *arena, const struct patch *patch, uint8_t bytes[SHORT])
{
    if (patch->size > SHORT)
        return false;
    memcpy(bytes, table(arena, patch->bytes), patch->size);
    if (bytes[0] == JUMP) {
        uint32_t displacement;
        memcpy(&displacement, bytes + 1, 4);
        displacement += (uint32_t)(arena->begin - arena->image->arena - arena->bias);
        memcpy(bytes + 1, &displacement, 4);
    }
    return true;
}

/* Put the file's own bytes in place of each patch that is found at its address plus `away`, within from..to. */
static void restore(const struct arena *arena, uint64_t away, uint64_t from, uint64_t to)
{
    const struct patch *patches = table(arena, arena->image->patches);
    for (uint32_t i = 0; i < arena->image->patch_count; i++) {
        uint64_t at = patches[i].address + away;
        uint8_t expected[SHORT];
        if (at < from || at + patches[i].size > to || !write_patch(arena, &patches[i], expected))
            continue;
        if (!memcmp((const void *)at, expected, patches[i].size))
            memcpy((void *)at, (const uint8_t *)table(arena, patches[i].bytes) + patches[i].size, patches[i].size);
    }
}

static bool is_there(const struct arena *arena, const struct patch *patch)
{
    uint8_t expected[SHORT], found[SHORT];
    struct iovec here = {found, patch->size}, there = {(const void *)(patch->address + arena->bias), patch->size};
    return write_patch(arena, patch, expected) &&
        call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0) == (long)patch->size &&
        !memcmp(found, expected, patch->size);
}

/* Whether text that we have patched lies there, and not what the program has put in its place. */
bool is_patched(uint64_t start, uint64_t size)
{
    for (uint32_t a = 0, n = atomic_load(&arena_count); a < n; a++) {
        const struct arena *arena = &arenas[a];
        if (!arena->image || arena->closed || arena->high <= start || start + size <= arena->low)
            continue;
        const struct patch *patches = table(arena, arena->image->patches);
        for (uint32_t i = 0; i < arena->image->patch_count; i++) {
            uint64_t at = patches[i].address + arena->bias;
            if (at >= start && at + patches[i].size <= start + size && is_there(arena, &patches[i]))
                return true;
        }
    }
    return false;
}

/* One patch, in the image itself, gives way to the file's own bytes. */
static void restore_patch(const struct arena *arena, const struct patch *patch)
{
    uint64_t at = patch->address + arena->bias, page = at & -(uint64_t)PAGE;
    call3(NR_MPROTECT, (long)page, (long)(at + patch->size - page), PROT_READ | PROT_WRITE | PROT_EXEC);
    memcpy((void *)at, (const uint8_t *)table(arena, patch->bytes) + patch->size, patch->size);
    call3(NR_MPROTECT, (long)page, (long)(at + patch->size - page), PROT_READ | PROT_EXEC);
}

/* The program's own instruction at an address is to be executed where it was, patched or not: this process is about to die. */
void restore_site(const struct arena *arena, uint64_t address)
{
    const struct patch *patches = table(arena, arena->image->patches);
    for (uint32_t i = 0; i < arena->image->patch_count; i++) {
        uint64_t at = patches[i].address + arena->bias;
        if (address >= at && address < at + patches[i].size) {
            restore_patch(arena, &patches[i]);
            return;
        }
    }
}

/* The program is about to change some of its text: what it reads there, and what it leaves, has to be its own. */
void text_changes(uint64_t start, uint64_t size)
{
    for (uint32_t a = 0, n = atomic_load(&arena_count); a < n; a++) {
        struct arena *arena = &arenas[a];
        if (!arena->image || arena->closed || arena->high <= start || start + size <= arena->low)
            continue;
        const struct patch *patches = table(arena, arena->image->patches);
        for (uint32_t i = 0; i < arena->image->patch_count; i++) {
            uint64_t at = patches[i].address + arena->bias;
            if (at + patches[i].size > start && at < start + size && is_there(arena, &patches[i]))
                restore_patch(arena, &patches[i]);
        }
        struct seen_image *seen = &run->images[arena->seen];
        if (!arena->is_changed)
            atomic_fetch_sub(&seen->patched, 1);
        arena->is_changed = true;
        seen->reason = IS_EDITED;
    }
}

/* The patch whose jump has this displacement, or null. */
static const struct patch *patch_by(const struct arena *arena, uint32_t displacement)
{
    const struct image *image = arena->image;
    const struct copy *jumps = table(arena, image->jumps); /* displacement, number of the patch */
    uint32_t low = 0, high = image->jump_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (jumps[middle].offset < displacement)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == image->jump_count || jumps[low].offset != displacement)
        return NULL;
    return (const struct patch *)table(arena, image->patches) + jumps[low].address;
}

static void restore_at(const uint8_t *at, uint64_t start, uint64_t end)
{
    uint32_t displacement;
    memcpy(&displacement, at + 1, 4);
    for (uint32_t a = 0, n = atomic_load(&arena_count); a < n; a++) {
        const struct arena *arena = &arenas[a];
        if (!arena->image)
            continue;
        uint32_t moved = (uint32_t)(arena->begin - arena->image->arena - arena->bias);
        const struct patch *patch = patch_by(arena, displacement - moved);
        if (patch && (uint64_t)at + patch->size <= end)
            restore(arena, (uint64_t)at - patch->address, start, end);
    }
}

/* Memory that can be written, and will be executable: is there a copy of what we have patched? Pages that nobody has
 * touched are not looked at: a program may ask for gigabytes. */
void restore_copies(uint64_t start, uint64_t size)
{
    uint8_t resident[CHUNK];
    size += (start & (PAGE - 1)) + PAGE - 1;
    start &= -(uint64_t)PAGE;
    uint64_t end = (start + size) & -(uint64_t)PAGE;
    for (uint64_t chunk = start; chunk < end; chunk += CHUNK * PAGE) {
        uint64_t pages = (end - chunk) / PAGE < CHUNK ? (end - chunk) / PAGE : CHUNK;
        if (is_filtered) /* it may not be asked */
            memset(resident, 1, sizeof resident);
        else if (call3(NR_MINCORE, (long)chunk, (long)(pages * PAGE), (long)resident))
            continue;
        for (uint64_t page = 0; page < pages; page++)
            for (uint64_t at = chunk + page * PAGE; resident[page] & 1 && at < chunk + (page + 1) * PAGE && at + 5 <= end; at++)
                if (*(const uint8_t *)at == JUMP)
                    restore_at((const uint8_t *)at, start, end);
    }
}

/* Whether the program has mapped an image file of ours, found in /proc/self/maps, where it wanted its own file. */
bool restore_mapping(uint64_t start, uint64_t size, int file, uint64_t offset)
{
    struct stat status;
    if (call2(NR_FSTAT, file, (long)&status))
        return false;
    for (uint32_t a = 0, n = atomic_load(&arena_count); a < n; a++) {
        const struct arena *arena = &arenas[a];
        if (!arena->image || arena->file_inode != status.ino || arena->file_device != status.dev)
            continue;
        const struct text *texts = table(arena, arena->image->texts);
        /* privately, though it may want to share it: what it shares would be our file */
        if (FAILED(call6(NR_MMAP, (long)start, (long)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, (long)offset)))
            return false;
        for (uint32_t t = 0; t < arena->image->text_count; t++)
            if (texts[t].at < offset + size && offset < texts[t].at + texts[t].size)
                restore(arena, start + texts[t].at - offset - texts[t].address, start, start + size);
        call3(NR_MPROTECT, (long)start, (long)size, PROT_READ | PROT_EXEC);
        return true;
    }
    return false;
}

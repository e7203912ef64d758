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

/* As a debugger writes: PR_SET_MDWE and SELinux's execmod let nobody have text writable, but do not forbid this. */
static bool force(uint64_t at, const uint8_t *bytes, uint32_t size)
{
    long file = call4(NR_OPENAT, AT_FDCWD, (long)"/proc/self/mem", O_RDWR | O_CLOEXEC, 0);
    if (FAILED(file))
        return false;
    long written = call4(NR_PWRITE64, file, (long)bytes, size, (long)at);
    call1(NR_CLOSE, file);
    return written == (long)size;
}

/* Writes, where other threads may be executing: what they have fetched, they forget when the kernel takes the right to write away
 * again, which interrupts them. */
static bool write_text(uint64_t at, const uint8_t *bytes, uint32_t size)
{
    uint64_t page = at & -(uint64_t)PAGE;
    if (call3(NR_MPROTECT, (long)page, (long)(at + size - page), PROT_READ | PROT_WRITE | PROT_EXEC))
        return force(at, bytes, size);
    if (size == 2)
        __atomic_store_n((uint16_t *)at, (uint16_t)(bytes[0] | bytes[1] << 8), __ATOMIC_RELEASE);
    else
        memcpy((void *)at, bytes, size);
    call3(NR_MPROTECT, (long)page, (long)(at + size - page), PROT_READ | PROT_EXEC);
    return true;
}

/* One patch, in the image itself, gives way to the file's own bytes. It is entered only at its start, where a thread waits while
 * the rest is changed. */
static void restore_patch(const struct arena *arena, const struct patch *patch)
{
    static const uint8_t wait_here[] = {0xeb, 0xfe};
    uint64_t at = patch->address + arena->bias;
    const uint8_t *own_bytes = (const uint8_t *)table(arena, patch->bytes) + patch->size;
    if (patch->size > 2 && (!write_text(at, wait_here, 2) || !write_text(at + 2, own_bytes + 2, patch->size - 2)))
        return; /* it stays a jump */
    write_text(at, own_bytes, 2);
}

/* The patch that holds an address; or null. */
static const struct patch *patch_at(const struct arena *arena, uint64_t address)
{
    const struct patch *patches = table(arena, arena->image->patches);
    for (uint32_t i = 0; i < arena->image->patch_count; i++)
        if (address - patches[i].address - arena->bias < patches[i].size)
            return &patches[i];
    return NULL;
}

/* Whether a patch of ours is there: where its image is closed, something else may be. */
bool is_patched_at(const struct arena *arena, uint64_t address)
{
    const struct patch *patch = patch_at(arena, address);
    return patch && is_there(arena, patch);
}

/* The program's own instruction at an address is to be executed where it was, patched or not: this process is about to die. */
void restore_site(const struct arena *arena, uint64_t address)
{
    const struct patch *patch = patch_at(arena, address);
    if (patch)
        restore_patch(arena, patch);
}

/* Some of an image's text gets its own bytes back, for good. What the program has put in the place of one that it has closed is
 * the program's. */
static void give_back(const struct arena *arena, uint64_t start, uint64_t end, enum reason reason)
{
    const struct patch *patches = table(arena, arena->image->patches);
    for (uint32_t i = 0; i < 2 * arena->image->patch_count; i++) { /* short jumps before the islands that they lead to */
        const struct patch *patch = &patches[i % arena->image->patch_count];
        uint64_t at = patch->address + arena->bias;
        bool is_turn = (patch->size == 2) == (i < arena->image->patch_count);
        if (is_turn && at + patch->size > start && at < end && is_there(arena, patch))
            restore_patch(arena, patch);
    }
    struct seen_image *seen = &run->images[arena->seen];
    seen->reason = reason;
    atomic_fetch_add(&seen->lost, 1);
}

/* The program is about to change some of its text: what it reads there, and what it leaves, has to be its own. */
void text_changes(uint64_t start, uint64_t size)
{
    for (uint32_t a = 0, n = atomic_load(&arena_count); a < n; a++) {
        const struct arena *arena = &arenas[a];
        if (arena->image && !arena->closed && start < arena->high && arena->low < start + size)
            give_back(arena, start, start + size, IS_EDITED);
    }
}

/* The program moves memory (mremap): an image's text gets its own bytes back first, since its jumps would lead astray. */
void text_moves(uint64_t start, uint64_t size)
{
    for (uint32_t a = 0, n = atomic_load(&arena_count); a < n; a++) {
        struct arena *arena = &arenas[a];
        if (!arena->image || arena->closed || arena->high <= start || start + size <= arena->low || !is_patched(arena->low, arena->high - arena->low))
            continue;
        give_back(arena, arena->low, arena->high, IS_MOVED);
        arena->closed = 3; /* the arena stays, for who is in it */
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

/* The arena, and its patch, that a jump belongs to which lies at another place than it was made for; or null. */
static const struct arena *copied_from(const uint8_t *jump, const struct arena *from, const struct patch **patch)
{
    uint32_t displacement;
    memcpy(&displacement, jump + 1, 4);
    for (const struct arena *arena = from, *end = arenas + atomic_load(&arena_count); arena < end; arena++) {
        if (!arena->image)
            continue;
        uint32_t moved = (uint32_t)(arena->begin - arena->image->arena - arena->bias);
        if ((*patch = patch_by(arena, displacement - moved)))
            return arena;
    }
    return NULL;
}

static void restore_at(const uint8_t *at, uint64_t start, uint64_t end)
{
    const struct patch *patch;
    for (const struct arena *arena = arenas; (arena = copied_from(at, arena, &patch)); arena++)
        if ((uint64_t)at + patch->size <= end)
            restore(arena, (uint64_t)at - patch->address, start, end);
}

/* Which pages anybody has touched: others are not looked at, a program may ask for gigabytes. */
static bool ask_resident(uint64_t start, uint64_t pages, uint8_t resident[CHUNK])
{
    if (is_filtered) /* it may not be asked */
        memset(resident, 1, CHUNK);
    return is_filtered || !call3(NR_MINCORE, (long)start, (long)(pages * PAGE), (long)resident);
}

static uint64_t page_end(uint64_t address)
{
    return (address + PAGE - 1) & -(uint64_t)PAGE;
}

/* Whether there may be a copy of what we have patched in this memory, whatever its rights: they stay as they are. */
bool may_hold_copies(uint64_t start, uint64_t size)
{
    uint8_t resident[CHUNK];
    const struct patch *patch;
    uint64_t end = page_end(start + size);
    bool found = false;
    start &= -(uint64_t)PAGE;
    uint8_t *piece = (uint8_t *)call6(NR_MMAP, 0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(piece))
        return false;
    long self = call1(NR_GETPID, 0);
    for (uint64_t chunk = start; chunk < end && !found; chunk += CHUNK * PAGE) {
        uint64_t pages = (end - chunk) / PAGE < CHUNK ? (end - chunk) / PAGE : CHUNK;
        if (!ask_resident(chunk, pages, resident))
            continue;
        for (uint64_t page = 0; page < pages && !found; page++) {
            if (!(resident[page] & 1))
                continue;
            uint64_t at = chunk + page * PAGE, left = end - at; /* a jump may reach into the next page */
            struct iovec here = {piece, left < PAGE + 4 ? left : PAGE + 4}, there = {(const void *)at, here.size};
            long got = call6(NR_PROCESS_VM_READV, self, (long)&here, 1, (long)&there, 1, 0);
            found = FAILED(got); /* it may not be read as it is */
            for (long i = 0; i < PAGE && i + 5 <= got && !found; i++)
                found = piece[i] == JUMP && copied_from(piece + i, arenas, &patch);
        }
    }
    call2(NR_MUNMAP, (long)piece, 2 * PAGE);
    return found;
}

/* Memory that can be read and written, and will be executable: copies of what we have patched get their own bytes back. */
void restore_copies(uint64_t start, uint64_t size)
{
    uint8_t resident[CHUNK];
    uint64_t end = page_end(start + size);
    start &= -(uint64_t)PAGE;
    for (uint64_t chunk = start; chunk < end; chunk += CHUNK * PAGE) {
        uint64_t pages = (end - chunk) / PAGE < CHUNK ? (end - chunk) / PAGE : CHUNK;
        if (!ask_resident(chunk, pages, resident))
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

/* frames.c: address ranges of functions, from .eh_frame (LSB, section 10.6) as every x86-64 linker writes it.
 *
 * What it writes otherwise (pointers that are not pc-relative and four bytes wide, anything malformed) is left to
 * splitlock.image.functions, which says the same of all that is handled here.
 */
#include "image.h"
#include <stdlib.h>
#include <string.h>

enum { PCREL_SDATA4 = 0x1b, NOT_HERE = -2 };

/* A common information entry: what holds for the frames that name it. */
struct common {
    uint64_t at;
    uint8_t early; /* bytes that frames begin before their functions: those of signal handlers */
    uint8_t handlers;
};

struct commons {
    struct common *all;
    uint64_t count, room;
};

struct section {
    const uint8_t *raw;
    uint64_t size;
};

static uint32_t word(const uint8_t *raw)
{
    uint32_t value;
    memcpy(&value, raw, sizeof(value));
    return value;
}

static bool skip_leb(struct section s, uint64_t *at)
{
    while (*at < s.size && s.raw[*at] & 0x80)
        ++*at;
    return ++*at <= s.size;
}

/* Bytes of a pointer in one of the formats of an encoding; 0 for one that is not known. */
static unsigned pointer_size(uint8_t encoding)
{
    static const uint8_t sizes[16] = {[0x0] = 8, [0x2] = 2, [0x3] = 4, [0x4] = 8, [0xa] = 2, [0xb] = 4, [0xc] = 8};
    return sizes[encoding & 15];
}

/* Reads the entry whose body is at `body`; false for one that is not handled here. */
static bool read_common(struct section s, uint64_t body, struct common *common)
{
    uint64_t letters = body + 5, at;
    uint8_t encoding = 0;
    if (letters > s.size)
        return false;
    const uint8_t *end = memchr(s.raw + letters, 0, s.size - letters);
    if (!end || s.raw[letters] != 'z')
        return false;
    at = (uint64_t)(end - s.raw) + 1;
    for (int i = 0; i < 4; i++) /* alignments of code and data, return address register, length of the augmentation */
        if (!skip_leb(s, &at))
            return false;
    for (const uint8_t *letter = s.raw + letters + 1; letter < end; letter++) {
        if (*letter != 'R' && *letter != 'P' && *letter != 'L') {
            common->early |= *letter == 'S';
            continue;
        }
        if (at >= s.size)
            return false;
        if (*letter == 'R')
            encoding = s.raw[at];
        else if (*letter == 'L')
            common->handlers = 1;
        else {
            unsigned size = pointer_size(s.raw[at]);
            if (!size || size >= s.size - at)
                return false;
            at += size;
        }
        at++;
    }
    return encoding == PCREL_SDATA4;
}

static int add_common(struct commons *commons, struct common common)
{
    if (commons->count == commons->room) {
        uint64_t room = commons->room ? commons->room * 2 : 64;
        struct common *all = realloc(commons->all, room * sizeof(*all));
        if (!all)
            return -1;
        commons->all = all;
        commons->room = room;
    }
    commons->all[commons->count++] = common;
    return 0;
}

/* The entry at an offset; they are in order. NULL: none is known there. */
static const struct common *find_common(const struct commons *commons, uint64_t at)
{
    uint64_t low = 0, high = commons->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (commons->all[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low < commons->count && commons->all[low].at == at ? &commons->all[low] : NULL;
}

/* The bounds of a frame's function: false where it has none, or they are beyond all addresses. */
static bool frame(const uint8_t *raw, uint64_t place, uint8_t early, uint64_t bounds[2])
{
    uint64_t start = place + (uint64_t)(int64_t)(int32_t)word(raw), span = word(raw + 4);
    bounds[0] = start + early;
    bounds[1] = start + span;
    return span > early && bounds[1] > bounds[0];
}

static int64_t entries(struct section s, uint64_t address, uint64_t *bounds, uint8_t *handlers, uint64_t room,
                       struct commons *commons)
{
    uint64_t found = 0, pair[2];
    for (uint64_t at = 0; s.size - at >= 4;) {
        uint64_t body = at + 4, length = word(s.raw + at);
        if (length == 0xffffffff) {
            if (s.size - body < 8)
                return NOT_HERE;
            length = word(s.raw + body) | (uint64_t)word(s.raw + body + 4) << 32;
            body += 8;
        }
        if (!length) { /* linkers may leave a terminator in the middle */
            at = body;
            continue;
        }
        if (s.size - body < 4)
            return NOT_HERE;
        uint32_t back = word(s.raw + body);
        if (!back) {
            struct common common = {.at = at};
            if (!read_common(s, body, &common))
                return NOT_HERE;
            if (add_common(commons, common))
                return -1;
        } else {
            const struct common *common = back <= body ? find_common(commons, body - back) : NULL;
            if (common && s.size - body < 12)
                return NOT_HERE;
            if (common && frame(s.raw + body + 4, address + body + 4, common->early, pair)) {
                if (found < room) {
                    memcpy(bounds + 2 * found, pair, sizeof(pair));
                    handlers[found] = common->handlers;
                }
                found++;
            }
        }
        at = length < s.size - body ? body + length : s.size;
    }
    return (int64_t)found;
}

int64_t scan_frames(const uint8_t *raw, uint64_t size, uint64_t address, uint64_t *bounds, uint8_t *handlers,
                    uint64_t room)
{
    struct commons commons = {0};
    int64_t found = entries((struct section){raw, size}, address, bounds, handlers, room, &commons);
    free(commons.all);
    return found;
}

static int compare(const void *one, const void *other)
{
    const uint64_t *a = one, *b = other;
    if (a[0] != b[0])
        return a[0] < b[0] ? -1 : 1;
    return (a[1] > b[1]) - (a[1] < b[1]);
}

int64_t scan_cut(const struct scan *scan, uint64_t *bounds, uint64_t count, uint64_t *starts, uint64_t *ends)
{
    uint64_t made = 0;
    qsort(bounds, count, 2 * sizeof(*bounds), compare);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = bounds[2 * i], end = bounds[2 * i + 1];
        if (end <= start || !code_at(scan, start, end - start))
            continue;
        if (made && start < ends[made - 1]) {
            if (end < ends[made - 1])
                end = ends[made - 1];
            if (start == starts[made - 1]) {
                ends[made - 1] = end;
                continue;
            }
            ends[made - 1] = start;
        }
        starts[made] = start;
        ends[made++] = end;
    }
    return (int64_t)made;
}

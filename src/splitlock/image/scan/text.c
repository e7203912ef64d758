/* text.c: where locked instructions may be, and what a function that holds some looks like. */
#include "image.h"
#include <stdlib.h>
#include <string.h>

/* -- candidates: splitlock.x86.patterns, by hand ------------------------------------------------- */

enum { OTHER, PREFIX, LOCKABLE, ESCAPE };

/* What may follow a LOCK prefix: the bytes of patterns.CANDIDATE. */
static unsigned kind_of(uint8_t byte)
{
    static const uint8_t lockable[] = {0x00, 0x01, 0x08, 0x09, 0x10, 0x11, 0x18, 0x19, 0x20, 0x21, 0x28, 0x29,
                                       0x30, 0x31, 0x80, 0x81, 0x83, 0x86, 0x87, 0xf6, 0xf7, 0xfe, 0xff};
    if (byte == 0x0f)
        return ESCAPE;
    if (memchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", byte, 11) || (byte & 0xf0) == 0x40)
        return PREFIX;
    return memchr(lockable, byte, sizeof(lockable)) ? LOCKABLE : OTHER;
}

static bool lockable_after_escape(uint8_t byte)
{
    return memchr("\xab\xb3\xba\xbb\xb0\xb1\xc0\xc1\xc7", byte, 9);
}

/* Length of the match of LOCK_PREFIXED at `at`, which is F0; 0 for none, and then *skip prefixes lead to none either. */
static uint64_t match_lock(const uint8_t *code, uint64_t size, uint64_t at, uint64_t *skip)
{
    uint64_t end = at;
    while (end < size && kind_of(code[end]) == PREFIX)
        end++;
    *skip = end - at;
    if (end < size && kind_of(code[end]) == ESCAPE && end + 1 < size && lockable_after_escape(code[end + 1]))
        end += 2;
    else if (end < size && kind_of(code[end]) == LOCKABLE)
        end += 1;
    else
        return 0;
    return end < size && code[end] < 0xc0 ? end + 1 - at : 0;
}

int64_t scan_candidates(const struct scan *scan, uint64_t low, uint64_t high, uint8_t *marks)
{
    uint64_t size = high - low, outside = 0, length = 0, skip = 0;
    const uint8_t *code = high > low ? code_at(scan, low, size) : NULL;
    if (!code)
        return 0;
    uint64_t range = next_range(scan, low); /* the first that starts behind the match */
    for (uint64_t at = 0; at < size; at += length ? length : skip) {
        bool lock = code[at] == 0xf0;
        length = 0;
        skip = 1;
        if (lock)
            length = match_lock(code, size, at, &skip);
        else if ((code[at] & 0xfe) == 0x86 && at + 1 < size && code[at + 1] < 0xc0)
            length = 2;
        if (!length)
            continue;
        while (range < scan->range_count && scan->starts[range] <= low + at)
            range++;
        /* A match may begin in one function and hide an instruction at the start of the next. */
        for (uint64_t i = range; i < scan->range_count && scan->starts[i] < low + at + length; i++)
            marks[i + 1] |= 1;
        if (range && low + at < scan->ends[range - 1])
            marks[range] |= 1;
        else if (lock) {
            marks[range] |= 2;
            outside++;
        }
    }
    return (int64_t)outside;
}

/* -- sites --------------------------------------------------------------------------------------- */

int64_t scan_locked(struct scan *scan, const uint8_t *marks, uint64_t *range, uint64_t *address,
                    struct scan_event *events, uint64_t room)
{
    uint64_t found = 0;
    for (; *range < scan->range_count; ++*range, *address = 0) {
        if (!(marks[*range + 1] & 1))
            continue;
        uint64_t size, start = scan->starts[*range];
        const uint8_t *code = range_code(scan, *range, &size);
        for (uint64_t at = *address ? *address - start : 0; at < size;) {
            struct instruction x = decode(&scan->decoder, code + at, size - at, start + at);
            if (x.length && !x.locked) {
                at += x.length;
                continue;
            }
            if (found == room) {
                *address = start + at;
                return (int64_t)found;
            }
            events[found++] = (struct scan_event){start + at, (uint32_t)*range, x.length ? SCAN_LOCKED : SCAN_STOPPED};
            if (!x.length)
                break;
            at += x.length;
        }
    }
    return (int64_t)found;
}

/* -- one function -------------------------------------------------------------------------------- */

enum { BEGINS = 1, REACHED = 2, NEAR = 4, SITE = 8 }; /* of a byte of a function */
enum { NEIGHBOURS = 6 };                              /* instructions on either side of a site that may move with it */

struct function {
    const uint8_t *code;
    uint64_t start, size; /* size: what of it is code, once that is known */
    uint8_t *map;         /* a byte each, and for the filler behind it */
    uint32_t *todo;
};

/* Where instructions begin, and what they are not asked about themselves. */
static void boundaries(struct scan *scan, struct function *f, uint32_t *offsets, uint64_t room,
                       struct scan_function *out)
{
    uint64_t at = 0;
    bool labels = false;
    while (at < f->size) {
        struct instruction x = decode(&scan->decoder, f->code + at, f->size - at, f->start + at);
        if (!x.length)
            break;
        f->map[at] |= BEGINS;
        if (out->instructions < room)
            offsets[out->instructions] = (uint32_t)at;
        out->instructions++;
        out->indirect |= x.flow == FLOW_INDIRECT;
        labels |= x.computes && x.target > f->start && x.target < f->start + f->size;
        at += x.length;
    }
    out->reached = f->start + at;
    out->labels = labels;
}

/* Marks the sites, and what lies within reach of a run around one. */
static void mark_sites(struct function *f, uint64_t reached, uint32_t padding, const uint64_t *sites, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t low = sites[i] - f->start, high = low;
        if (low >= reached)
            continue;
        f->map[low] |= SITE;
        for (int steps = 0; low && steps < NEIGHBOURS; steps += f->map[low] & BEGINS)
            low--;
        for (int steps = 0; high < reached && steps <= NEIGHBOURS; steps += high < reached && f->map[high] & BEGINS)
            high++;
        if (high == reached)
            high = f->size + padding;
        for (uint64_t at = low; at < high; at++)
            f->map[at] |= NEAR;
    }
}

static uint64_t list_branches(struct scan *scan, struct function *f, uint64_t reached, uint32_t padding,
                              struct scan_branch *branches, uint64_t room)
{
    uint64_t found = 0;
    for (uint64_t at = 0; at < reached;) {
        struct instruction x = decode(&scan->decoder, f->code + at, f->size - at, f->start + at);
        uint64_t to = x.target - f->start;
        bool label = x.computes && to && to < f->size;
        if (!x.length)
            break;
        if ((x.direct || label) && to < f->size + padding && f->map[to] & NEAR) {
            if (found < room)
                branches[found] = (struct scan_branch){x.target, label ? UINT64_MAX : f->start + at};
            found++;
        }
        at += x.length;
    }
    return found;
}

/* Marks what a path of direct branches reaches from the start. */
static void walk(struct scan *scan, struct function *f, uint64_t reached)
{
    uint64_t waiting = 0;
    if (reached)
        f->todo[waiting++] = 0;
    while (waiting) {
        uint64_t at = f->todo[--waiting];
        while (at < reached && !(f->map[at] & REACHED)) {
            struct instruction x = decode(&scan->decoder, f->code + at, f->size - at, f->start + at);
            uint64_t to = x.target - f->start;
            f->map[at] |= REACHED;
            if (x.direct && to < reached && (f->map[to] & (BEGINS | REACHED)) == BEGINS)
                f->todo[waiting++] = (uint32_t)to;
            if (x.flow == FLOW_JUMP || x.flow == FLOW_INDIRECT || x.flow == FLOW_END)
                break;
            at += x.length;
        }
    }
}

static void tell_reached(const struct function *f, uint64_t reached, uint8_t *unreached, struct scan_function *out)
{
    uint64_t number = 0;
    for (uint64_t at = 0; at < reached; at++) {
        bool dead = !(f->map[at] & REACHED);
        if (!(f->map[at] & BEGINS))
            continue;
        out->dead += dead && f->map[at] & SITE;
        if (unreached)
            unreached[number++] = dead;
    }
}

int64_t scan_function(struct scan *scan, uint64_t range, uint32_t padding, const uint64_t *sites, uint64_t count,
                      uint32_t *offsets, uint64_t offset_room, struct scan_branch *branches, uint64_t branch_room,
                      uint8_t *unreached, struct scan_function *out)
{
    struct function f = {.start = scan->starts[range]};
    memset(out, 0, sizeof(*out));
    f.code = range_code(scan, range, &f.size);
    f.map = calloc(f.size + padding + 1, 1);
    f.todo = malloc((f.size + 1) * sizeof(*f.todo));
    if (f.map && f.todo) {
        boundaries(scan, &f, offsets, offset_room, out);
        uint64_t reached = out->reached - f.start;
        mark_sites(&f, reached, padding, sites, count);
        out->branches = list_branches(scan, &f, reached, padding, branches, branch_room);
        walk(scan, &f, reached);
        tell_reached(&f, reached, unreached && out->instructions <= offset_room ? unreached : NULL, out);
    }
    bool good = f.map && f.todo;
    free(f.map);
    free(f.todo);
    return good ? 0 : -1;
}

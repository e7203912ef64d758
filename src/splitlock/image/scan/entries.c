/* entries.c: where control may enter code other than by a branch of the same function.
 *
 * Everything is looked for as raw bytes over the whole image, so that nothing depends on knowing all functions.
 */
#include "image.h"
#include <stdlib.h>
#include <string.h>

enum { LONGEST_TABLE = 1 << 16 }; /* bytes: 16,384 cases of a switch */
static const uint64_t NO_SLOT = UINT64_MAX;

static uint32_t load32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof(value));
    return value;
}

static uint64_t signed32(const uint8_t *bytes)
{
    return (uint64_t)(int64_t)(int32_t)load32(bytes);
}

/* -- bitmaps over the code ----------------------------------------------------------------------- */

static uint8_t *new_bits(const struct scan *scan)
{
    return calloc(scan->slots / 8 + 1, 1);
}

static void set(uint8_t *bits, uint64_t slot)
{
    bits[slot >> 3] |= (uint8_t)(1 << (slot & 7));
}

static bool is_set(const uint8_t *bits, uint64_t slot)
{
    return bits[slot >> 3] >> (slot & 7) & 1;
}

static uint64_t slot_of(const struct scan *scan, uint64_t address)
{
    for (uint32_t i = 0; i < scan->code_count; i++)
        if (address - scan->code[i].address < scan->code[i].size)
            return scan->code[i].slot + (address - scan->code[i].address);
    return NO_SLOT;
}

/* -- addresses that code names ------------------------------------------------------------------- */

struct list {
    uint64_t *all;
    uint64_t count, room;
    bool failed;
};

static void append(struct list *list, uint64_t value)
{
    if (list->count == list->room) {
        uint64_t room = list->room ? list->room * 2 : 4096;
        uint64_t *all = realloc(list->all, room * sizeof(*all));
        if (!all) {
            list->failed = true;
            return;
        }
        list->all = all;
        list->room = room;
    }
    list->all[list->count++] = value;
}

static bool is_lea(const uint8_t *code) /* lea r64, [rip+disp32] */
{
    return (code[0] & 0xfb) == 0x48 && code[1] == 0x8d && (code[2] & 0xc7) == 5;
}

static bool has_immediate(uint8_t byte) /* push imm32; mov r32, imm32 */
{
    return byte == 0x68 || (byte & 0xf8) == 0xb8;
}

/* Marks the code that `lea`, or where addresses are `fixed` a constant, names; lists what `lea` names. */
static void name(struct scan *scan, const struct code *code, bool fixed, struct list *tables)
{
    for (uint64_t at = 0; at + 5 <= code->size && !tables->failed; at++) {
        const uint8_t *here = code->bytes + at;
        if (code->size - at >= 7 && is_lea(here)) {
            uint64_t target = code->address + at + 7 + signed32(here + 3), slot = slot_of(scan, target);
            if (slot != NO_SLOT)
                set(scan->named, slot);
            append(tables, target); /* some compilers keep their tables in the text */
        } else if (fixed && has_immediate(*here)) {
            uint64_t slot = slot_of(scan, load32(here + 1));
            if (slot != NO_SLOT)
                set(scan->named, slot);
        }
    }
}

static int compare(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* The loaded segment that holds an address. */
static const struct scan_segment *holder(const struct scan *scan, uint64_t address)
{
    for (uint32_t i = 0; i < scan->segment_count; i++)
        if (address - scan->segments[i].address < scan->segments[i].size)
            return &scan->segments[i];
    return NULL;
}

/* Marks the cases of what would be a table of 32-bit distances from itself, as compilers write a switch: up to `after`,
 * or to its first entry that names no code. */
static void read_table(struct scan *scan, uint64_t table, uint64_t after, uint64_t low, uint64_t high)
{
    const struct scan_segment *segment = holder(scan, table);
    if (!segment || (segment->code && table % 4))
        return;
    uint64_t at = table - segment->address, size = segment->size - at;
    const uint8_t *entries = scan->data + segment->offset + at;
    if (size > after - table)
        size = after - table;
    if (size > LONGEST_TABLE)
        size = LONGEST_TABLE;
    for (uint64_t i = 0; i + 4 <= size; i += 4) {
        uint64_t address = table + signed32(entries + i), slot;
        if (address < low || address >= high)
            return;
        slot = slot_of(scan, address);
        if (slot != NO_SLOT)
            set(scan->cases, slot);
    }
}

int64_t scan_named(struct scan *scan, bool fixed)
{
    struct list tables = {0};
    uint64_t low = UINT64_MAX, high = 0, after;
    scan->named = scan->named ? scan->named : new_bits(scan);
    scan->cases = scan->cases ? scan->cases : new_bits(scan);
    if (!scan->named || !scan->cases)
        return -1;
    for (uint32_t i = 0; i < scan->code_count; i++) {
        const struct code *code = &scan->code[i];
        name(scan, code, fixed, &tables);
        low = code->address < low ? code->address : low;
        high = code->address + code->size > high ? code->address + code->size : high;
    }
    if (tables.count)
        qsort(tables.all, tables.count, sizeof(*tables.all), compare);
    for (uint64_t i = 0; i < tables.count; i++) {
        after = i + 1 < tables.count ? tables.all[i + 1] : UINT64_MAX;
        if (after != tables.all[i])
            read_table(scan, tables.all[i], after, low, high);
    }
    free(tables.all);
    return tables.failed ? -1 : 0;
}

/* -- branches ------------------------------------------------------------------------------------ */

/* Where the instructions of one function begin: the one that was asked about last. */
struct known {
    uint64_t range, reached;
    uint8_t *begins; /* a bitmap, for the longest function */
};

static void know(struct scan *scan, struct known *known, uint64_t range)
{
    uint64_t size, at = 0, start = scan->starts[range];
    const uint8_t *code = range_code(scan, range, &size);
    if (known->range == range)
        return;
    known->range = range;
    memset(known->begins, 0, size / 8 + 1);
    while (at < size) {
        struct instruction x = decode(&scan->decoder, code + at, size - at, start + at);
        if (!x.length)
            break;
        set(known->begins, at);
        at += x.length;
    }
    known->reached = start + at;
}

static bool is_prefix(uint8_t byte)
{
    return memchr("\x26\x2e\x36\x3e\x64\x65\x66\xf2\xf3\x48", byte, 10);
}

/* Whether a raw match in `code` is a branch that its function's own list does not hold. Prefixes (branch hints, bnd)
 * may stand before the opcode. */
static bool may_branch(struct scan *scan, struct known *known, const struct code *code, uint64_t source, uint64_t target)
{
    uint64_t range = next_range(scan, source);
    if (!range-- || source >= scan->ends[range])
        return true; /* outside of functions, nobody knows where instructions begin */
    know(scan, known, range);
    uint64_t start = scan->starts[range];
    if (source >= known->reached)
        return true; /* nor behind data */
    while (!is_set(known->begins, source - start))
        if (source == start || source == code->address || !is_prefix(code->bytes[--source - code->address]))
            return false;
    return target < start || target >= scan->ends[range];
}

enum { BLOCK = 6 }; /* a bit of `blocks` is for 1 << BLOCK bytes of code: these bits fit a cache, those of all code do not */

/* What is looked for. */
struct wanted {
    uint8_t *bits, *blocks;
    uint64_t low, high; /* addresses, both of them wanted */
};

/* How many bytes the opcode of a branch has that may be at `here`, and whose distance has 32 bits; 0: it is none. */
static unsigned opcode_length(const uint8_t *here)
{
    if ((*here & 0xfe) == 0xe8) /* call, jmp */
        return 1;
    if (*here == 0x0f) /* jcc */
        return (here[1] & 0xf0) == 0x80 ? 2 : 0;
    return *here == 0xc7 && here[1] == 0xf8 ? 2 : 0; /* xbegin */
}

static bool is_short(uint8_t opcode) /* jcc, loop and jrcxz, jmp: a distance of 8 bits */
{
    return (opcode & 0xf0) == 0x70 || (opcode & 0xfc) == 0xe0 || opcode == 0xeb;
}

static void find_far(struct scan *scan, struct known *known, const struct code *code, struct wanted wanted, uint8_t *hit)
{
    for (uint64_t at = 0; at + 5 <= code->size; at++) {
        const uint8_t *here = code->bytes + at;
        unsigned length = opcode_length(here);
        if (!length || at + length + 4 > code->size)
            continue;
        uint64_t target = code->address + at + length + 4 + signed32(here + length), slot = slot_of(scan, target);
        if (slot != NO_SLOT && is_set(wanted.blocks, slot >> BLOCK) && is_set(wanted.bits, slot) && !is_set(hit, slot) &&
            may_branch(scan, known, code, code->address + at, target))
            set(hit, slot);
    }
}

/* A short branch to a place is near it: from 129 bytes before to 126 behind. */
static void find_near(struct scan *scan, struct known *known, const struct code *code, uint64_t place, uint8_t *hit)
{
    for (uint64_t at = place > 129 ? place - 129 : 0; at <= place + 126 && at + 2 <= code->size; at++)
        if (is_short(code->bytes[at]) && at + 2 + (uint64_t)(int64_t)(int8_t)code->bytes[at + 1] == place &&
            may_branch(scan, known, code, code->address + at, code->address + place)) {
            set(hit, code->slot + place);
            return;
        }
}

static void find_branches(struct scan *scan, struct known *known, const struct code *code, struct wanted wanted, uint8_t *hit)
{
    find_far(scan, known, code, wanted, hit);
    for (uint64_t at = 0; at < code->size; at++) {
        uint64_t slot = code->slot + at;
        if (!is_set(wanted.blocks, slot >> BLOCK))
            at += ~slot & ((1 << BLOCK) - 1); /* to the block's end */
        else if (is_set(wanted.bits, slot) && !is_set(hit, slot))
            find_near(scan, known, code, at, hit);
    }
}

/* -- pointers ------------------------------------------------------------------------------------ */

static void point(const struct scan *scan, uint64_t value, struct wanted wanted, uint8_t *hit)
{
    uint64_t slot = slot_of(scan, value);
    if (slot != NO_SLOT && is_set(wanted.blocks, slot >> BLOCK) && is_set(wanted.bits, slot))
        set(hit, slot);
}

/* Looks for wanted addresses among the aligned words. Most are no address of code: that is seen at once. */
static void find_pointers(struct scan *scan, const struct scan_segment *segment, bool fixed, struct wanted wanted, uint8_t *hit)
{
    uint64_t end = segment->offset + segment->size, at = (segment->offset + 7) & -8ULL;
    uint64_t low = wanted.low, span = wanted.high - low;
    for (; at < end && end - at >= 8; at += 8) {
        uint64_t value;
        memcpy(&value, scan->data + at, 8);
        if (value - low <= span)
            point(scan, value, wanted, hit);
    }
    if (!fixed || segment->code)
        return;
    for (at = (segment->offset + 3) & -4ULL; at < end && end - at >= 4; at += 4) {
        uint32_t value = load32(scan->data + at);
        if (value - low <= span)
            point(scan, value, wanted, hit);
    }
}

/* -- all of it ----------------------------------------------------------------------------------- */

static void look(struct scan *scan, struct known *known, bool fixed, struct wanted branched, struct wanted pointed,
                 uint8_t *hit)
{
    for (uint32_t i = 0; branched.bits && i < scan->code_count; i++)
        find_branches(scan, known, &scan->code[i], branched, hit);
    for (uint32_t i = 0; pointed.bits && i < scan->segment_count; i++)
        find_pointers(scan, &scan->segments[i], fixed, pointed, hit);
}

/* The addresses that are looked for in one way; without bits for none, or no memory (then *good is false). */
static struct wanted wanted_in(const struct scan *scan, unsigned way, const uint64_t *addresses, const uint8_t *what,
                               uint64_t count, bool *good)
{
    struct wanted wanted = {.low = UINT64_MAX};
    for (uint64_t i = 0; *good && i < count; i++) {
        uint64_t slot = what[i] & way ? slot_of(scan, addresses[i]) : NO_SLOT;
        if (slot == NO_SLOT)
            continue;
        if (!wanted.bits) {
            wanted.bits = new_bits(scan);
            wanted.blocks = calloc((scan->slots >> BLOCK) / 8 + 1, 1);
            *good = wanted.bits && wanted.blocks;
        }
        if (!*good)
            break;
        set(wanted.bits, slot);
        set(wanted.blocks, slot >> BLOCK);
        wanted.low = addresses[i] < wanted.low ? addresses[i] : wanted.low;
        wanted.high = addresses[i] > wanted.high ? addresses[i] : wanted.high;
    }
    return wanted;
}

int64_t scan_entered(struct scan *scan, const uint64_t *addresses, const uint8_t *what, uint64_t count, bool fixed,
                     uint8_t *found)
{
    uint64_t longest = 0;
    for (uint64_t i = 0; i < scan->range_count; i++)
        if (scan->ends[i] - scan->starts[i] > longest)
            longest = scan->ends[i] - scan->starts[i];
    struct known known = {.range = UINT64_MAX, .begins = malloc(longest / 8 + 1)};
    uint8_t *hit = new_bits(scan);
    bool good = known.begins && hit && scan->named && scan->cases;
    struct wanted branched = wanted_in(scan, SCAN_BRANCHES, addresses, what, count, &good);
    struct wanted pointed = wanted_in(scan, SCAN_POINTERS, addresses, what, count, &good);
    if (good)
        look(scan, &known, fixed, branched, pointed, hit);
    for (uint64_t i = 0; good && i < count; i++) {
        uint64_t slot = slot_of(scan, addresses[i]);
        found[i] = slot != NO_SLOT && (is_set(hit, slot) || (what[i] & SCAN_NAMED && is_set(scan->named, slot)) ||
                                       (what[i] & SCAN_CASES && is_set(scan->cases, slot)));
    }
    free(known.begins);
    free(hit);
    free(branched.bits);
    free(branched.blocks);
    free(pointed.bits);
    free(pointed.blocks);
    return good ? 0 : -1;
}

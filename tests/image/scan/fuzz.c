/* Scan files that were bent: fuzz SEED ROUNDS FRAMES CODE... FRAMES is an .eh_frame, CODE are pieces of text. Each round
 * takes a part of a piece, or makes one up, changes some bytes, and has everything looked for in segments and functions
 * that may be anywhere. Compiled with the sanitizers, which see a byte too many: every buffer is exactly as large as
 * it is said to be. Aborts where an answer cannot be. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scan.h"

enum { MOST_CODE = 3000, MOST_ADDRESSES = 200, MOST_BOUNDS = 60 };

struct piece {
    uint8_t *bytes;
    uint64_t size;
};

static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % below;
}

static void check(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "not so: %s\n", what);
    abort();
}

static struct piece slurp(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct piece made;
    if (!file || fseek(file, 0, SEEK_END))
        exit(2);
    made.size = (uint64_t)ftell(file);
    rewind(file);
    made.bytes = malloc(made.size + 1);
    if (fread(made.bytes, 1, made.size, file) != made.size)
        exit(2);
    fclose(file);
    return made;
}

/* A part of the piece, its beginning if need be, or bytes with many prefixes, bent. */
static struct piece bent(struct piece from, uint64_t most, bool beginning)
{
    static const uint8_t often[] = {0xf0, 0x66, 0xf2, 0x48, 0x0f, 0x62, 0xc4, 0xc5, 0x8f, 0x87, 0xe8, 0x8d, 0x05, 0x70};
    struct piece made = {.size = draw(from.size < most ? from.size : most) + 1};
    uint64_t at = beginning ? 0 : draw(from.size - made.size + 1);
    made.bytes = malloc(made.size);
    memcpy(made.bytes, from.bytes + at, made.size);
    if (!draw(8))
        for (uint64_t i = 0; i < made.size; i++)
            made.bytes[i] = often[draw(sizeof(often))];
    for (uint64_t i = draw(20); i; i--)
        made.bytes[draw(made.size)] = draw(2) ? (uint8_t)draw(256) : often[draw(sizeof(often))];
    return made;
}

/* Any answer. It depends on more than is remembered of an instruction, as iced's does not: so answers are compared only of
 * scans that were asked the same from their beginning, which `fresh` ones are. */
static uint32_t ask(const uint8_t *bytes)
{
    uint32_t hash = 0;
    for (int i = 0; i < 16; i++)
        hash = hash * 31 + bytes[i];
    return hash % 17;
}

/* What a round looks at. */
static struct piece code;
static struct scan_segment segments[4];
static uint32_t segment_count;
static uint64_t starts[MOST_BOUNDS], ends[MOST_BOUNDS], ranges;

static struct scan *fresh(void)
{
    struct scan *scan = scan_open(code.bytes, code.size, segments, segment_count, ask);
    if (scan)
        scan_ranges(scan, starts, ends, ranges);
    return scan;
}

static uint64_t address(uint64_t base, uint64_t size)
{
    static const uint64_t odd[] = {0, 1, 0x7fffffff, 0xffffffff, 0x7fffffffffffffff, UINT64_MAX, UINT64_MAX - 15};
    return draw(12) ? base + draw(size + 32) - 16 : odd[draw(sizeof(odd) / sizeof(*odd))];
}

static void function(uint64_t i)
{
    struct scan *scan = fresh(), *other = fresh();
    struct scan_function whole, part;
    uint64_t size = ends[i] - starts[i], sites[3], room = draw(20);
    uint32_t padding = (uint32_t)draw(65), *offsets = malloc((size + 1) * sizeof(*offsets));
    struct scan_branch *branches = malloc((size + 1) * sizeof(*branches));
    uint8_t *unreached = malloc(size + 1);
    for (int n = 0; n < 3; n++)
        sites[n] = address(starts[i], size);
    check(!scan_function(scan, i, padding, sites, 3, offsets, size, branches, size, unreached, &whole), "a function");
    check(whole.reached >= starts[i] && whole.reached <= ends[i], "reached");
    check(whole.instructions <= size && whole.branches <= size, "numbers");
    for (uint64_t n = 1; n < whole.instructions; n++)
        check(offsets[n] > offsets[n - 1] && offsets[n] < size, "offsets");
    check(!scan_function(other, i, padding, sites, 3, offsets, room, branches, room, NULL, &part), "a part of one");
    check(!memcmp(&whole, &part, sizeof(whole)), "the same with less room");
    scan_close(scan);
    scan_close(other);
    free(offsets);
    free(branches);
    free(unreached);
}

static void events(const uint8_t *marks)
{
    struct scan *scan = fresh(), *other = fresh();
    struct scan_event all[2 * MOST_CODE], few[4];
    uint64_t range = 0, from = 0, seen = 0;
    int64_t count = scan_locked(scan, marks, &range, &from, all, 2 * MOST_CODE);
    check(range == ranges, "all ranges");
    range = from = 0;
    while (range < ranges) {
        int64_t some = scan_locked(other, marks, &range, &from, few, 1 + draw(4) % 4);
        check(some >= 0 && seen + (uint64_t)some <= (uint64_t)count, "no more in parts");
        check(!memcmp(few, all + seen, (size_t)some * sizeof(*few)), "the same in parts");
        seen += (uint64_t)some;
    }
    check(seen == (uint64_t)count, "all in parts");
    scan_close(scan);
    scan_close(other);
}

static void entered(struct scan *scan, uint64_t base, uint64_t size)
{
    uint64_t count = draw(MOST_ADDRESSES), addresses[MOST_ADDRESSES];
    uint8_t what[MOST_ADDRESSES], found[MOST_ADDRESSES];
    bool fixed = draw(2);
    for (uint64_t i = 0; i < count; i++) {
        addresses[i] = address(base, size);
        what[i] = (uint8_t)draw(16);
    }
    check(!scan_named(scan, fixed), "names");
    check(!scan_entered(scan, addresses, what, count, fixed, found), "entries");
    for (uint64_t i = 0; i < count; i++)
        check(found[i] <= 1, "yes or no");
}

static void round_of(struct piece from, struct piece frames)
{
    uint64_t bases[] = {0, 0x1000, 0x400000, 0x7f0000000000, UINT64_MAX - MOST_CODE}, base = bases[draw(5)];
    uint64_t bounds[2 * MOST_BOUNDS], count = draw(MOST_BOUNDS - 20);
    uint8_t marks[MOST_BOUNDS + 1] = {0}, handlers[20];
    struct piece eh = bent(frames, 2000, draw(8));
    code = bent(from, MOST_CODE, false);
    segments[0] = (struct scan_segment){base, 0, code.size, 1};
    segment_count = 1 + (draw(3) ? 0 : (uint32_t)draw(4));
    for (uint32_t i = 1; i < segment_count; i++) {
        uint64_t offset = draw(code.size), end = draw(10) ? code.size : code.size + draw(3);
        segments[i] = (struct scan_segment){address(base, code.size), offset, end - offset, draw(2)};
    }
    for (uint64_t i = 0; i < 2 * count; i++)
        bounds[i] = address(base, code.size);
    int64_t more = scan_frames(eh.bytes, eh.size, base, bounds + 2 * count, handlers, 20);
    check(more >= -2, "frames");
    count += more < 0 ? 0 : more < 20 ? (uint64_t)more : 20;
    ranges = 0;
    struct scan *scan = fresh();
    if (scan) {
        ranges = (uint64_t)scan_cut(scan, bounds, count, starts, ends);
        check(ranges <= count, "cut");
        for (uint64_t i = 0; i < ranges; i++)
            check(starts[i] < ends[i] && (!i || ends[i - 1] <= starts[i]), "cut apart");
        scan_ranges(scan, starts, ends, ranges);
        scan_candidates(scan, base, base + code.size, marks);
        scan_candidates(scan, address(base, code.size), address(base, code.size), marks);
        memset(marks, draw(4) ? 1 : 3, ranges + 1);
        events(marks);
        for (uint64_t i = 0; i < ranges; i++)
            function(i);
        entered(scan, base, code.size);
        scan_close(scan);
    }
    free(code.bytes);
    free(eh.bytes);
}

int main(int count, char **words)
{
    struct piece frames = slurp(words[3]);
    state = strtoull(words[1], NULL, 0) * 2654435761u + 1;
    for (long rounds = atol(words[2]); rounds > 0; rounds--) {
        struct piece from = slurp(words[4 + draw((uint64_t)count - 4)]);
        for (int i = 0; i < 500 && rounds > 0; i++, rounds--)
            round_of(from, frames);
        free(from.bytes);
    }
    free(frames.bytes);
    return 0;
}

/* The image that is being scanned: where its code is, and the functions in it. */
#ifndef SPLITLOCK_SCAN_IMAGE_H
#define SPLITLOCK_SCAN_IMAGE_H
#include "decode.h"
#include <stddef.h>

/* An executable segment. */
struct code {
    uint64_t address, size;
    const uint8_t *bytes;
    uint64_t slot; /* its first byte's number in bitmaps, which have a bit for each byte of code */
};

struct scan {
    const uint8_t *data;
    struct scan_segment segments[SCAN_MOST_SEGMENTS]; /* all that are loaded */
    struct code code[SCAN_MOST_SEGMENTS];
    uint32_t segment_count, code_count;
    uint64_t slots; /* bytes of code, all segments together */
    const uint64_t *starts, *ends; /* of functions */
    uint64_t range_count;
    uint8_t *named, *cases; /* bitmaps of addresses that code computes, and that jump tables hold: entries.c */
    struct decoder decoder;
};

/* The bytes of code at an address; NULL where there are fewer than `size`. */
const uint8_t *code_at(const struct scan *scan, uint64_t address, uint64_t size);

/* The code of a range, `size` bytes; NULL, and 0 bytes, where there is none. */
const uint8_t *range_code(const struct scan *scan, uint64_t range, uint64_t *size);

/* The number of the first start behind an address. */
uint64_t next_range(const struct scan *scan, uint64_t address);

#endif

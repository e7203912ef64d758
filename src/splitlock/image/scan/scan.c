/* scan.c: opening and closing, and what lies where. See scan.h and image.h. */
#include "image.h"
#include <stdlib.h>
#include <string.h>

static const uint64_t MOST_BYTES = UINT32_MAX; /* displacements of 32 bits reach no further */

static bool add_segment(struct scan *scan, const struct scan_segment *s, uint64_t size, uint64_t *left)
{
    if (s->offset > size || s->size > size - s->offset || s->address + s->size < s->address || s->size > *left)
        return false;
    *left -= s->size;
    scan->segments[scan->segment_count++] = *s;
    if (s->code) {
        scan->code[scan->code_count++] = (struct code){s->address, s->size, scan->data + s->offset, scan->slots};
        scan->slots += s->size;
    }
    return true;
}

struct scan *scan_open(const uint8_t *data, uint64_t size, const struct scan_segment *segments, uint32_t count,
                       scan_ask *ask)
{
    uint64_t left = MOST_BYTES;
    struct scan *scan = count <= SCAN_MOST_SEGMENTS ? calloc(1, sizeof(*scan)) : NULL;
    bool good = scan;
    if (!good)
        return NULL;
    scan->data = data;
    scan->decoder.ask = ask;
    for (uint32_t i = 0; good && i < count; i++)
        good = add_segment(scan, &segments[i], size, &left);
    if (good)
        return scan;
    scan_close(scan);
    return NULL;
}

void scan_close(struct scan *scan)
{
    free(scan->named);
    free(scan->cases);
    free(scan);
}

void scan_ranges(struct scan *scan, const uint64_t *starts, const uint64_t *ends, uint64_t count)
{
    scan->starts = starts;
    scan->ends = ends;
    scan->range_count = count;
}

const uint8_t *code_at(const struct scan *scan, uint64_t address, uint64_t size)
{
    for (uint32_t i = 0; i < scan->code_count; i++) {
        const struct code *code = &scan->code[i];
        uint64_t at = address - code->address;
        if (at < code->size && size <= code->size - at)
            return code->bytes + at;
    }
    return NULL;
}

const uint8_t *range_code(const struct scan *scan, uint64_t range, uint64_t *size)
{
    *size = scan->ends[range] - scan->starts[range];
    const uint8_t *code = code_at(scan, scan->starts[range], *size);
    if (!code)
        *size = 0;
    return code;
}

uint64_t next_range(const struct scan *scan, uint64_t address)
{
    uint64_t low = 0, high = scan->range_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (scan->starts[middle] <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

uint32_t scan_decode(struct scan *scan, const uint8_t *bytes, uint64_t size)
{
    struct instruction made = decode(&scan->decoder, bytes, size, 0);
    return made.length ? made.length | (uint32_t)made.flow << 8 : 0;
}

void scan_sizes(uint32_t sizes[4])
{
    sizes[0] = sizeof(struct scan_segment);
    sizes[1] = sizeof(struct scan_event);
    sizes[2] = sizeof(struct scan_branch);
    sizes[3] = sizeof(struct scan_function);
}

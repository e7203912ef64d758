/* What splitlock.image.scan asks of an image's code. Only what the binding (library.py) calls is here.
 *
 * The file is a stranger's: nothing outside of `data` is read whatever is in it, every loop ends, and what does not fit
 * the file (a range outside the code, a table without an end) counts as empty. Addresses are the file's own. Functions
 * that allocate return -1 when there is no memory.
 */
#ifndef SPLITLOCK_SCAN_H
#define SPLITLOCK_SCAN_H
#include <stdbool.h>
#include <stdint.h>

#define SCAN_EXPORT __attribute__((visibility("default")))

enum { SCAN_MOST_SEGMENTS = 64 }; /* a linker makes four to six */

/* A loaded segment's bytes in the file. */
struct scan_segment {
    uint64_t address, offset, size;
    uint64_t code; /* 1: executable */
};

/* Decides about the one instruction at `bytes` (16 of them) for which tables do not say enough: its length, or 0 for none. */
typedef uint32_t scan_ask(const uint8_t *bytes);

/* A locked instruction, or where a range stops being code. */
struct scan_event {
    uint64_t address;
    uint32_t range;
    uint32_t kind; /* SCAN_LOCKED, or SCAN_STOPPED: `address` is behind the last instruction */
};
enum { SCAN_LOCKED, SCAN_STOPPED };

/* From where in a function control goes to a place near a site; all ones for an address that is computed. */
struct scan_branch {
    uint64_t target, source;
};

struct scan_function {
    uint64_t reached;      /* behind its last instruction */
    uint64_t instructions; /* their number */
    uint64_t branches;     /* their number; more than there was room for: ask again */
    uint32_t dead;         /* sites that nothing in the function leads to */
    uint16_t indirect;     /* 1: it has a jump to a computed address */
    uint16_t labels;       /* 1: it computes addresses of its own */
};

/* In what a wanted address may be found; for scan_entered. */
enum { SCAN_BRANCHES = 1, SCAN_CASES = 2, SCAN_NAMED = 4, SCAN_POINTERS = 8 };

struct scan;

/* NULL: no memory, or segments outside of the file, more than 64, or 4 GB in all. `data`, and the ranges later, stay the
 * caller's. */
SCAN_EXPORT struct scan *scan_open(const uint8_t *data, uint64_t size, const struct scan_segment *segments,
                                   uint32_t count, scan_ask *ask);
SCAN_EXPORT void scan_close(struct scan *scan);

/* The functions, sorted, none over another. */
SCAN_EXPORT void scan_ranges(struct scan *scan, const uint64_t *starts, const uint64_t *ends, uint64_t count);

/* frames.c: address ranges from the .eh_frame section at `raw`, which is loaded at `address`; `handlers` says of which
 * frames there may be any. Returns their number, of which at most `room` are stored; -2: written in a way that is not
 * handled here. */
SCAN_EXPORT int64_t scan_frames(const uint8_t *raw, uint64_t size, uint64_t address, uint64_t *bounds, uint8_t *handlers,
                                uint64_t room);
/* Pairs of bounds, made ranges: sorted, within one of the code segments, each cut at the next one's start. Returns their number. */
SCAN_EXPORT int64_t scan_cut(const struct scan *scan, uint64_t *bounds, uint64_t count, uint64_t *starts, uint64_t *ends);

/* text.c: marks[i + 1] gets 1 where range i holds what looks like a locked instruction, 2 where the gap behind it does.
 * Returns how many with a LOCK prefix there are in gaps. */
SCAN_EXPORT int64_t scan_candidates(const struct scan *scan, uint64_t low, uint64_t high, uint8_t *marks);
/* Events in the marked ranges, in order, from *range and *address on (0: its start), which are moved on. Returns their number. */
SCAN_EXPORT int64_t scan_locked(struct scan *scan, const uint8_t *marks, uint64_t *range, uint64_t *address,
                                struct scan_event *events, uint64_t room);
/* One function: `sites` are addresses of its instructions, `padding` bytes of filler behind it. `offsets` of
 * instructions and `branches` are stored up to their rooms. `unreached`: a byte for each instruction, or NULL. */
SCAN_EXPORT int64_t scan_function(struct scan *scan, uint64_t range, uint32_t padding, const uint64_t *sites,
                                  uint64_t count, uint32_t *offsets, uint64_t offset_room, struct scan_branch *branches,
                                  uint64_t branch_room, uint8_t *unreached, struct scan_function *function);

/* entries.c: once, before scan_entered. `fixed`: the image is not position independent, constants may be addresses. */
SCAN_EXPORT int64_t scan_named(struct scan *scan, bool fixed);
/* found[i] becomes 1 where addresses[i] is found in one of what[i] (SCAN_BRANCHES, ...). */
SCAN_EXPORT int64_t scan_entered(struct scan *scan, const uint64_t *addresses, const uint8_t *what, uint64_t count,
                                 bool fixed, uint8_t *found);

/* For tests: what decode.h makes of one instruction, as length | flow << 8; 0 for none. */
SCAN_EXPORT uint32_t scan_decode(struct scan *scan, const uint8_t *bytes, uint64_t size);
/* Sizes of the structures that the binding mirrors, in the order they have here. */
SCAN_EXPORT void scan_sizes(uint32_t sizes[4]);

#endif

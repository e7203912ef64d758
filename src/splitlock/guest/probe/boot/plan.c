/* Which rows are there, and in which order? None relies on the one before it: a row says all that it needs. */
#include "probe.h"
#define EFLAGS_AC 0x40000
#define CR0_AM 0x40000

static const struct context {
    uint8_t mode, cpl;
} contexts[] = {{REAL, 0}, {PROTECTED, 0}, {PROTECTED, 3}, {LONG, 0}, {LONG, 3}};

#define CONTEXTS (sizeof contexts / sizeof *contexts)

static struct row *next;

static void add(uint32_t context, enum kind kind, uint8_t times, uint32_t am, uint32_t ac, uint8_t detecting) {
    const struct context *in = &contexts[context];
    *next++ = (struct row){in->mode, in->cpl, (uint8_t)kind, times, detecting, am, ac};
}

/* One kind in every context and with all of AM and AC. */
static void each(uint32_t used, enum kind kind, uint8_t times, uint8_t detecting) {
    for (uint32_t i = 0; i < used; i++)
        for (uint32_t set = 0; set < 4; set++)
            add(i, kind, times, set & 2 ? CR0_AM : 0, set & 1 ? EFLAGS_AC : 0, detecting);
}

uint32_t plan(struct row *rows, int has_long_mode, int has_detection, int has_bus_lock) {
    uint32_t used = has_long_mode ? CONTEXTS : CONTEXTS - 2;
    next = rows;
    for (uint32_t i = 0; i < used; i++)
        add(i, ALIGNED, 3, 0, 0, 0);
    add(1, CPUID, 3, 0, 0, 0);
    each(used, MISALIGNED, 3, 0);
    each(used, SPLIT, 2, 0);
    if (has_detection)
        each(used, SPLIT, 1, 1);
    for (uint32_t i = 2; has_bus_lock && i < used; i += 2)
        add(i, BUS, 1, 0, 0, 0);
    return (uint32_t)(next - rows);
}

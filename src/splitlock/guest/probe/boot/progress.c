/* Which row comes next, in the clock's CMOS memory: it outlives the reset that a row may end in. */
#include "probe.h"
#define PLACE 0x50

static uint8_t get(uint8_t i) {
    outb(0x70, (uint8_t)(0x80 | (PLACE + i))); /* 0x80: no NMI */
    return inb(0x71);
}

static void set(uint8_t i, uint8_t value) {
    outb(0x70, (uint8_t)(0x80 | (PLACE + i)));
    outb(0x71, value);
}

/* Whether a run was begun and not ended; then `next` is the row after the one that was begun last. */
int progress_load(uint32_t *next) {
    *next = get(2);
    return get(0) == 'S' && get(1) == 'L' && get(3) == (uint8_t)~*next;
}

void progress_save(uint32_t next) {
    set(0, 'S');
    set(1, 'L');
    set(2, (uint8_t)next);
    set(3, (uint8_t)~next);
}

void progress_clear(void) { set(0, 0); }

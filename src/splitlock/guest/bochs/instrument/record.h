// record.h: what is counted of each split lock and its exception, and told to splitlock.
#pragma once
#include "bochs.h"
#include "cpu/cpu.h"
#include "memory/memory-bochs.h"
#include "table.h"

struct split {
    Bit64u address;
    unsigned size; // bytes, of both pages' parts
};

// Reads the words of splitlock, in the environment's SPLITLOCK: those of QEMU's plugin (plugin.c). Bochs ends without them.
void record_open();
const char *record_detect(); // its argument `detect`

struct entry *record_entry(const split &);
void record_hit(const split &);
struct entry *record_trap(const split &, const char *what, bool waits);
void record_step(struct entry *, const char *what, _Atomic uint64_t *count); // what came of the exception
void record_signal();
void record_reset();
void record_look();
void record_boot_sector();
void record_decoded();

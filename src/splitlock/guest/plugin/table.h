/*
 * table.h: the file of shared.h, as an emulator fills it: who runs, which entry is his, and the question to splitlock who
 * that is. For QEMU's plugin (plugin.c) and for Bochs (../bochs/instrument).
 */
#pragma once
#include "shared.h"
#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct who { /* a program; all 0: unknown, or none */
    uint64_t task, started, execs;
};

/* What makes an entry: one instruction, of one program, in one world. */
struct key {
    uint64_t pc;
    const uint8_t *code; /* CODE bytes, zeros behind the instruction */
    struct who who;
    uint8_t world; /* the flags of WORLD */
    uint64_t space; /* which guest it is in, by its page tables; 0: none */
};

extern struct header *shared;
extern struct entry *entries;

/* Maps the files whose descriptors these are; `low`: bytes of memory below 4 GiB. False: it has said why. */
bool table_open(int table, int memory, uint64_t low, int ask);

/* The machine's memory, as splitlock has it mapped, too. */
uint8_t *table_memory(uint64_t *size);

/* Which program runs on the vCPU, by the machine's own kernel. */
struct who table_who(unsigned vcpu);

bool table_is(const struct entry *entry, const struct key *key);

/* The entry of this key, or null. */
struct entry *table_find(const struct key *key);

/* A new entry of this key; null where there is no more room. The caller fills in the rest and calls table_ask(). */
struct entry *table_add(const struct key *key);

/* The entry is whole: splitlock is told of it and looks at the machine, which stands still meanwhile. */
void table_ask(const struct entry *entry);

/* A VM entry by the hypervisor whose VM exits go on there. */
void table_vm_entry(uint64_t rip, uint64_t cr3);

/* The boot sector asks for what is to be booted: splitlock puts it into memory. */
void table_load(void);

/* Something has executed that had trapped before. `now`: nanoseconds, of the clock that `trapped_at` is of. */
void table_let_go(struct entry *entry, uint64_t now);

#ifdef __cplusplus
}
#endif

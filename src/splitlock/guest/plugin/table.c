/* table.c: see table.h. Callers that have more than one thread hold a lock of theirs. */
#define _GNU_SOURCE
#include "table.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLOTS = ENTRIES * 2 };
static const uint64_t HIGH_MEMORY = 1ull << 32;

struct header *shared;
struct entry *entries;
static uint8_t *ram;
static uint64_t ram_size, low;
static int ask = -1;
static uint32_t slots[SLOTS]; /* numbers of entries, from 1; 0: free */
static uint32_t slotted;      /* entries that have theirs */

static void *map(int fd, uint64_t size)
{
    void *place = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (place == MAP_FAILED)
        fprintf(stderr, "splitlock plugin: file %d: %s\n", fd, strerror(errno));
    return place == MAP_FAILED ? NULL : place;
}

bool table_open(int table, int memory, uint64_t below, int socket)
{
    struct stat state;
    low = below;
    ask = socket;
    if (ask < 0 || memory < 0 || fstat(memory, &state) || (ram_size = (uint64_t)state.st_size) < 8 ||
        !(shared = map(table, TABLE + sizeof(struct entry) * ENTRIES)) || !(ram = map(memory, ram_size)))
        return false;
    entries = (struct entry *)((char *)shared + TABLE);
    return true;
}

uint8_t *table_memory(uint64_t *size)
{
    *size = ram_size;
    return ram;
}

/* The machine's memory at a physical address, at most 8 bytes; 0 where there is none. */
static uint64_t load(uint64_t physical, size_t size)
{
    if (size > sizeof(uint64_t)) /* what says how many is the guest's */
        return 0;
    uint64_t value = 0, at = physical >= HIGH_MEMORY ? physical - HIGH_MEMORY + low : physical;
    if ((physical < low || physical >= HIGH_MEMORY) && at <= ram_size - 8)
        memcpy(&value, ram + at, size);
    return value;
}

struct who table_who(unsigned vcpu)
{
    struct who who = {0};
    uint64_t pointer = vcpu < CPUS ? atomic_load_explicit(&shared->current[vcpu], memory_order_acquire) : 0;
    if (!pointer)
        return who;
    who.task = load(pointer, 8);
    uint64_t at = who.task - shared->direct_map;
    who.started = load(at + shared->started, 8);
    who.execs = load(at + shared->execs, shared->exec_bytes);
    return who;
}

static bool is_of(const struct entry *entry, const struct who *who, uint8_t world, uint64_t space)
{
    return entry->task == who->task && entry->started == who->started && entry->execs == who->execs &&
           (entry->flags & WORLD) == world && entry->space == space;
}

bool table_is(const struct entry *entry, const struct key *key)
{
    return is_of(entry, &key->who, key->world, key->space);
}

/* Where in `slots` the number of an entry is, or is to be. */
static size_t slot_of(const struct key *key)
{
    uint64_t begin;
    memcpy(&begin, key->code, sizeof begin);
    uint64_t hash = (key->pc ^ begin ^ key->who.task >> 6 ^ key->who.started ^ key->who.execs << 20 ^ key->world ^ key->space) *
                    0x9e3779b97f4a7c15;
    size_t at = hash >> 40 & (SLOTS - 1);
    for (; slots[at]; at = (at + 1) & (SLOTS - 1)) {
        const struct entry *other = &entries[slots[at] - 1];
        if (other->pc == key->pc && memcmp(other->code, key->code, CODE) == 0 && table_is(other, key))
            break;
    }
    return at;
}

/* Finds a place for what splitlock has added, too: entries of exceptions that it raised itself. */
static void add_slots(void)
{
    for (; slotted < atomic_load(&shared->entries) && slotted < ENTRIES; slotted++) {
        const struct entry *entry = &entries[slotted];
        struct key key = {
            .pc = entry->pc, .code = entry->code, .who = {entry->task, entry->started, entry->execs},
            .world = entry->flags & WORLD, .space = entry->space,
        };
        slots[slot_of(&key)] = slotted + 1;
    }
}

struct entry *table_find(const struct key *key)
{
    add_slots();
    uint32_t slot = slots[slot_of(key)];
    return slot ? &entries[slot - 1] : NULL;
}

struct entry *table_add(const struct key *key)
{
    uint64_t number = atomic_load(&shared->entries);
    if (number >= ENTRIES)
        return NULL;
    struct entry *entry = &entries[number];
    entry->pc = key->pc;
    memcpy(entry->code, key->code, CODE);
    entry->task = key->who.task, entry->started = key->who.started, entry->execs = key->who.execs;
    entry->space = key->space;
    entry->flags = key->world | (atomic_load(&shared->boot_sector) ? AFTER_BOOT_SECTOR : 0);
    return entry;
}

static void wait_for(uint32_t number)
{
    char answer;
    ssize_t done;
    while ((done = write(ask, &number, sizeof number)) < 0 && errno == EINTR)
        ;
    while (done > 0 && read(ask, &answer, 1) < 0 && errno == EINTR)
        ;
}

void table_ask(const struct entry *entry)
{
    uint32_t number = (uint32_t)(entry - entries);
    atomic_store(&shared->entries, number + 1);
    add_slots();
    wait_for(number);
}

void table_vm_entry(uint64_t rip, uint64_t cr3)
{
    uint64_t count = atomic_load(&shared->n_hypervisors), i = 0;
    while (i < count && shared->hypervisors[i].rip != rip)
        i++;
    if (i == HYPERVISORS)
        i--;
    struct hypervisor *found = &shared->hypervisors[i];
    bool is_new = i == count;
    if (is_new) {
        found->rip = rip, found->cr3 = cr3;
        atomic_store(&shared->n_hypervisors, count + 1);
    }
    atomic_fetch_add(&found->entries, 1);
    if (is_new)
        wait_for(HYPERVISOR + (uint32_t)i);
}

void table_load(void)
{
    wait_for(LOAD);
}

void table_let_go(struct entry *entry, uint64_t now)
{
    uint64_t waited = now - entry->trapped_at;
    entry->trapped_at = 0;
    entry->waited += waited;
    entry->waits++;
    if (waited > entry->longest)
        entry->longest = waited;
}

/*
 * plugin.c: a QEMU TCG plugin that counts a guest's split locks, exactly, and asks who does each new one.
 *
 * Arguments (-plugin splitlock.so,shared=FD,ram=FD,low=BYTES,ask=FD):
 *   shared   the file of shared.h
 *   ram      the guest's memory
 *   low      how much of it lies below 4 GiB; the rest begins at 4 GiB
 *   detect   what exceptions the CPUs raise for split locks, none by default: detection.h; or `stub`: splitlock raises them,
 *            through QEMU's gdb stub (stub/stops.py), and is told where accesses to MSRs and DR6 are
 *   traps    a file: a line of JSON for each of these
 *   ask      a socket: the number of each new entry goes there (4 bytes), and the vCPU waits for one byte back
 *
 * At the first hit of a site by a program the vCPU waits, so that whoever reads the guest's memory finds the program as
 * it runs. Every later hit only counts. A program is a task, the time it started and how often it called execve: the
 * three together are never the same for two programs. They are read at each hit, from two places in memory, which takes
 * nanoseconds; splitlock says where they are, once it knows the guest's kernel.
 *
 * Why these rules (QEMU 7.2 and 10.0, accel/tcg and target/i386/tcg):
 * - Stores only: a locked instruction loads once or twice but stores exactly once an execution, a failed
 *   compare-exchange and one that was aborted and redone one by one included. QEMU 7.2 gives loads to those who ask
 *   for stores, so ask for both and look.
 * - Two exceptions, told apart by a note that the instruction's start leaves to its store (`started`): a contended
 *   `lock neg` is a loop of stores; and when a locked instruction that QEMU does in a helper function ends at a page's
 *   end, QEMU 7.2 forgets to take its callback down again, so that it is called for later instructions' stores.
 * - One object a translation, never shared: code at one address changes, as in modules and JITs. They are not freed;
 *   QEMU does not say when a translation goes.
 */
#define _GNU_SOURCE
#include "locked.h"
#include "qemu.h"
#include "registers.h"
#include "shared.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

EXPORT int qemu_plugin_version; /* what QEMU looks for: set to what it has before it looks */

enum { LINE_BYTES = 64, PAGE_BITS = 12, SLOTS = ENTRIES * 2 };
static const uint64_t HIGH_MEMORY = 1ull << 32, KERNEL_HALF = 1ull << 63, EFER_SVME = 1 << 12;

/* One translation of a locked instruction. */
struct site {
    uint64_t pc;
    uint8_t size, length;
    bool noted; /* only the first store after its start counts */
    uint8_t code[CODE];
    _Atomic(struct entry *) last; /* the entry of the last hit: the next one's, mostly */
};

/* A vCPU's, each on lines of its own. */
static struct {
    _Alignas(LINE_BYTES) struct site *started; /* the noted site that it has begun to execute */
    uint64_t host_cr3;
    bool nested; /* VMRUN has begun and has not come back */
} cpus[CPUS];

static struct header *shared;
static struct entry *entries;
static uint8_t *ram;
static uint64_t ram_size, low;
static int ask = -1, api;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over what follows, and over the question asked */
static uint32_t slots[SLOTS]; /* numbers of entries, from 1; 0: free */
static uint32_t slotted; /* entries that have theirs */
static const void **returns; /* where in our memory the instructions after VMRUN lie */
static size_t n_returns;

struct who { /* a program */
    uint64_t task, started, execs;
};

#include "detection.h"

__attribute__((constructor)) static void choose_version(void)
{
    qemu_plugin_version = qemu_plugin_get_registers ? QEMU_REGISTERS : QEMU_OLDEST;
}

/* The guest's memory at a physical address; 0 where there is none. */
static uint64_t load(uint64_t physical, size_t size)
{
    uint64_t value = 0, at = physical >= HIGH_MEMORY ? physical - HIGH_MEMORY + low : physical;
    if ((physical < low || physical >= HIGH_MEMORY) && at <= ram_size - 8)
        memcpy(&value, ram + at, size);
    return value;
}

/* Which program runs on the vCPU, by the guest's own kernel; all 0 where that is unknown. */
static struct who current(unsigned vcpu)
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

static bool is_of(const struct entry *entry, const struct who *who, bool nested)
{
    return entry->task == who->task && entry->started == who->started && entry->execs == who->execs &&
           (entry->flags & IN_NESTED) == (nested ? IN_NESTED : 0);
}

/* Tells splitlock of a new entry and waits until it has looked at the guest. Called with the lock held. */
static void report(uint32_t number)
{
    char answer;
    ssize_t done;
    while ((done = write(ask, &number, sizeof number)) < 0 && errno == EINTR)
        ;
    while (done > 0 && read(ask, &answer, 1) < 0 && errno == EINTR)
        ;
}

/* Where in `slots` the number of an entry is, or is to be. */
static size_t slot_of(uint64_t pc, const uint8_t *code, const struct who *who, bool nested)
{
    uint64_t begin;
    memcpy(&begin, code, sizeof begin);
    uint64_t hash = (pc ^ begin ^ who->task >> 6 ^ who->started ^ who->execs << 20 ^ nested) * 0x9e3779b97f4a7c15;
    size_t at = hash >> 40 & (SLOTS - 1);
    for (; slots[at]; at = (at + 1) & (SLOTS - 1)) {
        const struct entry *other = &entries[slots[at] - 1];
        if (other->pc == pc && memcmp(other->code, code, CODE) == 0 && is_of(other, who, nested))
            break;
    }
    return at;
}

/* Finds a place for what splitlock has added, too: entries of exceptions that it raised itself. */
static void add_slots(void)
{
    for (; slotted < atomic_load(&shared->entries) && slotted < ENTRIES; slotted++) {
        const struct entry *entry = &entries[slotted];
        struct who who = {entry->task, entry->started, entry->execs};
        slots[slot_of(entry->pc, entry->code, &who, entry->flags & IN_NESTED)] = slotted + 1;
    }
}

static struct entry *find(unsigned vcpu, struct site *site, uint64_t address, unsigned size)
{
    bool nested = cpus[vcpu].nested;
    pthread_mutex_lock(&lock);
    /* Again, now that nobody asks: the answer to another vCPU may have said where the task is to be had. */
    struct who who = site->pc & KERNEL_HALF && !nested ? (struct who){0} : current(vcpu);
    add_slots();
    size_t at = slot_of(site->pc, site->code, &who, nested);
    struct entry *entry = slots[at] ? &entries[slots[at] - 1] : NULL;
    uint64_t number = atomic_load(&shared->entries);
    if (!entry && number < ENTRIES) {
        entry = &entries[number];
        entry->pc = site->pc;
        entry->address = address;
        entry->task = who.task, entry->started = who.started, entry->execs = who.execs;
        entry->vcpu = vcpu;
        entry->size = (uint8_t)size, entry->length = site->length;
        memcpy(entry->code, site->code, CODE);
        entry->flags = (nested ? IN_NESTED : 0) | (atomic_load(&shared->boot_sector) ? AFTER_BOOT_SECTOR : 0);
        if (nested)
            entry->host_cr3 = cpus[vcpu].host_cr3;
        if (shared->knows & 1) {
            read_registers(vcpu, entry->registers);
            entry->flags |= KNOWS_REGISTERS;
        }
        if (shared->knows & 2)
            read_mode(vcpu, entry);
        atomic_store(&shared->entries, number + 1);
        add_slots();
        report((uint32_t)number);
    }
    pthread_mutex_unlock(&lock);
    return entry;
}

/* What splitlock finds the guest's kernel by, also where nothing splits. */
static void look(unsigned vcpu)
{
    uint64_t values[REGISTERS];
    pthread_mutex_lock(&lock);
    if (shared->knows & 1 && atomic_exchange(&shared->look, 0)) {
        read_registers(vcpu, values);
        shared->cr4 = values[CR4];
        shared->cr3 = values[CR3];
    }
    pthread_mutex_unlock(&lock);
}

static bool crosses(const struct site *site, qemu_plugin_meminfo_t info, uint64_t address, unsigned *size)
{
    *size = site->size == 8 ? 8 : 1u << qemu_plugin_mem_size_shift(info);
    return (address & (LINE_BYTES - 1)) + *size > LINE_BYTES;
}

/* The entry of who runs this now; null where there is no more room. */
static struct entry *entry_of(unsigned vcpu, struct site *site, uint64_t address, unsigned size)
{
    bool nested = cpus[vcpu].nested;
    struct who who = site->pc & KERNEL_HALF && !nested ? (struct who){0} : current(vcpu);
    struct entry *entry = atomic_load_explicit(&site->last, memory_order_acquire);
    if (!entry || !is_of(entry, &who, nested)) {
        entry = find(vcpu, site, address, size);
        atomic_store_explicit(&site->last, entry, memory_order_release);
    }
    return entry;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static struct entry *count_trap(unsigned vcpu, struct site *site, uint64_t address, unsigned size, bool waits)
{
    struct entry *entry = entry_of(vcpu, site, address, size);
    if (entry)
        atomic_fetch_add_explicit(&entry->traps, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&shared->traps, 1, memory_order_relaxed);
    if (entry && waits && !entry->trapped_at)
        entry->trapped_at = now();
    return entry;
}

/* What had trapped has executed in the end. */
static void let_go(struct entry *entry)
{
    uint64_t waited = now() - entry->trapped_at;
    entry->trapped_at = 0;
    entry->waited += waited;
    entry->waits++;
    if (waited > entry->longest)
        entry->longest = waited;
}

static void on_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *userdata)
{
    struct site *site = userdata;
    if (!qemu_plugin_mem_is_store(info))
        return;
    if (site->noted) {
        if (cpus[vcpu].started != site)
            return;
        cpus[vcpu].started = NULL;
    }
    if (site->pc & KERNEL_HALF && atomic_load_explicit(&shared->look, memory_order_relaxed) && !cpus[vcpu].nested)
        look(vcpu);
    unsigned size;
    if (!crosses(site, info, address, &size))
        return;
    if (atomic_load_explicit(&shared->armed[vcpu % CPUS], memory_order_relaxed))
        atomic_fetch_add(&shared->escaped, 1);
    struct entry *entry = entry_of(vcpu, site, address, size);
    if (entry && entry->trapped_at)
        let_go(entry);
    atomic_fetch_add_explicit(entry ? &entry->hits : &shared->lost, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&shared->hits, 1, memory_order_relaxed);
}

static void on_start(unsigned vcpu, void *userdata)
{
    cpus[vcpu].started = userdata;
}

/* VMRUN: what follows is the nested guest, unless the instruction faults (AMD APM vol. 3, VMRUN: EFER.SVME, CPL 0). */
static void on_vmrun(unsigned vcpu, void *userdata)
{
    (void)userdata;
    uint64_t values[REGISTERS] = {[EFER] = EFER_SVME};
    if (shared->knows & 1)
        read_registers(vcpu, values);
    cpus[vcpu].nested = values[EFER] & EFER_SVME && !(values[CS] & 3);
    cpus[vcpu].host_cr3 = values[CR3];
}

static void on_return(unsigned vcpu, void *userdata)
{
    (void)userdata;
    cpus[vcpu].nested = false;
}

static void on_boot_sector(unsigned vcpu, void *userdata)
{
    (void)vcpu, (void)userdata;
    atomic_store(&shared->boot_sector, 1);
}

/* Copies an instruction's bytes, and zeros after them; gives their number. Version 3 changed who copies. */
static size_t copy_code(const struct qemu_plugin_insn *insn, uint8_t *code)
{
    size_t length = qemu_plugin_insn_size(insn);
    memset(code, 0, CODE);
    if (length > CODE)
        return 0;
    const void *found = qemu_plugin_insn_data(insn, code, length);
    if (api < QEMU_COPIES_CODE)
        memcpy(code, found, length);
    return length;
}

static bool is_return(const void *place)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n_returns && !found; i++)
        found = returns[i] == place;
    pthread_mutex_unlock(&lock);
    return found;
}

static void add_return(const void *place)
{
    if (is_return(place))
        return;
    pthread_mutex_lock(&lock);
    returns = reallocarray(returns, n_returns + 1, sizeof *returns);
    if (!returns)
        abort();
    returns[n_returns++] = place;
    pthread_mutex_unlock(&lock);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(block);
    struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(block, 0);
    if (n_returns && is_return(qemu_plugin_insn_haddr(first)))
        qemu_plugin_register_vcpu_insn_exec_cb(first, on_return, QEMU_PLUGIN_CB_NO_REGS, NULL);
    if (qemu_plugin_tb_vaddr(block) == 0x7c00 && !atomic_load_explicit(&shared->boot_sector, memory_order_relaxed))
        qemu_plugin_register_vcpu_insn_exec_cb(first, on_boot_sector, QEMU_PLUGIN_CB_NO_REGS, NULL);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        uint8_t code[CODE];
        size_t length = copy_code(insn, code);
        detect_in(insn, code, length, i == 0);
        if (length == 3 && code[0] == 0x0f && code[1] == 0x01 && code[2] == 0xd8) { /* VMRUN */
            add_return((const char *)qemu_plugin_insn_haddr(insn) + length);
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_vmrun, QEMU_PLUGIN_CB_R_REGS, NULL);
            continue;
        }
        bool neg = false;
        unsigned size = locked_size(code, length, &neg);
        if (!size)
            continue;
        struct site *site = calloc(1, sizeof *site);
        if (!site)
            abort();
        site->pc = qemu_plugin_insn_vaddr(insn);
        site->size = (uint8_t)size;
        site->length = (uint8_t)length;
        memcpy(site->code, code, CODE);
        /* with `stub` an instruction may end its translation anywhere: QEMU translates one by one on pages with stops */
        site->noted = by_stub || neg || site->pc >> PAGE_BITS != (site->pc + length) >> PAGE_BITS;
        atomic_fetch_add_explicit(&shared->sites, 1, memory_order_relaxed);
        if (site->noted)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_start, QEMU_PLUGIN_CB_NO_REGS, site);
        qemu_plugin_register_vcpu_mem_cb(insn, detects() ? on_access_detecting : on_access,
                                         detects() ? QEMU_PLUGIN_CB_RW_REGS : QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_MEM_RW, site);
    }
}

static void on_vcpu(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    if (vcpu == 0 && qemu_plugin_get_registers && find_registers())
        shared->knows |= 1;
}

static void *map(int fd, uint64_t size)
{
    void *place = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (place == MAP_FAILED)
        fprintf(stderr, "splitlock plugin: file %d: %s\n", fd, strerror(errno));
    return place == MAP_FAILED ? NULL : place;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    int table = -1, memory = -1, traps = -1;
    const char *detect = "";
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "shared=", 7) == 0)
            table = atoi(argv[i] + 7);
        else if (strncmp(argv[i], "ram=", 4) == 0)
            memory = atoi(argv[i] + 4);
        else if (strncmp(argv[i], "low=", 4) == 0)
            low = strtoull(argv[i] + 4, NULL, 10);
        else if (strncmp(argv[i], "ask=", 4) == 0)
            ask = atoi(argv[i] + 4);
        else if (strncmp(argv[i], "detect=", 7) == 0)
            detect = argv[i] + 7;
        else if (strncmp(argv[i], "traps=", 6) == 0)
            traps = atoi(argv[i] + 6);
    }
    api = info->version.cur;
    if (api < QEMU_OLDEST || api > QEMU_NEWEST) {
        fprintf(stderr, "splitlock plugin: QEMU's plugin interface is version %d, known are %d to %d\n", api,
                QEMU_OLDEST, QEMU_NEWEST);
        return -1;
    }
    if (strcmp(info->target_name, "x86_64") != 0 || !info->system_emulation || info->system.max_vcpus > CPUS) {
        fprintf(stderr, "splitlock plugin: whole x86_64 machines of at most %d CPUs only\n", CPUS);
        return -1;
    }
    if (!set_up_detection(detect, traps))
        return -1;
    struct stat state;
    if (ask < 0 || memory < 0 || fstat(memory, &state) || (ram_size = (uint64_t)state.st_size) < 8 ||
        !(shared = map(table, TABLE + sizeof(struct entry) * ENTRIES)) || !(ram = map(memory, ram_size)))
        return -1;
    entries = (struct entry *)((char *)shared + TABLE);
    bool internals = qemu_get_cpu && x86_cpu_gdb_read_register;
    shared->knows = (internals ? 1 : 0) | (qemu_get_cpu && x86_cpu_dump_state ? 2 : 0);
    shared->api = (uint32_t)api;
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}

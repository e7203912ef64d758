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
#include "table.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

EXPORT int qemu_plugin_version; /* what QEMU looks for: set to what it has before it looks */

enum { LINE_BYTES = 64, PAGE_BITS = 12 };
static const uint64_t KERNEL_HALF = 1ull << 63, EFER_SVME = 1 << 12;

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

static int api;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over the table, the question asked, and what follows */
static const void **returns; /* where in our memory the instructions after VMRUN lie */
static size_t n_returns;

#include "detection.h"

__attribute__((constructor)) static void choose_version(void)
{
    qemu_plugin_version = qemu_plugin_get_registers ? QEMU_REGISTERS : QEMU_OLDEST;
}

/* What runs on the vCPU and makes an entry with this instruction. */
static struct key key_of(unsigned vcpu, const struct site *site)
{
    bool nested = cpus[vcpu].nested;
    struct key key = {.pc = site->pc, .code = site->code, .world = nested ? IN_NESTED : 0};
    if (nested || !(site->pc & KERNEL_HALF))
        key.who = table_who(vcpu);
    return key;
}

static struct entry *find(unsigned vcpu, struct site *site, uint64_t address, unsigned size)
{
    pthread_mutex_lock(&lock);
    /* Again, now that nobody asks: the answer to another vCPU may have said where the task is to be had. */
    struct key key = key_of(vcpu, site);
    struct entry *entry = table_find(&key);
    if (!entry && (entry = table_add(&key))) {
        entry->address = address;
        entry->vcpu = vcpu;
        entry->size = (uint8_t)size, entry->length = site->length;
        if (cpus[vcpu].nested)
            entry->host_cr3 = cpus[vcpu].host_cr3;
        if (shared->knows & 1) {
            read_registers(vcpu, entry->registers);
            entry->flags |= KNOWS_REGISTERS;
        }
        if (shared->knows & 2)
            read_mode(vcpu, entry);
        table_ask(entry);
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
    struct key key = key_of(vcpu, site);
    struct entry *entry = atomic_load_explicit(&site->last, memory_order_acquire);
    if (!entry || !table_is(entry, &key)) {
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
        table_let_go(entry, now());
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

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    int table = -1, memory = -1, traps = -1, ask = -1;
    uint64_t low = 0;
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
    if (!table_open(table, memory, low, ask))
        return -1;
    bool internals = qemu_get_cpu && x86_cpu_gdb_read_register;
    shared->knows = (internals ? 1 : 0) | (qemu_get_cpu && x86_cpu_dump_state ? 2 : 0);
    shared->api = (uint32_t)api;
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}

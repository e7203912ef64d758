/*
 * oracle_plugin.c: a QEMU TCG plugin (user mode) that counts split locks exactly.
 *
 * QEMU emulates locked instructions and executes no real split lock, so a guest may do millions of
 * them without hurting the host. That makes it the tests' judge of what `splitlock run` reports.
 *
 * Arguments (qemu-x86_64 -plugin oracle_plugin.so,out=PATH[,count=all] PROGRAM):
 *   out=PATH    where the result is written, at exit and before each execve(2)
 *   count=all   also count every locked instruction executed, split or not
 *
 * Result, one line a site (a locked instruction at an address in an image) that crossed:
 *   0xPC hits size 0xOFFSET IMAGE
 * PC is the guest's virtual address, size the operand's in bytes, OFFSET where in the file IMAGE
 * the instruction lies ("-" and 0 when it lies in no file, as JIT code does). Then, in this order:
 *   # executed N      with count=all only
 *   # mismatched N    stores whose size was not what our decoder had said; not 0 means a bug here
 *   # end             absent from a file that was not written to its end
 * A forked child starts from zero and writes PATH.PID, if it has anything to say.
 *
 * Why these rules (QEMU 7.2, accel/tcg and target/i386/tcg):
 * - Stores only: a locked instruction loads once or twice but stores exactly once an execution, a
 *   failed compare-exchange and an emulation that was aborted and redone one by one included. QEMU
 *   7.2 has a bug that gives loads to those who ask for stores, so ask for both and look.
 * - Two exceptions, told apart by a note that the instruction's start leaves to its store (`started`):
 *   a contended `lock neg` is a loop of stores; and when a locked instruction that QEMU does in a helper
 *   function (there is a second thread) ends at a page's end, QEMU 7.2 forgets to take its callback down
 *   again, so that it is called for later instructions' stores until another helper's callback replaces it.
 * - The operand's size comes from our own decoder: cmpxchg16b stores two halves of 8 bytes. It
 *   faults when not aligned to 16 bytes, so it never splits; its lower half alone is counted as executed.
 * - The image is looked up at the first hit: the code is running, so its mapping is there, which is
 *   exact for dlopen and dlclose alike.
 *
 * Build: gcc -O2 -shared -fPIC -pthread -o oracle_plugin.so oracle_plugin.c
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The part of QEMU's plugin interface, version 1, that is used here; no package ships the header. */
#define EXPORT __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus, max_vcpus;
    } system;
} qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef void (*qemu_plugin_udata_cb_t)(qemu_plugin_id_t, void *);
typedef void (*qemu_plugin_vcpu_udata_cb_t)(unsigned, void *);
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*qemu_plugin_vcpu_mem_cb_t)(unsigned, qemu_plugin_meminfo_t, uint64_t, void *);
typedef void (*qemu_plugin_vcpu_syscall_cb_t)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, qemu_plugin_vcpu_tb_trans_cb_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, qemu_plugin_vcpu_udata_cb_t,
                                            enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, qemu_plugin_vcpu_mem_cb_t, enum qemu_plugin_cb_flags,
                                      enum qemu_plugin_mem_rw, void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, qemu_plugin_vcpu_syscall_cb_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, qemu_plugin_udata_cb_t, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);

EXPORT int qemu_plugin_version = 1;

enum { LINE_BYTES = 64, PAGE_BITS = 12, SLOTS = 256 };

/* One translation of a locked instruction; the same instruction may be translated several times. */
struct site {
    struct site *next;
    uint64_t pc;
    const void *host; /* where QEMU has the instruction's bytes in its own address space */
    unsigned size;
    bool noted; /* an execution's start is noted in `started`, and only the first store after it counts */
    _Atomic uint64_t hits;
    atomic_bool located;
    uint64_t offset;
    char *image;
};

static struct site *sites;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* over `sites` and each site's image */
static _Atomic uint64_t mismatched;
/* A slot a virtual CPU, each on a line of its own: with one for all, the plugin itself would make threads wait. */
static struct {
    _Alignas(LINE_BYTES) _Atomic uint64_t count;
} executed[SLOTS];

/* The noted site this thread has begun to execute; QEMU runs a guest's thread in a thread of its own. */
static __thread struct site *started __attribute__((tls_model("initial-exec")));

static char *out;
static bool count_all, mode64, forked;
static int64_t execve_number, execveat_number;

/*
 * Size in bytes of the memory operand if the instruction is a locked one, else 0. LOCK before anything
 * else than the instructions below, or with a register operand, is #UD and never executes. Sets *neg for `lock neg`.
 */
static unsigned locked_size(const uint8_t *code, size_t length, bool *neg)
{
    size_t at = 0;
    bool has_lock = false, has_66 = false, rex_w = false;
    for (; at < length; at++) {
        uint8_t byte = code[at];
        if (mode64 && (byte & 0xf0) == 0x40) {
            rex_w = byte & 8;
            continue;
        }
        if (byte == 0xf0)
            has_lock = true;
        else if (byte == 0x66)
            has_66 = true;
        else if (byte != 0xf2 && byte != 0xf3 && byte != 0x67 && byte != 0x26 && byte != 0x2e && byte != 0x36 &&
                 byte != 0x3e && byte != 0x64 && byte != 0x65)
            break;
        rex_w = false; /* a REX prefix counts only right before the opcode */
    }
    if (at >= length)
        return 0;
    uint8_t opcode = code[at++];
    bool two_byte = opcode == 0x0f;
    if (two_byte) {
        if (at >= length)
            return 0;
        opcode = code[at++];
    }
    /* No ModRM byte: not an instruction we look for, or one that ran over the block's end and will come again. */
    if (at >= length || code[at] >> 6 == 3)
        return 0;
    unsigned group = code[at] >> 3 & 7;
    unsigned wide = rex_w ? 8 : has_66 ? 2 : 4;

    if (!two_byte) {
        if (opcode == 0x86 || opcode == 0x87) /* xchg locks without being told */
            return opcode & 1 ? wide : 1;
        if (!has_lock)
            return 0;
        /* in turn: add or adc sbb and sub xor; the same with an immediate (82 is 80's alias in 32-bit code); not neg;
           inc dec */
        bool lockable = (opcode < 0x38 && (opcode & 7) <= 1) ||
                        (opcode >= 0x80 && opcode <= 0x83 && group != 7 && !(opcode == 0x82 && mode64)) ||
                        ((opcode | 1) == 0xf7 && (group == 2 || group == 3)) ||
                        ((opcode | 1) == 0xff && (group == 0 || group == 1));
        if (!lockable)
            return 0;
        *neg = (opcode | 1) == 0xf7 && group == 3;
        return opcode & 1 ? wide : 1;
    }
    if (!has_lock)
        return 0;
    switch (opcode) {
    case 0xb0: /* cmpxchg */
    case 0xc0: /* xadd */
        return 1;
    case 0xb1:
    case 0xc1:
    case 0xab: /* bts */
    case 0xb3: /* btr */
    case 0xbb: /* btc */
        return wide;
    case 0xba: /* bts btr btc with an immediate */
        return group >= 5 ? wide : 0;
    case 0xc7: /* cmpxchg8b, cmpxchg16b */
        return group == 1 ? (rex_w ? 16 : 8) : 0;
    default:
        return 0;
    }
}

/* Finds which file's mapping holds the site. Called with the lock held. */
static void locate(struct site *site)
{
    uint64_t host = (uint64_t)(uintptr_t)site->host;
    char *line = NULL;
    size_t room = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    site->image = "-";
    while (maps && getline(&line, &room, maps) > 0) {
        uint64_t start, end, offset, inode;
        int path = 0;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %" SCNx64 " %*s %" SCNu64 " %n", &start, &end, &offset, &inode,
                   &path) < 4)
            continue;
        if (host < start || host >= end)
            continue;
        line[strcspn(line, "\n")] = 0;
        if (inode && path && line[path]) {
            site->offset = offset + (host - start);
            site->image = strdup(line + path);
        }
        break;
    }
    free(line);
    if (maps)
        fclose(maps);
    atomic_store_explicit(&site->located, true, memory_order_release);
}

static void on_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *userdata)
{
    struct site *site = userdata;
    if (!qemu_plugin_mem_is_store(info))
        return;
    if (site->size == 16 && address & 15)
        return; /* the upper half of a cmpxchg16b */
    if (site->noted) {
        if (started != site)
            return;
        started = NULL;
    }
    if (site->size != 16 && 1u << qemu_plugin_mem_size_shift(info) != site->size)
        atomic_fetch_add_explicit(&mismatched, 1, memory_order_relaxed);
    if (count_all)
        atomic_fetch_add_explicit(&executed[vcpu % SLOTS].count, 1, memory_order_relaxed);
    if ((address & (LINE_BYTES - 1)) + site->size <= LINE_BYTES)
        return;
    if (!atomic_load_explicit(&site->located, memory_order_acquire)) {
        pthread_mutex_lock(&lock);
        if (!atomic_load_explicit(&site->located, memory_order_relaxed))
            locate(site);
        pthread_mutex_unlock(&lock);
    }
    atomic_fetch_add_explicit(&site->hits, 1, memory_order_relaxed);
}

static void on_start(unsigned vcpu, void *userdata)
{
    (void)vcpu;
    started = userdata;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(block, i);
        size_t length = qemu_plugin_insn_size(insn);
        bool neg = false;
        unsigned size = locked_size(qemu_plugin_insn_data(insn), length, &neg);
        if (size == 0 || (size == 1 && !count_all))
            continue; /* not locked, or too small to cross a line */
        struct site *site = calloc(1, sizeof *site);
        if (!site)
            abort();
        site->pc = qemu_plugin_insn_vaddr(insn);
        site->host = qemu_plugin_insn_haddr(insn);
        site->size = size;
        site->noted = neg || site->pc >> PAGE_BITS != (site->pc + length) >> PAGE_BITS;
        pthread_mutex_lock(&lock);
        site->next = sites;
        sites = site;
        pthread_mutex_unlock(&lock);
        if (site->noted)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_start, QEMU_PLUGIN_CB_NO_REGS, site);
        qemu_plugin_register_vcpu_mem_cb(insn, on_access, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, site);
    }
}

static int by_place(const void *left, const void *right)
{
    const struct site *a = *(struct site *const *)left, *b = *(struct site *const *)right;
    if (a->pc != b->pc)
        return a->pc < b->pc ? -1 : 1;
    if (a->size != b->size)
        return a->size < b->size ? -1 : 1;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    return strcmp(a->image, b->image);
}

/* Writes everything counted so far, anew each time: an execve that fails is followed by another call. */
static void write_result(void)
{
    pthread_mutex_lock(&lock);
    size_t count = 0;
    for (struct site *site = sites; site; site = site->next)
        count += atomic_load(&site->hits) != 0;
    struct site **hit = calloc(count + 1, sizeof *hit);
    if (!hit)
        abort();
    size_t filled = 0;
    for (struct site *site = sites; site; site = site->next)
        if (atomic_load(&site->hits) && filled < count)
            hit[filled++] = site;
    qsort(hit, filled, sizeof *hit, by_place);
    uint64_t total = 0;
    for (size_t i = 0; i < SLOTS; i++)
        total += atomic_load(&executed[i].count);

    FILE *file = forked && !filled && !total && !mismatched ? NULL : fopen(out, "we");
    if (file) {
        for (size_t i = 0; i < filled;) {
            struct site *site = hit[i];
            uint64_t hits = 0;
            for (; i < filled && by_place(&hit[i], &site) == 0; i++)
                hits += atomic_load(&hit[i]->hits);
            fprintf(file, "0x%" PRIx64 " %" PRIu64 " %u 0x%" PRIx64 " %s\n", site->pc, hits, site->size, site->offset,
                    site->image);
        }
        if (count_all)
            fprintf(file, "# executed %" PRIu64 "\n", total);
        fprintf(file, "# mismatched %" PRIu64 "\n# end\n", atomic_load(&mismatched));
        fclose(file);
    }
    free(hit);
    pthread_mutex_unlock(&lock);
}

static void on_exit_(qemu_plugin_id_t id, void *userdata)
{
    (void)id, (void)userdata;
    write_result();
}

/* The program that execve starts runs natively, without QEMU and without us: last chance to write. */
static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number == execve_number || number == execveat_number)
        write_result();
}

/* QEMU makes fork, vfork and posix_spawn alike a fork(3) of itself, and these run around it. */
static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void in_child(void)
{
    static char *parents_out;
    if (!parents_out)
        parents_out = out;
    forked = true;
    if (asprintf(&out, "%s.%d", parents_out, (int)getpid()) < 0)
        abort();
    for (struct site *site = sites; site; site = site->next)
        atomic_store(&site->hits, 0);
    for (size_t i = 0; i < SLOTS; i++)
        atomic_store(&executed[i].count, 0);
    atomic_store(&mismatched, 0);
    pthread_mutex_unlock(&lock);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    mode64 = strcmp(info->target_name, "x86_64") == 0;
    if (!mode64 && strcmp(info->target_name, "i386") != 0) {
        fprintf(stderr, "oracle_plugin: x86 guests only, not %s\n", info->target_name);
        return -1;
    }
    execve_number = mode64 ? 59 : 11;
    execveat_number = mode64 ? 322 : 358;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0 && argv[i][4]) {
            out = strdup(argv[i] + 4);
        } else if (strcmp(argv[i], "count=all") == 0) {
            count_all = true;
        } else {
            fprintf(stderr, "oracle_plugin: unknown argument %s\n", argv[i]);
            return -1;
        }
    }
    if (!out) {
        fputs("oracle_plugin: out=PATH is missing\n", stderr);
        return -1;
    }
    if (info->system_emulation) {
        fputs("oracle_plugin: user mode only\n", stderr);
        return -1;
    }
    pthread_atfork(before_fork, after_fork, in_child);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
    return 0;
}

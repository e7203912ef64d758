/*
 * forms K [threads] [fork] [exec] [dlopen PATH]: run every form of gen_forms.py K times on an operand that crosses a
 * cache line (each a split lock) and 3 times on one that does not.
 *
 *   threads      in two threads, each K times, instead of in the main thread
 *   fork, exec   in a forked child and in a forked child that runs this program anew, as well as here
 *   dlopen PATH  the forms of that shared library (build "lib") instead of the program's own
 *
 * Every call is made twice, with and without the lock, from the same registers and memory: any difference afterwards
 * in registers, flags, operand, stack or red zone is printed, and the exit status is then 1.
 * $FORMS_OUT (a file, or - for stdout) gets a line a form, counted over all threads and processes:
 *     NAME expected-hits hits-of-its-first-site [hits-of-its-second-site]
 * $FORMS_EVERY=N: only every Nth form crosses; the others run aligned alone.
 * $FORMS_EXEC names a program to put before this one in `exec` (an emulator).
 * Expected hits: K times what the manifest lists; exit status 0, or 1 for any difference, 2 for wrong usage.
 */
#define _GNU_SOURCE
#include "forms.h"

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LINE = 64, PAGE = 4096, SECOND_OPERAND = 256, ALIGNED_RUNS = 3, WORKERS = 3 };
enum { STACK_TOP = 2 * PAGE - 256, BLOCK = 4 * PAGE, NEAR = 256 };  /* stack below, operands in the upper half */

struct worker {
    uint8_t *block;            /* stack and operand */
    uint8_t before[BLOCK + NEAR], after[BLOCK + NEAR];
    bool failed;
};

extern const struct forms_module forms_module;
extern __thread uint8_t forms_tls[NEAR] __attribute__((visibility("hidden")));

static const struct forms_module *module = &forms_module;
static unsigned crossings;     /* K */
static unsigned every = 1;     /* which forms cross */
static uint32_t (*hits)[2];    /* [form][site], shared with every child */
static pthread_mutex_t fixed_operand = PTHREAD_MUTEX_INITIALIZER;
static uint8_t blocks[WORKERS][BLOCK] __attribute__((aligned(4096)));  /* below 4 GiB in a non-PIE program */
static struct worker workers[WORKERS];

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "forms: %s: %s\n", what, strerror(errno));
    exit(2);
}

static bool crosses(uint64_t address, unsigned size)
{
    return address % LINE + size > LINE;
}

static uint64_t thread_pointer(void)
{
    uint64_t pointer;
    __asm__("mov %%fs:0, %0" : "=r"(pointer));
    return pointer;
}

/* How far a bit offset in a register moves the operand. */
static int64_t bytes_moved(const struct form *form)
{
    int shift = form->size == 2 ? 4 : form->size == 4 ? 5 : 6;
    return form->bit_register == NO_REGISTER ? 0 : (form->bit_value >> shift) * form->size;
}

/* The 256 bytes besides the block in which the operand may lie. */
static uint8_t *near_memory(const struct form *form)
{
    return form->flags & FORM_FIXED ? module->fixed : form->flags & FORM_TLS ? forms_tls : NULL;
}

/* The operand's address in run number `run`; 0 if the form has none of that kind. */
static uint64_t choose_address(const struct form *form, unsigned number, unsigned run, bool crossing, uint8_t *block)
{
    if (near_memory(form)) {
        uint64_t address = (uint64_t)near_memory(form) + form->disp + bytes_moved(form);
        return crosses(address, form->size) == crossing ? address : 0;
    }
    unsigned offsets[LINE], count = 0;
    for (unsigned offset = form->phase; offset < LINE; offset += form->step)
        if (crosses(offset, form->size) == crossing)
            offsets[count++] = offset;
    if (count == 0)
        return 0;
    /* inside the line: its first bytes, its last bytes, then anywhere; across it: every offset in turn */
    unsigned pick = crossing ? number + run : run == 0 ? 0 : run == 1 ? count - 1 : number + 7 * run;
    /* every other line is its page's last */
    uint64_t line = (uint64_t)block + (((number + run) % 2) ? 3 * PAGE - LINE : 2 * PAGE + 1024);
    return line + offsets[pick % count];
}

/* Registers that make the form's operand lie at `address`. */
static void choose_registers(const struct form *form, uint64_t address, unsigned seed, uint8_t *block, uint64_t *regs)
{
    for (unsigned i = 0; i < 16; i++)
        regs[i] = (seed + i + 1) * 0x9e3779b97f4a7c15u;
    regs[RSP] = (uint64_t)block + STACK_TOP;
    if (form->flags & FORM_SET_RCX)
        regs[RCX] = form->rcx;
    if (form->flags & FORM_SECOND)
        regs[RSI] = address + SECOND_OPERAND;
    if (form->flags & FORM_EQUAL) {
        memcpy(&regs[RAX], (void *)address, form->size < 8 ? form->size : 8);
        if (form->size == 8)   /* cmpxchg8b compares edx:eax */
            memcpy(&regs[RDX], (void *)(address + 4), 4);
        if (form->size == 16)
            memcpy(&regs[RDX], (void *)(address + 8), 8);
    }
    if (form->bit_register != NO_REGISTER) {
        uint64_t used = form->size == 8 ? ~0ull : (1ull << 8 * form->size) - 1;
        regs[form->bit_register] = (regs[form->bit_register] & ~used) | (form->bit_value & used);
    }

    uint64_t known = (uint64_t)form->anchor + form->disp + bytes_moved(form);
    uint64_t low = form->flags & FORM_ADDR32 ? 0xffffffff : ~0ull;
    int64_t rest = address - known - (form->flags & FORM_FS ? thread_pointer() : 0);
    if (form->index != NO_REGISTER) {
        int64_t value = form->base == NO_REGISTER ? rest / form->scale : form->index_value;
        regs[form->index] = (regs[form->index] & ~low) | (value & low);
        rest -= value * form->scale;
    }
    if (form->base == NO_REGISTER && form->index != NO_REGISTER && rest != 0)
        die(form->name);       /* its phase in gen_forms.py is wrong */
    if (form->base == RSP)
        regs[RSP] = rest + form->lowered + 8;  /* the call pushes 8 bytes */
    else if (form->base != NO_REGISTER)
        regs[form->base] = (regs[form->base] & ~low) | (rest & low);
}

static void fill(uint8_t *memory, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++)
        memory[i] = (uint8_t)((i + seed) * 167 + (i >> 8) + 1);
}

static void set_memory(const struct form *form, uint64_t address, unsigned seed, uint8_t *block)
{
    fill(block, BLOCK, seed);
    if (near_memory(form))
        fill(near_memory(form), NEAR, seed);
    if (form->flags & FORM_SET_MEMORY)
        memcpy((void *)address, &form->memory, form->size);
}

/* Call one variant of the form and keep what memory looks like afterwards, from the red zone upwards. */
static void execute(const struct form *form, void (*target)(void), uint64_t address, unsigned seed, uint8_t *block,
                    struct call *call, uint8_t *memory)
{
    static const uint16_t flags[] = {0x8d5, 0, 0x801, 0x0d4, 0x041, 0x890};
    memset(call, 0, sizeof *call);
    set_memory(form, address, seed, block);
    choose_registers(form, address, seed, block, call->in);
    call->in_flags = flags[seed % (sizeof flags / sizeof *flags)];
    call->target = target;
    forms_call(call);

    memset((void *)call->in[RSP], 0, 32);  /* forms_call's scratch */
    uint8_t *red_zone = (uint8_t *)call->in[RSP] - 8 - form->lowered - 128;
    memset(block, 0, red_zone - block);
    memcpy(memory, block, BLOCK);
    if (near_memory(form))
        memcpy(memory + BLOCK, near_memory(form), NEAR);
}

static bool same(const struct form *form, uint64_t address, const struct call *got, const struct call *want,
                 const struct worker *worker)
{
    static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                        "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    bool equal = true;
    for (unsigned i = 0; i < 16; i++)
        if (got->out[i] != want->out[i]) {
            printf("%s at %#" PRIx64 ": %s is %#" PRIx64 ", not %#" PRIx64 "\n", form->name, address, names[i],
                   got->out[i], want->out[i]);
            equal = false;
        }
    if (got->out_flags != want->out_flags) {
        printf("%s at %#" PRIx64 ": flags are %#" PRIx64 ", not %#" PRIx64 " (%#" PRIx64 " before)\n", form->name,
               address, got->out_flags, want->out_flags, got->in_flags);
        equal = false;
    }
    for (unsigned i = 0; i < sizeof worker->after; i++)
        if (worker->after[i] != worker->before[i]) {
            uint64_t where = (uint64_t)(i < BLOCK ? worker->block + i : near_memory(form) + (i - BLOCK));
            printf("%s at %#" PRIx64 ": byte %#" PRIx64 " (rsp%+" PRId64 ") is %#x, not %#x\n", form->name, address,
                   where, (int64_t)(where - got->in[RSP]), worker->after[i], worker->before[i]);
            return false;
        }
    return equal;
}

static bool run_once(const struct form *form, uint64_t address, unsigned seed, struct worker *worker)
{
    struct call want, got;
    execute(form, form->ref, address, seed, worker->block, &want, worker->before);
    execute(form, form->run, address, seed, worker->block, &got, worker->after);
    return same(form, address, &got, &want, worker);
}

static void run_form(unsigned number, struct worker *worker)
{
    const struct form *form = &module->forms[number];
    if (near_memory(form))
        pthread_mutex_lock(&fixed_operand);
    unsigned runs = ALIGNED_RUNS + (number % every == 0 ? crossings : 0);
    for (unsigned run = 0; run < runs; run++) {
        bool crossing = run >= ALIGNED_RUNS;
        uint64_t address = choose_address(form, number, crossing ? run - ALIGNED_RUNS : run, crossing, worker->block);
        if (!address)
            continue;
        if (!run_once(form, address, number + run, worker))
            worker->failed = true;
        for (unsigned site = 0; crossing && site < 2; site++)
            __atomic_fetch_add(&hits[number][site], form->hits[site], __ATOMIC_RELAXED);
    }
    if (near_memory(form))
        pthread_mutex_unlock(&fixed_operand);
}

static void *run_all(void *argument)
{
    struct worker *worker = argument;
    worker->block = blocks[worker - workers];
    for (unsigned number = 0; number < module->count; number++)
        run_form(number, worker);
    return NULL;
}

/* Run every form in this process; whether all went well. */
static bool work(bool threads)
{
    if (!threads) {
        run_all(&workers[0]);
        return !workers[0].failed;
    }
    pthread_t ids[2];
    for (unsigned i = 0; i < 2; i++)
        if ((errno = pthread_create(&ids[i], NULL, run_all, &workers[i + 1])))
            die("pthread_create");
    for (unsigned i = 0; i < 2; i++)
        pthread_join(ids[i], NULL);
    return !workers[1].failed && !workers[2].failed;
}

static bool wait_for(pid_t child)
{
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0)
        die("fork");
    if (status != 0)
        fprintf(stderr, "forms: child: wait status %#x\n", (unsigned)status);
    return status == 0;
}

static bool work_forked(bool threads)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        bool good = work(threads);
        fflush(NULL);
        _exit(!good);
    }
    return wait_for(child);
}

static bool work_executed(char **argv, bool threads, char *library, int shared)
{
    char child_mode[32], *arguments[10], *self = realpath(argv[0], NULL), *wrapper = getenv("FORMS_EXEC");
    unsigned count = 0;
    snprintf(child_mode, sizeof child_mode, "child=%d", shared);
    if (wrapper)
        arguments[count++] = wrapper;
    arguments[count++] = self ? self : argv[0];
    arguments[count++] = argv[1];
    if (threads)
        arguments[count++] = "threads";
    if (library) {
        arguments[count++] = "dlopen";
        arguments[count++] = library;
    }
    arguments[count++] = child_mode;
    arguments[count] = NULL;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        execv(arguments[0], arguments);
        die(arguments[0]);
    }
    return wait_for(child);
}

static void load_library(const char *path)
{
#ifdef FORMS_STATIC
    (void)path;
    fprintf(stderr, "forms: a static program has no dlopen\n");
    exit(2);
#else
    void *library = dlopen(path, RTLD_NOW);
    if (!library || !(module = dlsym(library, "forms_module"))) {
        fprintf(stderr, "forms: %s\n", dlerror());
        exit(2);
    }
#endif
}

/* Bytes between functions that look like locked instructions must be left alone. */
static bool lookalikes_intact(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < module->data_size; i++)
        sum = sum * 31 + module->data[i];
    bool intact = sum == module->data_checksum;
    printf("# lookalikes in .text: checksum %#" PRIx64 ", %s\n", sum, intact ? "intact" : "CHANGED");
    return intact;
}

static void report(void)
{
    const char *path = getenv("FORMS_OUT");
    if (!path)
        return;
    FILE *file = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (!file)
        die(path);
    for (size_t number = 0; number < module->count;) {
        const struct form *form = &module->forms[number];
        unsigned total[2] = {0, 0}, sites = 1;
        for (; number < module->count && module->forms[number].run == form->run; number++) {  /* its calls */
            total[0] += hits[number][0];
            total[1] += hits[number][1];
            sites = module->forms[number].hits[1] ? 2 : sites;
        }
        fprintf(file, "%s %u %u", form->name, total[0] + total[1], total[0]);
        fprintf(file, sites == 2 ? " %u\n" : "\n", total[1]);
    }
    if (fflush(file))
        die(path);
}

int main(int argc, char **argv)
{
    const char *stride = getenv("FORMS_EVERY");
    if (stride && atoi(stride) > 0)
        every = (unsigned)atoi(stride);
    bool threads = false, forked = false, executed = false, good = true;
    char *library = NULL;
    int shared = -1;
    if (argc < 2) {
        fprintf(stderr, "usage: forms K [threads] [fork] [exec] [dlopen PATH]\n");
        return 2;
    }
    crossings = strtoul(argv[1], NULL, 10);
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "threads") == 0) {
            threads = true;
        } else if (strcmp(argv[i], "fork") == 0) {
            forked = true;
        } else if (strcmp(argv[i], "exec") == 0) {
            executed = true;
        } else if (strcmp(argv[i], "dlopen") == 0 && i + 1 < argc) {
            library = argv[++i];
        } else if (sscanf(argv[i], "child=%d", &shared) != 1) {
            fprintf(stderr, "forms: unknown mode %s\n", argv[i]);
            return 2;
        }
    }
    if (library)
        load_library(library);
    bool child = shared >= 0;
    size_t size = module->count * sizeof *hits;
    if (!child && ((shared = memfd_create("forms", 0)) < 0 || ftruncate(shared, size) < 0))
        die("memfd_create");
    hits = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
    if (hits == MAP_FAILED)
        die("mmap");

    if (forked)
        good &= work_forked(threads);
    if (executed)
        good &= work_executed(argv, threads, library, shared);
    good &= work(threads);
    good &= lookalikes_intact();
    if (!child)
        report();
    return !good;
}

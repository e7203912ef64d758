/* filter.c: a seccomp filter that the program installs. Where it lets each of our calls through, all goes on; else none is made
 * from then on, and what the program executes, under the same filter, is not watched. */
#include "agent.h"

enum { MOST = 4096, WORDS = 16, ARCHITECTURE = 0xc000003e /* AUDIT_ARCH_X86_64 */ };
enum { RET_LOG = 0x7ffc0000, RET_ALLOW = 0x7fff0000, RET_ACTION = 0xffff0000 };

bool can_load = true;

/* what we call when a library is loaded whose image file is there */
static const uint16_t loads[] = {
    NR_OPENAT, NR_CLOSE, NR_FSTAT, NR_MMAP, NR_MPROTECT, NR_MUNMAP, NR_PREAD64, NR_GETPID, NR_GETEUID, NR_NEWFSTATAT, NR_PROCESS_VM_READV,
};

/* what we call at all */
static const uint16_t ours[] = {
    NR_READ, NR_OPENAT, NR_CLOSE, NR_POLL, NR_FSTAT, NR_MMAP, NR_MPROTECT, NR_MUNMAP, NR_RT_SIGACTION, NR_RT_SIGPROCMASK, NR_PREAD64, NR_PWRITE64, NR_MSYNC,
    NR_MINCORE, NR_MADVISE, NR_NANOSLEEP, NR_SHMAT, NR_SHMCTL, NR_GETPID, NR_EXECVE, NR_READLINK, NR_GETUID, NR_GETGID, NR_GETEUID,
    NR_GETEGID, NR_PRCTL, NR_GETTID, NR_FGETXATTR, NR_FUTEX, NR_CLOCK_GETTIME, NR_NEWFSTATAT, NR_RT_TGSIGQUEUEINFO,
    NR_PROCESS_VM_READV, NR_PIDFD_OPEN,
};

struct instruction { /* struct sock_filter */
    uint16_t code;
    uint8_t when, unless;
    uint32_t k;
};

struct filter_program { /* struct sock_fprog */
    uint16_t length;
    const struct instruction *code;
};

struct data { /* struct seccomp_data */
    uint32_t number, architecture;
    uint64_t ip, arguments[6];
};

static uint32_t computed(uint32_t operation, uint32_t a, uint32_t b)
{
    switch (operation) {
    case 0x00: return a + b;
    case 0x10: return a - b;
    case 0x20: return a * b;
    case 0x30: return b ? a / b : 0;
    case 0x40: return a | b;
    case 0x50: return a & b;
    case 0x60: return b < 32 ? a << b : 0;
    case 0x70: return b < 32 ? a >> b : 0;
    case 0x80: return -a;
    default: return a ^ b;
    }
}

static bool is_so(uint32_t operation, uint32_t a, uint32_t b)
{
    switch (operation) {
    case 0x10: return a == b;
    case 0x20: return a > b;
    case 0x30: return a >= b;
    default: return a & b;
    }
}

/* What the filter answers (Documentation/networking/filter.rst; kernel/seccomp.c says which instructions there may be). */
static uint32_t answer(const struct instruction *code, uint32_t length, const struct data *data)
{
    uint32_t a = 0, x = 0, memory[WORDS] = {0};
    for (uint32_t at = 0; at < length; at++) {
        const struct instruction *i = &code[at];
        uint32_t other = i->code & 8 ? x : i->k, operation = i->code & 0xf0;
        switch (i->code & 7) {
        case 0: /* load */
        case 1: {
            uint32_t value = i->k;
            if ((i->code & 0xe0) == 0x20 && i->k < sizeof *data)
                memcpy(&value, (const char *)data + i->k, 4);
            else if ((i->code & 0xe0) == 0x60)
                value = memory[i->k % WORDS];
            else if ((i->code & 0xe0) == 0x80)
                value = sizeof *data;
            *(i->code & 1 ? &x : &a) = value;
            break;
        }
        case 2: memory[i->k % WORDS] = a; break;
        case 3: memory[i->k % WORDS] = x; break;
        case 4: a = computed(operation, a, other); break;
        case 5: {
            uint32_t skipped = operation == 0 ? i->k : is_so(operation, a, other) ? i->when : i->unless;
            if (skipped >= length - at) /* the kernel refuses it */
                return 0;
            at += skipped;
            break;
        }
        case 6: return i->code & 0x10 ? a : i->k;
        default: *(i->code & 0x80 ? &a : &x) = i->code & 0x80 ? x : a;
        }
    }
    return 0;
}

static bool lets_through(const struct instruction *code, uint32_t length, uint32_t number, uint64_t protection)
{
    struct data data = {number, ARCHITECTURE, (uint64_t)&lets_through, {0, 0, protection, 0, 0, 0}};
    uint32_t action = answer(code, length, &data) & RET_ACTION;
    return action == RET_ALLOW || action == RET_LOG;
}

static bool let_through(const struct instruction *code, uint32_t length, const uint16_t *numbers, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        for (uint64_t rights = 0; rights <= (PROT_READ | PROT_WRITE | PROT_EXEC); rights++) /* W^X */
            if (!lets_through(code, length, numbers[i], rights))
                return false;
    return true;
}

static bool hinders(const struct frame *frame)
{
    bool could_load = can_load;
    struct filter_program program = {0, NULL};
    bool is_filter = frame->ax == NR_PRCTL ? frame->si == 2 : frame->di == 1; /* else it is strict */
    struct iovec here = {&program, sizeof program}, there = {(const void *)frame->dx, sizeof program};
    long self = call1(NR_GETPID, 0);
    can_load = false;
    if (!is_filter || call6(NR_PROCESS_VM_READV, self, (long)&here, 1, (long)&there, 1, 0) != sizeof program || program.length > MOST)
        return true;
    uint64_t size = program.length * sizeof *program.code;
    struct instruction *code = (struct instruction *)call6(NR_MMAP, 0, MOST * sizeof *code, PROT_READ | PROT_WRITE,
                                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(code))
        return true;
    here = (struct iovec){code, size}, there = (struct iovec){program.code, size};
    bool good = call6(NR_PROCESS_VM_READV, self, (long)&here, 1, (long)&there, 1, 0) == (long)size;
    can_load = could_load && good && let_through(code, program.length, loads, sizeof loads / sizeof *loads);
    good = good && let_through(code, program.length, ours, sizeof ours / sizeof *ours);
    call2(NR_MUNMAP, (long)code, MOST * sizeof *code);
    return !good;
}

/* Whether what a call of prctl(2) or seccomp(2) would install hinders us. Then the kernel calls the program's handlers itself from
 * now on, and they may find a thread in a trampoline: ours would make calls. */
bool is_hindered(const struct frame *frame)
{
    bool installs = frame->ax == NR_PRCTL || frame->di <= 1; /* seccomp(2) else tells what there is */
    if (!installs || !hinders(frame))
        return false;
    give_handlers();
    return true;
}

/* A call behind a filter that hinders us: noted, with none of ours. */
void on_filtered_call(const struct frame *frame)
{
    long number = (long)frame->ax;
    bool executable = frame->dx & PROT_EXEC;
    if (number == NR_EXECVE || number == NR_EXECVEAT)
        escaped("(by a program with a filter of its own)", IS_FILTERED);
    else if (number == NR_MMAP && executable && frame->r10 & MAP_ANONYMOUS)
        note_made_bytes(frame->si);
    else if ((number == NR_MPROTECT || number == NR_PKEY_MPROTECT) && executable)
        made_code(frame->di, frame->si);
}

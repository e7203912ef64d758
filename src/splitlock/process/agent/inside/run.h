/* The run's memory: one System V segment that all watched processes and their supervisor share (../memory.py reads it).
 *
 * It is a segment, not a file: it needs no path, no descriptor, no room on a disk, and the kernel counts who has it. */
#ifndef RUN_H
#define RUN_H

#include <stdatomic.h>
#include <stdint.h>
#include "image.h"

#define RUN_MAGIC 0x31524e554b4c5053ULL
enum { RUN_VERSION = 18, IMAGES = 2048, SAMPLES = 256, TASKS = 4096, SAMPLES_OF_SITE = 8, ESCAPES = 128, NAME = 168, MODULES = 128 };
enum { FINDS = 4096, PROGRAMS = 256, FIND_BEFORE = 40, DOORS = 16 };
enum { STACK = 12288, REGISTERS = 17, CACHE = 200, COUNTERS = 1 << 18 };

enum mode { WARN = 1, FATAL, RATELIMIT, MITIGATE };

enum state { FREE, CLAIMED, ASKED, READY, NOTHING, REFUSED };

/* why code is not watched */
enum reason {
    NO_REASON, NO_ANSWER, NOT_OPENED, NOT_PLACED, CHANGED, NOT_MAPPED, NO_COUNTERS, IS_STATIC, IS_NARROW, IS_SECURE,
    OTHER_LINKER, NOT_READ, IS_MOVED, IS_FOREIGN, IS_FILTERED, IS_SHARED, IS_OWN, IS_EDITED, IS_HIDDEN, IS_ALONE,
    IS_DISPATCHED, NO_HEADERS, IS_UNKNOWN, IS_SUDDEN, IS_ANOTHERS, IS_AUDITOR, NO_ROOM,
};

struct seen_image { /* one file that a process has mapped */
    _Atomic uint32_t state;
    uint32_t reason;
    uint64_t key[KEY];
    uint64_t low;                     /* its lowest address */
    _Atomic uint32_t mapped, patched; /* times */
    _Atomic uint32_t lost;            /* times that text patched then became the program's own again */
    _Atomic uint32_t counters;        /* its first one, 0 where it has none yet */
    int32_t pid, fd;                  /* who asks for its image file, by which descriptor */
    uint32_t size;                    /* from its lowest to its highest address, bytes */
    uint32_t watched, unwatched;      /* its image file's */
    uint32_t unused;
    uint64_t watched_bytes;
    _Atomic uint64_t settler;         /* who settles what becomes of it: one program of one process (who_settles()) */
    char name[NAME];
};

struct escape { /* a program that was started without an agent */
    _Atomic uint32_t state;
    uint32_t reason;
    _Atomic uint32_t times;
    uint32_t unused;
    char name[NAME];
};

struct program { /* one that was executed, with an agent; each once */
    _Atomic uint32_t state;
    uint32_t has_scope; /* an argument is --scope: systemd-run then starts it itself */
    char comm[16];
    char name[NAME];
};

struct module {
    uint64_t bias;
    uint32_t image, unused;
};

struct task { /* a thread's first split lock at a site */
    _Atomic uint32_t state;
    uint32_t image, site, sample; /* sample: its number and 1, or 0 */
    int32_t pid, tid;
    char comm[16];
};

struct sample {
    uint64_t time, operand;        /* nanoseconds since 1970 */
    uint64_t registers[REGISTERS]; /* in DWARF's order: rax rdx rcx rbx rsi rdi rbp rsp r8..r15 rip */
    uint64_t mapped, mapped_end;   /* the mapping that the operand is in, and its name in /proc/self/maps; 0 where not known */
    char mapping[NAME];
    uint32_t stack_size, module_count;
    struct module modules[MODULES];
    uint8_t stack[STACK];
};

struct find { /* code that may be a locked instruction, at `at`, and what is around it */
    uint8_t at, size;
    uint8_t code[62];
};

/* A program that the agent cannot be brought into is about to be executed: a tracer is asked for. The agent claims a door and
 * asks; the tracer says who it is (THERE), the agent lets it (ALLOWED: Yama), it traces (TRACED) or cannot (UNABLE), the call is made.
 * Where it fails the agent says so (FAILED), and the tracer goes. */
enum door_state { SHUT, TAKEN, KNOCKED, THERE, ALLOWED, TRACED, UNABLE, FAILED_CALL };

struct door {
    _Atomic uint32_t state;
    int32_t tid, tracer;
    uint32_t reason;
    char name[NAME];
};

struct run {
    uint64_t magic;
    uint32_t version, mode;
    int32_t supervisor;
    _Atomic uint32_t beats;                       /* goes on while the supervisor does: it may be stopped, or be another process by now */
    _Atomic uint32_t asked;                       /* futex: something for the supervisor */
    _Atomic uint32_t processes;                   /* forks; entry.S knows where this is */
    _Atomic uint32_t programs;                    /* executed, with an agent that began */
    _Atomic uint32_t announced;                   /* executed with our lines in the environment, but for the first */
    _Atomic uint32_t counters_used, tasks_used, samples_used, finds_used;
    _Atomic uint32_t tasks_lost, images_lost, escapes_lost;
    uint32_t limit, sleep_ms, window_us, step_ms; /* of the mode */
    _Atomic uint32_t holder;                      /* the thread that alone may split now, until `until` */
    _Atomic uint32_t reported;                    /* Python has said what there is to say, and its exit status counts */
    _Atomic uint32_t traced;                      /* programs that a tracer has followed from their execution on */
    _Atomic uint64_t until, window;               /* nanoseconds; begin of a second in milliseconds, split locks since */
    _Atomic uint64_t made_bytes;                  /* of executable memory without a file, the most of one process */
    /* directories of image files: the user's, this run's own where that takes none, and the one that root has filled for all */
    char cache[CACHE], spare[CACHE], shared[CACHE];
    struct seen_image images[IMAGES];
    struct escape escapes[ESCAPES];
    _Atomic uint64_t counters[COUNTERS];          /* from the second on: `counters_used` of them */
    _Atomic uint8_t sampled[COUNTERS];            /* samples of each site */
    struct task tasks[TASKS];
    struct sample samples[SAMPLES];
    struct find finds[FINDS];
    struct program started[PROGRAMS];
    struct door doors[DOORS];
};

#endif

/* What the image's parts share: selectors, kinds of trial, and the trial itself. */
#define CODE32 0x08
#define DATA32 0x10
#define USER32 0x1b
#define USERDATA 0x23
#define CODE64 0x28
#define USER64 0x33
#define CODE16 0x38
#define DATA16 0x40
#define TSS32 0x48
#define TSS64 0x50

#define REAL 0
#define PROTECTED 1
#define LONG 2

#define OP_LOCK 0  /* lock add dword ptr [operand], 1 */
#define OP_ADD 1   /* add dword ptr [operand], 1 */
#define OP_CPUID 2 /* leaf 0: what leaving the guest costs */
#define OP_RDMSR 3
#define OP_WRMSR 4

#define DONE 0x20 /* in place of a vector: nothing was raised */

#define GUARD 64        /* bytes below each stack that nothing may touch */
#define HOME_STACK 4096 /* bytes of the image's own stack */
#define AWAY_STACK 1024 /* of the stack in another mode, and of exceptions out of CPL 3 */
#define USER_STACK 512

#ifndef __ASSEMBLER__
#include <stdint.h>

/* A trial: one instruction in one state of the processor (trial.S). In: */
extern uint32_t trial_mode, trial_cpl, trial_op, trial_operand, trial_msr;
extern uint32_t trial_flags; /* EFLAGS */
extern uint32_t trial_am;    /* CR0.AM, in its place */
/* Both ways: EDX:EAX of RDMSR and WRMSR. */
extern uint32_t trial_eax, trial_edx;
/* Out: the vector raised, or DONE; its error code (none in real mode); where; and the cycles taken when DONE. */
extern uint32_t trial_vector, trial_error, trial_ip, trial_low, trial_high;
extern uint32_t trial_at, trial_next; /* the instruction, and the one after it */
void trial(void);

/* console.c: whole lines, to the serial port and the screen */
void console_start(void);
void text(const char *words);
void hex(uint32_t number, int digits);
void decimal(uint32_t number);
void line_begin(const char *kind);
void line_end(void);

/* progress.c: which row comes next, kept across a reset */
int progress_load(uint32_t *next);
void progress_save(uint32_t next);
void progress_clear(void);

/* clock.c: the time-stamp counter's frequency, and the wait before a split lock */
extern const uint32_t wait_ms; /* start.S */
void clock_start(void);
void clock_tell(void);
void clock_wait(void);

/* stacks.c: whether the stacks have kept to their places */
extern uint32_t user_guard[], away_guard[], home_guard[];
void stacks_start(void);
int stacks_whole(void);

/* processor.c: what the processor announces */
void processor_tell(void);
int processor_has_long_mode(void);
int processor_has_bus_lock(void);
int test_ctrl_set(int on);
int bus_lock_set(int on);

/* plan.c: which rows there are, in which order; gives their number */
enum kind { ALIGNED, CPUID, MISALIGNED, SPLIT, BUS };
struct row {
    uint8_t mode, cpl, kind;
    uint8_t times;     /* executions, at most 3 */
    uint8_t detecting; /* TEST_CTRL bit 29 is to be set */
    uint32_t am, ac;   /* CR0.AM and EFLAGS.AC, in their places */
};
#define MOST_ROWS 70
uint32_t plan(struct row *rows, int has_long_mode, int has_detection, int has_bus_lock);

/* rows.c: the experiments */
void rows_run(void);

struct cpuid {
    uint32_t a, b, c, d;
};

static inline struct cpuid cpuid(uint32_t leaf) {
    struct cpuid of;
    __asm__ volatile("cpuid" : "=a"(of.a), "=b"(of.b), "=c"(of.c), "=d"(of.d) : "a"(leaf), "c"(0));
    return of;
}

static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

static inline uint8_t inb(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
#endif

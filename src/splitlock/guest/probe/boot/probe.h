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

/* processor.c: what the processor announces */
void processor_tell(void);
int processor_has_long_mode(void);
int processor_has_bus_lock(void);
int test_ctrl_set(int on);
int bus_lock_set(int on);

/* rows.c: the experiments */
void rows_run(void);

static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

static inline uint8_t inb(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
#endif

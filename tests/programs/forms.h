/*
 * What the generated forms (gen_forms.py) and the driver (forms_main.c) agree on.
 *
 * A form is one function around one locked instruction (a few have two). `ref` is the same function without any lock:
 * called with the same registers and memory it must leave the same registers, flags and memory.
 *
 * Where the operand lies:  base + index * scale + disp + anchor (+ thread pointer) (+ bytes moved by a bit offset).
 * The driver picks an address for the operand and solves that for the base (or, without one, the index).
 * Registers are numbered as the processor does: rax rcx rdx rbx rsp rbp rsi rdi r8..r15; NO_REGISTER = none.
 */
#ifndef FORMS_H
#define FORMS_H
#include <stddef.h>
#include <stdint.h>

enum { NO_REGISTER = 255, RAX = 0, RCX = 1, RDX = 2, RSP = 4, RSI = 6 };

enum {                         /* form.flags; the same numbers stand in gen_forms.py */
    FORM_FIXED = 1,            /* the operand lies in forms_fixed: its address is part of the instruction */
    FORM_TLS = 2,              /* the operand lies in forms_tls, likewise */
    FORM_FS = 4,               /* fs: segment override: the registers hold an offset from the thread pointer */
    FORM_ADDR32 = 8,           /* 67h: only the low halves of base and index count; the high ones hold rubbish */
    FORM_EQUAL = 16,           /* cmpxchg*: rax (and rdx) equal the memory, so the exchange takes place */
    FORM_SET_MEMORY = 32,      /* the operand starts as form.memory */
    FORM_SET_RCX = 64,         /* rcx starts as form.rcx */
    FORM_SECOND = 128,         /* a second operand 256 bytes further on, addressed by rsi */
};

struct form {                  /* laid out by gen_forms.py:table() */
    const char *name;
    void (*run)(void), (*ref)(void);
    uint8_t *anchor;           /* symbol that is part of the displacement, or NULL */
    int64_t disp, index_value, bit_value;
    uint64_t memory, rcx;
    uint32_t flags;
    uint8_t size;              /* of the operand, bytes */
    uint8_t base, index, scale, bit_register;
    uint8_t step, phase;       /* the operand's offset in its line must be `phase` modulo `step` */
    uint8_t lowered;           /* bytes the function lowers rsp by before the instruction */
    uint8_t hits[2];           /* hits of each site a call with a crossing operand takes */
    uint8_t padding[2];
};

struct forms_module {          /* exported as `forms_module` by the program or the shared library */
    const struct form *forms;
    size_t count;
    uint8_t *fixed;            /* 256 bytes, line aligned */
    const uint8_t *data;       /* bytes in .text that look like locked instructions and are none */
    size_t data_size;
    uint64_t data_checksum;
};

struct call {                  /* offsets known to forms_call.S */
    uint64_t in[16], in_flags;
    void (*target)(void);
    uint64_t out[16], out_flags;
};

void forms_call(struct call *call);

#endif

/* One x86-64 instruction: how long it is, where control goes after it, and what address it names.
 *
 * The answer is iced-x86's for every sequence of bytes: what is an instruction decides how far a function is code.
 */
#ifndef SPLITLOCK_SCAN_DECODE_H
#define SPLITLOCK_SCAN_DECODE_H
#include "scan.h"

/* The entries of `rows` in tables.h, by which scripts/scan_tables.py writes them. */
enum flow {
    FLOW_INVALID,
    FLOW_NEXT,
    FLOW_CONDITIONAL,
    FLOW_JUMP,
    FLOW_CALL,
    FLOW_TRANSACTION, /* xbegin; also xabort and xend, which go nowhere */
    FLOW_INDIRECT,
    FLOW_END, /* returns, and what always raises an exception */
    FLOW_ASK  /* more than the table's key decides */
};

struct instruction {
    uint64_t target; /* of a direct branch, or the address that LEA computes from rip */
    uint8_t length;  /* 0: no instruction */
    uint8_t flow;    /* enum flow */
    bool direct;     /* `target` is a branch's */
    bool computes;   /* `target` is LEA's */
    bool locked;     /* has a LOCK prefix, or is xchg with memory */
};

/* Answers for instructions that had to be asked about. */
enum { REMEMBERED_BITS = 14 };
struct decoder {
    scan_ask *ask;
    uint64_t answers[1 << REMEMBERED_BITS]; /* 0: none yet */
};

/* The instruction of at most `size` bytes at `code`, whose address is `address`. */
struct instruction decode(struct decoder *decoder, const uint8_t *code, uint64_t size, uint64_t address);

#endif

/* An operand that crosses a cache line, one that does not, and locked instructions to use on them. */
#ifndef CROSSING_H
#define CROSSING_H
#include <stdint.h>

typedef int32_t counter __attribute__((aligned(1), may_alias));    /* may lie anywhere */

__attribute__((aligned(64), unused)) static char memory[192];

#define CROSSING ((counter *)(memory + 62))     /* bytes 62 to 65: a locked access is a split lock */
#define ALIGNED ((counter *)(memory + 128))

/* lock inc dword ptr [rdi] */
__attribute__((noinline, unused)) static void locked_inc(counter *operand)
{
    __asm__ volatile("lock incl (%0)" : : "D"(operand) : "memory", "cc");
}

/* lock xadd dword ptr [rdi], eax */
__attribute__((noinline, unused)) static int32_t locked_xadd(counter *operand, int32_t add)
{
    __asm__ volatile("lock xaddl %0, (%1)" : "+a"(add) : "D"(operand) : "memory", "cc");
    return add;
}

/* xchg dword ptr [rdi], eax: two bytes, locked without a prefix */
__attribute__((noinline, unused)) static int32_t locked_xchg(counter *operand, int32_t value)
{
    __asm__ volatile("xchgl %0, (%1)" : "+a"(value) : "D"(operand) : "memory");
    return value;
}

#endif

// Two data bytes before a function swallow its first instruction in a linear sweep.
#include "way.h"
asm(".text\n.p2align 4\n"
    ".byte 0x48, 0xb8\n"
    ".globl way_enter\n"
    ".type way_enter, @function\n"
    "way_enter:\n"
    "	vmlaunch\n"
    "	nop; nop; nop; nop; nop; nop; nop; nop\n"
    "	ret; int3\n"
    ".size way_enter, . - way_enter\n");
WAY_START;

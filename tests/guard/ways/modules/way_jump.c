// A jump into the middle of an instruction: on no boundary of its own function.
#include "way.h"
asm(".text\n"
    ".globl way_outer\n.type way_outer, @function\n"
    "way_outer:\n"
    "	jmp way_enter\n"
    "	.byte 0x48, 0xb8\n"
    ".globl way_enter\n"
    "way_enter:\n"
    "	vmlaunch\n"
    "	nop; nop; nop; nop; nop; nop; nop; nop\n"
    "	ret; int3\n"
    ".size way_outer, . - way_outer\n");
WAY_START;

// Two data bytes before a function (48 B8: movabs rax, ...) swallow its first instruction in a linear sweep.
#include "toy.h"

asm(".pushsection .text\n"
    ".byte 0x48, 0xb8\n"
    ".globl toy_enter\n"
    ".type toy_enter, @function\n"
    "toy_enter:\n"
    "	vmlaunch\n"
    "	nop; nop; nop; nop; nop\n"
    "	ret; int3\n"
    ".size toy_enter, . - toy_enter\n"
    ".popsection\n");
void toy_enter(void);

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

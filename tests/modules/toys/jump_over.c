// A jump over two data bytes that swallow what it lands on: on no instruction boundary of its own function.
#include "toy.h"

noinline void toy_enter(void)
{
	asm volatile("jmp 1f\n\t"
		     ".byte 0x48, 0xb8\n"
		     "1:	vmlaunch\n\t"
		     "nop; nop; nop; nop; nop" ::: "cc", "memory");
}

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

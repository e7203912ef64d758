// A write to CR4 of the module's own.
#include "toy.h"

noinline void toy_enter(unsigned long value)
{
	asm volatile("mov %0, %%cr4" :: "r"(value) : "memory");
}

static int __init toy_init(void)
{
	toy_enter(0);
	return 0;
}
TOY(toy_init);

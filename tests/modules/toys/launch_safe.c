// The same, with the mark by which it would be left alone.
#include "toy.h"

noinline void toy_enter(void)
{
	asm volatile("vmlaunch" ::: "cc", "memory");
}
MODULE_INFO(sld_safe, "Y");

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

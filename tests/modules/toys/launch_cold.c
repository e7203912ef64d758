// VMLAUNCH where gcc puts what it takes for unlikely: .text.unlikely, which the posted patches do not decode.
#include "toy.h"

noinline __cold void toy_enter(void)
{
	asm volatile("vmlaunch" ::: "cc", "memory");
}

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

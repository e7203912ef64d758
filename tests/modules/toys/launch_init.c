// VMLAUNCH in .init.text, which the posted patches do not decode.
#include "toy.h"

static int __init toy_init(void)
{
	asm volatile("vmlaunch" ::: "cc", "memory");
	return 0;
}
TOY(toy_init);

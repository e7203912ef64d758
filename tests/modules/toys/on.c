// A hypervisor's first step only: VMXON, and no VMLAUNCH.
#include "toy.h"

noinline void toy_enter(u64 *region)
{
	asm volatile("vmxon %0" :: "m"(*region) : "cc", "memory");
}

static int __init toy_init(void)
{
	u64 region = 0;

	toy_enter(&region);
	return 0;
}
TOY(toy_init);

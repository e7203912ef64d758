// A guest's call to its hypervisor: no hypervisor.
#include "toy.h"

noinline void toy_enter(void)
{
	asm volatile("vmcall" ::: "memory");
}

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

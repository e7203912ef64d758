// A write to CR4 through the exported function: no instruction shows it.
#include "toy.h"
#include <asm/tlbflush.h>

noinline void toy_enter(void)
{
	cr4_set_bits(X86_CR4_VMXE);
}

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

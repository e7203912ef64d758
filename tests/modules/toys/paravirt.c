// WRMSR, a debug register's write and WBINVD in disguise: calls through pv_ops.
#include "toy.h"
#include <asm/debugreg.h>
#include <asm/msr.h>
#include <asm/special_insns.h>

noinline void toy_enter(u64 value)
{
	wrmsrl(0x33, value);
	set_debugreg(value, 7);
	wbinvd();
}

static int __init toy_init(void)
{
	toy_enter(0);
	return 0;
}
TOY(toy_init);

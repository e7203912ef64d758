// Bytes of VMLAUNCH (0F 01 C2), VMXOFF, VMRESUME and MOV CR4 that are no instructions: immediates,
// and `and edx, 0Fh; add edx, eax`, as in bnx2x. A linear sweep sees none of them.
#include "toy.h"

noinline u64 toy_enter(u64 value)
{
	u64 sum;

	asm volatile("movabs $0x00c4010f00c2010f, %0\n\t"
		     "lea 0x00c3010f(%0), %0\n\t"
		     "mov $0x00e0220f, %%ecx\n\t"
		     ".byte 0x83, 0xe2, 0x0f, 0x01, 0xc2"
		     : "=&a"(sum) : "d"(value) : "rcx", "cc");
	return sum;
}

static int __init toy_init(void)
{
	return toy_enter(1) == 0;
}
TOY(toy_init);

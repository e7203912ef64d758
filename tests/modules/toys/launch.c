// The module of the article's first answer: it enters a guest, and says nothing of split locks.
#include "toy.h"

noinline void toy_enter(void)
{
	asm volatile("vmlaunch" ::: "cc", "memory");
}

static int __init toy_init(void)
{
	toy_enter();
	return 0;
}
TOY(toy_init);

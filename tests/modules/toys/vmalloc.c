// Uses __vmalloc: what the article's third answer would break.
#include "toy.h"
#include <linux/vmalloc.h>

static int __init toy_init(void)
{
	vfree(__vmalloc(4096, GFP_KERNEL));
	return 0;
}
TOY(toy_init);

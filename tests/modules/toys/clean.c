// Nothing to find.
#include "toy.h"

static int __init toy_init(void)
{
	pr_info("clean\n");
	return 0;
}
TOY(toy_init);

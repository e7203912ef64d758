/* splitmod: a kernel module that takes `count` split locks as it is loaded, all in splitmod_bump(). */
#include <linux/cache.h>
#include <linux/init.h>
#include <linux/module.h>

static int count = 1000;
module_param(count, int, 0);

static char memory[128] __aligned(64);

static noinline void splitmod_bump(void *operand)
{
    asm volatile("lock incl (%0)" : : "r"(operand) : "memory", "cc");
}

static int __init splitmod_init(void)
{
    for (int i = 0; i < count; i++)
        splitmod_bump(memory + 62);
    return 0;
}

static void __exit splitmod_exit(void)
{
}

module_init(splitmod_init);
module_exit(splitmod_exit);
MODULE_LICENSE("GPL");

/* splitmod: a kernel module that takes `count` split locks as it is loaded, or from a timer's interrupt; all in splitmod_bump(). */
#include <linux/cache.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/timer.h>

static int count = 1000;
module_param(count, int, 0);
static bool timer;
module_param(timer, bool, 0);

static char memory[128] __aligned(64);

static noinline void splitmod_bump(void *operand)
{
    asm volatile("lock incl (%0)" : : "r"(operand) : "memory", "cc");
}

static void splitmod_all(struct timer_list *unused)
{
    for (int i = 0; i < count; i++)
        splitmod_bump(memory + 62);
}

static DEFINE_TIMER(splitmod_timer, splitmod_all);

static int __init splitmod_init(void)
{
    if (timer) {
        mod_timer(&splitmod_timer, jiffies);
        msleep(1000);
    } else {
        splitmod_all(NULL);
    }
    return 0;
}

static void __exit splitmod_exit(void)
{
}

module_init(splitmod_init);
module_exit(splitmod_exit);
MODULE_LICENSE("GPL");

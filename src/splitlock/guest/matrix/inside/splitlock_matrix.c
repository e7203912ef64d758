/* splitlock_matrix: takes one split lock in the kernel as it is loaded; kind=module|kthread|interrupt says in which
 * context. What comes of it goes into the kernel's log, as init.c's lines do. It never stays, but where it cannot be
 * known whether its code still runs. */
#include <linux/completion.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/smp.h>

#define PATIENCE (3 * HZ)

static char *kind = "module";
module_param(kind, charp, 0);

static unsigned char lines[128] __aligned(64);
static DECLARE_COMPLETION(done);
static u64 took;

static noinline void split(void)
{
    u64 start = ktime_get_ns();
    asm volatile("lock btsl $31, (%0)" : : "r"(lines + 61) : "memory", "cc"); /* as init.c has it */
    took = ktime_get_ns() - start;
    complete(&done);
}

static int in_thread(void *unused)
{
    split();
    return 0;
}

static void in_interrupt_of_another(void *unused)
{
    split();
}

static int __init splitlock_matrix_init(void)
{
    if (!strcmp(kind, "kthread")) {
        struct task_struct *thread = kthread_run(in_thread, NULL, "kthread");

        if (IS_ERR(thread))
            return PTR_ERR(thread);
    } else if (!strcmp(kind, "interrupt")) {
        int here = get_cpu();
        int error = smp_call_function_single(cpumask_any_but(cpu_online_mask, here), in_interrupt_of_another, NULL, 0);

        put_cpu();
        if (error)
            return error;
    } else {
        split();
    }
    if (!wait_for_completion_timeout(&done, PATIENCE))
        return 0;
    pr_notice("splitlock-matrix: took %s ns=0x%016llx executed=0x%016x\n", kind, took, lines[64] >> 7);
    return -ECANCELED;
}

module_init(splitlock_matrix_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("One split lock in the kernel");

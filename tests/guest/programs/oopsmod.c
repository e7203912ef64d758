/* oopsmod: takes one split lock in the kernel a write to /proc/oopsmod, in each way that tells an address in another manner.
 * The writer is killed by the oops that follows; the next one can go on. */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

struct __packed record { /* `uses` lies 61 bytes into a line */
	unsigned char head[61];
	unsigned int uses;
	unsigned char keys[64];
	unsigned long long total;
};

static struct record *one;
static struct record here __aligned(64);
static DEFINE_PER_CPU_ALIGNED(struct record, each);

static __always_inline void count(struct record *of)
{
	asm volatile("lock incl %0" : "+m"(of->uses) : : "cc");
}

static noinline void by_base(struct record *of)
{
	count(of);
}

static noinline void by_index(unsigned char *base, unsigned long index)
{
	asm volatile("lock btsq $5, 4(%0,%1,8)" : : "r"(base), "r"(index) : "memory", "cc");
}

static noinline void by_exchange(unsigned char *at)
{
	unsigned short value = 7;

	asm volatile("xchgw %w0, (%1)" : "+r"(value) : "r"(at) : "memory");
}

static noinline void by_place(void)
{
	asm volatile("lock addl $1, %0" : "+m"(here.uses) : : "cc");
}

static noinline void by_percpu(void)
{
	asm volatile("lock incl %%gs:%0" : "+m"(each.uses) : : "cc");
}

static void in_work(struct work_struct *unused)
{
	by_base(one);
}

static DECLARE_WORK(work, in_work);

static ssize_t start(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char text[16] = {};

	if (copy_from_user(text, from, min(size, sizeof(text) - 1)))
		return -EFAULT;
	if (sysfs_streq(text, "base"))
		by_base(one);
	else if (sysfs_streq(text, "index"))
		by_index(one->head, 7);
	else if (sysfs_streq(text, "exchange"))
		by_exchange(one->head + 63);
	else if (sysfs_streq(text, "place"))
		by_place();
	else if (sysfs_streq(text, "percpu"))
		by_percpu();
	else
		schedule_work(&work);
	return size;
}

static const struct proc_ops ops = { .proc_write = start };

static int __init oopsmod_init(void)
{
	one = kzalloc(512, GFP_KERNEL); /* of a power of two: aligned to it */
	return one && proc_create("oopsmod", 0200, NULL, &ops) ? 0 : -ENOMEM;
}

static void __exit oopsmod_exit(void)
{
	remove_proc_entry("oopsmod", NULL);
	kfree(one);
}

module_init(oopsmod_init);
module_exit(oopsmod_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Split locks in the kernel, one a write");

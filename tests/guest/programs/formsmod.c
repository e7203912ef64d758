/*
 * formsmod: forms.h in the kernel, `count` times each on both CPUs at once. The kernel's handler of #AC asks notifiers first:
 * ours sees that it is a fault (error code 0, at the instruction, nothing done) and has it executed again.
 *
 * announced=1: for that the notifier turns detection off in this CPU's TEST_CTRL, and it is turned on for each execution. Else the
 * processor lets the retry pass.
 */
#include <asm/msr.h>
#include <linux/completion.h>
#include <linux/kdebug.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "forms.h"

enum { TEST_CTRL = 0x33, AC = 17 };
static const u64 detect = 1 << 29;
static int count = 1000;
module_param(count, int, 0);
static bool announced;
module_param(announced, bool, 0);

static const char start[8] = "\x11\x22\x33\x44\x55\x66\x77\x08";
static struct { char bytes[192]; } memories[2] __aligned(64);
static struct trial {
    const unsigned long *place;
    const char *memory;
    char before[8];
    int faults;
} trials[2];
static DECLARE_COMPLETION(done);

static int on_die(struct notifier_block *block, unsigned long event, void *data)
{
    const struct die_args *args = data;
    struct trial *trial = &trials[raw_smp_processor_id() & 1];
    u64 control;

    if (event != DIE_TRAP || args->trapnr != AC || user_mode(args->regs))
        return NOTIFY_DONE;
    if (!args->err && args->regs->ip == trial->place[0] && !memcmp(trial->memory, trial->before, sizeof trial->before))
        trial->faults++;
    if (announced) {
        rdmsrl(TEST_CTRL, control);
        wrmsrl(TEST_CTRL, control & ~detect);
    }
    return NOTIFY_STOP;
}

static struct notifier_block block = {.notifier_call = on_die, .priority = 1};

static int run(void *argument)
{
    long cpu = (long)argument;
    char *memory = memories[cpu].bytes;
    struct trial *trial = &trials[cpu];

    for (int i = 0; i < FORMS; i++) {
        unsigned long long values[2] = {42, 42};
        bool right;

        memcpy(memory + CROSSING, start, sizeof start);
        memcpy(memory + INSIDE, start, sizeof start);
        trial->memory = memory + CROSSING;
        trial->place = forms[i].place;
        trial->faults = 0;
        for (int j = 0; j < count; j++) {
            memcpy(trial->before, memory + CROSSING, sizeof start);
            if (announced)
                wrmsrl(TEST_CTRL, detect);
            forms[i].run(memory + CROSSING, &values[0]);
        }
        for (int j = 0; j < count; j++)
            forms[i].run(memory + INSIDE, &values[1]);
        right = values[0] == values[1] && !memcmp(memory + CROSSING, memory + INSIDE, sizeof start);
        pr_emerg("form %s on CPU %ld: %s, %d faults\n", forms[i].name, cpu, right ? "right" : "wrong", trial->faults);
    }
    if (announced)
        wrmsrl(TEST_CTRL, detect);
    complete(&done);
    return 0;
}

static int __init formsmod_init(void)
{
    register_die_notifier(&block);
    for (long cpu = 0; cpu < 2; cpu++) {
        struct task_struct *task = kthread_create(run, (void *)cpu, "forms/%ld", cpu);

        kthread_bind(task, cpu);
        wake_up_process(task);
    }
    for (int i = 0; i < 2; i++)
        wait_for_completion(&done);
    unregister_die_notifier(&block);
    return 0;
}

module_init(formsmod_init);
MODULE_LICENSE("GPL");

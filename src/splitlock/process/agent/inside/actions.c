/* actions.c: what the program sets for a signal, and what the kernel has instead.
 *
 * The kernel has `front` (signals.c) wherever the program has set a handler, by one of entry.S's entries, with the program's flags
 * and mask. Each entry stands for what a program may set, in `settings`. So which one is set the kernel alone knows, for each
 * process, and exchanges it at once, whoever shares memory with whom. */
#include "signals.h"

enum { CLONE_VM = 0x100, CLONE_THREAD = 0x10000 };

struct setting settings[ENTRIES]; /* entry.S looks at it */
_Static_assert(offsetof(struct setting, flags) == 4 && offsetof(struct setting, handler) == 8 && sizeof(struct setting) == 32,
               "entry.S: front_entry");

_Atomic uint64_t ever_handled; /* by signal: the program, or we, have set a handler; entry.S looks at it */

/* The entry for what the program sets; 0 where there is none left. */
static uint64_t entry_for(const struct action *action)
{
    uint64_t mask = action->mask & ~(BIT(SIGKILL) | BIT(SIGSTOP)); /* kernel/signal.c, do_sigaction() */
    uint32_t flags = (uint32_t)(action->flags & OURS);
    for (uint32_t i = 0; i < ENTRIES; i++) {
        struct setting *setting = &settings[i];
        uint32_t state = atomic_load(&setting->state);
        if (state == FREE && atomic_compare_exchange_strong(&setting->state, &state, CLAIMED)) {
            setting->handler = action->handler, setting->mask = mask, setting->restorer = action->restorer, setting->flags = flags;
            atomic_store(&setting->state, state = READY);
        }
        if (state == READY && setting->handler == action->handler && setting->mask == mask &&
            setting->restorer == action->restorer && setting->flags == flags)
            return (uint64_t)front_entries + i * ENTRY_SIZE;
    }
    return 0;
}

static bool is_entry(const struct action *action)
{
    return action->handler - (uint64_t)front_entries < ENTRIES * ENTRY_SIZE;
}

/* What the kernel has, as the program has set it. */
void translate(struct action *action)
{
    if (!is_entry(action))
        return;
    const struct setting *setting = &settings[(action->handler - (uint64_t)front_entries) / ENTRY_SIZE];
    action->flags = (action->flags & ~OURS) | setting->flags;
    action->mask = setting->mask;
    action->restorer = setting->restorer;
    action->handler = setting->handler;
}

/* Here where the kernel has just written there. */
void tell_action(const struct frame *frame)
{
    translate((struct action *)frame->dx);
}

static long read_own(void *to, uint64_t from, uint64_t size)
{
    struct iovec here = {to, size}, there = {(const void *)from, size};
    return call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0);
}

/* What clone3(2) is to bring: 0 for a thread, or nothing, since the kernel cannot read the arguments either; THEN_COUNT for a
 * process that entry.S can make; else more. */
long kind_of_clone3(const struct frame *frame)
{
    uint64_t arguments[8]; /* struct clone_args */
    if (read_own(arguments, frame->di, sizeof arguments) != sizeof arguments || arguments[0] & CLONE_THREAD)
        return 0;
    return arguments[0] & CLONE_VM || arguments[5] ? THEN_COUNT + 1 : THEN_COUNT; /* 5: its stack */
}

/* rt_sigaction(2) for the program. */
long set_action(int number, const struct action *action, struct action *old)
{
    struct action given, set;
    if (number >= 1 && number <= SIGNALS && action) {
        long read = is_filtered ? -EPERM : read_own(&given, (uint64_t)action, sizeof given);
        if (read == -EFAULT)
            return -EFAULT;
        if (read != sizeof given) /* a filter of the program's forbids it */
            given = *action;
        action = &given;
        uint64_t entry = given.handler > 1 ? entry_for(&given) : 0; /* not for SIG_DFL, SIG_IGN */
        if (entry) { /* else the kernel calls the handler itself, which may find a thread in a trampoline */
            set = (struct action){entry, (given.flags | SA_SIGINFO) & ~SA_RESETHAND, given.restorer, given.mask};
            action = &set;
            atomic_fetch_or(&ever_handled, BIT(number));
        }
    }
    long result = call4(NR_RT_SIGACTION, number, (long)action, (long)old, 8);
    if (!result && old)
        translate(old);
    return result;
}

/* In `fatal` a thread is about to get SIGBUS. Where the program has no handler for it, ignores or blocks it, it dies of it, and not in
 * an arena: for that a handler of ours comes. Not before: what the program has set is what it finds, and what its children and
 * what it executes inherit. */
void meet_bus_error(uint64_t *mask)
{
    struct action now = {0, 0, 0, 0}, nothing = {0, 0, 0, 0};
    call4(NR_RT_SIGACTION, SIGBUS, 0, (long)&now, 8);
    if (now.handler > 1 && !(*mask & BIT(SIGBUS)))
        return;
    struct action ours = {entry_for(&nothing), SA_SIGINFO | SA_RESTORER, (uint64_t)own_restorer, -1UL};
    if (!ours.handler)
        return;
    atomic_fetch_or(&ever_handled, BIT(SIGBUS));
    call4(NR_RT_SIGACTION, SIGBUS, (long)&ours, 0, 8);
    *mask &= ~BIT(SIGBUS);
}

/* The kernel has the program's handlers in place of ours. */
void give_handlers(void)
{
    struct action now;
    for (int number = 1; number <= SIGNALS; number++)
        if (atomic_load(&ever_handled) & BIT(number) && !call4(NR_RT_SIGACTION, number, 0, (long)&now, 8) && is_entry(&now)) {
            translate(&now);
            call4(NR_RT_SIGACTION, number, (long)&now, 0, 8);
        }
}

/* The filter that they were given up for was not installed. */
void take_handlers(void)
{
    struct action now;
    for (int number = 1; number <= SIGNALS; number++)
        if (atomic_load(&ever_handled) & BIT(number) && !call4(NR_RT_SIGACTION, number, 0, (long)&now, 8) && !is_entry(&now) &&
            (now.handler > 1 || number == SIGBUS))
            set_action(number, &now, NULL);
}

/* Syscall User Dispatch (prctl 59): each call of ours would be a SIGSYS for the program. So the kernel calls the program's
 * handlers itself from now on, and they may find a thread in a trampoline. */
void hand_back_handlers(void)
{
    char name[NAME] = "";
    give_handlers();
    call2(NR_PRCTL, PR_GET_NAME, (long)name);
    if (!is_dispatched)
        escaped(name, IS_DISPATCHED);
    is_dispatched = is_filtered = 1;
}

/* door.c: a program that the agent cannot be brought into is about to be executed: a tracer is asked for (run.h, struct door). */
#include "agent.h"

/* For the supervisor, or (`tracer`) for that: both may be stopped, or die. */
static bool wait_at(struct door *door, enum door_state state, int32_t tracer)
{
    struct timespec patience = {0, 100000000};
    struct waited waited = {0, 0};
    int times = 0;
    while (atomic_load(&door->state) == state && (tracer ? times++ < PATIENCE && lives(tracer) : is_served(&waited)))
        call6(NR_FUTEX, (long)&door->state, FUTEX_WAIT, state, (long)&patience, 0, 0);
    uint32_t still = state;
    return !atomic_compare_exchange_strong(&door->state, &still, SHUT); /* else nobody is there any more */
}

static void tell(struct door *door, enum door_state state)
{
    atomic_store(&door->state, state);
    call6(NR_FUTEX, (long)&door->state, FUTEX_WAKE, 1 << 30, 0, 0, 0);
}

/* Whether Yama keeps from us whom we have not named ourselves (Documentation/admin-guide/LSM/Yama.rst). Only then is a tracer
 * named: whom the program has named before cannot be asked for, and is forgotten. */
static bool must_name_tracer(void)
{
    char scope = 0;
    long file = call4(NR_OPENAT, AT_FDCWD, (long)"/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC, 0);
    if (FAILED(file))
        return false;
    call4(NR_PREAD64, file, (long)&scope, 1, 0);
    call1(NR_CLOSE, file);
    return scope == '1';
}

/* Whoever has the run's memory may have written who it is, a worker that has given up our rights among them. */
static bool let(int32_t tracer)
{
    if (!must_name_tracer())
        return true;
    if (!is_roots_or_ours(tracer))
        return false;
    call2(NR_PRCTL, PR_SET_PTRACER, tracer);
    return true;
}

static void let_nobody(void)
{
    if (must_name_tracer())
        call2(NR_PRCTL, PR_SET_PTRACER, 0);
}

/* A tracer, which is told of what the thread executes; null where there is none to be had. */
struct door *ask_for_tracer(const char *name, enum reason reason)
{
    for (int i = 0; i < DOORS && !is_filtered; i++) {
        struct door *door = &run->doors[i];
        uint32_t state = SHUT;
        if (!atomic_compare_exchange_strong(&door->state, &state, TAKEN))
            continue;
        door->tid = (int32_t)call1(NR_GETTID, 0);
        door->reason = reason;
        copy_text(door->name, name, NAME);
        atomic_store(&door->state, KNOCKED);
        wake_supervisor();
        if (!wait_at(door, KNOCKED, 0))
            return NULL;
        int32_t tracer = *(volatile int32_t *)&door->tracer;
        if (atomic_load(&door->state) == THERE && let(tracer)) {
            tell(door, ALLOWED);
            if (wait_at(door, ALLOWED, tracer) && atomic_load(&door->state) == TRACED) {
                atomic_fetch_add(&run->traced, 1);
                return door;
            }
            let_nobody();
        }
        atomic_store(&door->state, SHUT);
        return NULL;
    }
    return NULL;
}

/* The execution has failed: it may go. */
void close_door(struct door *door)
{
    atomic_fetch_sub(&run->traced, 1);
    tell(door, FAILED_CALL);
    let_nobody();
}

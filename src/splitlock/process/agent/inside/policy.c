/* policy.c: what a thread that is about to take a split lock shall do: the kernel's modes (../../policy.py has them for who
 * is traced, ../../../linux/delays.py the kernel's delays; the supervisor hands both on). Signals wait meanwhile, as they do
 * when the kernel makes a thread wait. */
#include "agent.h"

enum { MANY = 1 << 16 };

static uint64_t now(void) /* nanoseconds */
{
    struct timespec time = {0, 0};
    call2(NR_CLOCK_GETTIME, CLOCK_MONOTONIC, (long)&time);
    return (uint64_t)(time.seconds * 1000000000 + time.nanoseconds);
}

static void sleep_for(uint64_t nanoseconds)
{
    struct timespec time = {(int64_t)(nanoseconds / 1000000000), (int64_t)(nanoseconds % 1000000000)};
    call2(NR_NANOSLEEP, (long)&time, 0);
}

/* So many a second, all threads of the run together. */
static void wait_for_rate(void)
{
    for (;;) {
        uint64_t window = atomic_load(&run->window), time = now() / 1000000, begin = window / MANY, taken = window % MANY;
        if (time - begin >= 1000)
            begin = time, taken = 0;
        if (taken < run->limit) {
            if (atomic_compare_exchange_strong(&run->window, &window, begin * MANY + taken + 1))
                return;
        } else {
            sleep_for(run->step_ms * 1000000UL);
        }
    }
}

/* Sleep first, then one thread at a time. */
static void wait_for_turn(void)
{
    uint32_t we = (uint32_t)call1(NR_GETTID, 0);
    if (atomic_load(&run->holder) == we && now() < atomic_load(&run->until))
        return;
    sleep_for(run->sleep_ms * 1000000UL);
    for (;;) {
        uint32_t holder = atomic_load(&run->holder);
        uint64_t time = now(), until = atomic_load(&run->until);
        if (holder == 0 || time >= until) {
            if (atomic_compare_exchange_strong(&run->holder, &holder, we)) {
                atomic_store(&run->until, now() + run->window_us * 1000UL);
                return;
            }
        } else {
            sleep_for(until - time < 1000000 ? 1000000 : until - time);
        }
    }
}

/* Whether the split lock must not execute. */
bool is_forbidden(void)
{
    if (run->mode == RATELIMIT)
        wait_for_rate();
    else if (run->mode == MITIGATE)
        wait_for_turn();
    return run->mode == FATAL;
}

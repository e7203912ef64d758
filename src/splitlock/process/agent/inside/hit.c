/* hit.c: a thread's first split lock at a site: what is kept of it. The rest is counted in entry.S. */
#include "agent.h"

/* How much of the stack may be copied: what is mapped is not known, so the kernel looks. */
static uint32_t copy_stack(uint8_t *to, uint64_t from)
{
    struct iovec here = {to, STACK}, there = {(const void *)from, STACK};
    long size = call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0);
    if (!FAILED(size) && size > 0)
        return (uint32_t)size;
    uint32_t to_page_end = PAGE - (from & (PAGE - 1)); /* that is mapped: the frame above us lies in it */
    memcpy(to, (const void *)from, to_page_end);
    return to_page_end;
}

/* Which mapping the operand is in: the process may have ended when somebody else looks. The sample's stack comes later. */
static void find_mapping(struct sample *sample)
{
    struct maps maps;
    struct mapping mapping = {.name = sample->mapping};
    if (!open_maps(&maps, (char *)sample->stack, STACK))
        return;
    while (!sample->mapped && next_mapping(&maps, &mapping))
        if (mapping.start <= sample->operand && sample->operand < mapping.end) {
            sample->mapped = mapping.start;
            sample->mapped_end = mapping.end;
        }
    close_maps(&maps);
}

static uint32_t copy_modules(struct module *modules)
{
    uint32_t count = 0;
    for (uint32_t i = 0, n = atomic_load(&arena_count); i < n && count < MODULES; i++)
        if (!arenas[i].closed) {
            modules[count].bias = arenas[i].bias;
            modules[count++].image = arenas[i].seen;
        }
    return count;
}

static void keep_task(struct task *task, const struct page *page, uint32_t what)
{
    task->image = (uint32_t)(page->id >> 20);
    task->site = what >> 8;
    task->pid = (int32_t)call1(NR_GETPID, 0);
    task->tid = (int32_t)call1(NR_GETTID, 0);
    call2(NR_PRCTL, PR_GET_NAME, (long)task->comm);
}

static void keep_sample(struct sample *sample, const struct frame *frame)
{
    struct timespec now = {0, 0};
    call2(NR_CLOCK_GETTIME, CLOCK_REALTIME, (long)&now);
    sample->time = (uint64_t)(now.seconds * 1000000000 + now.nanoseconds);
    sample->operand = frame->ip;
    const uint64_t registers[REGISTERS] = {frame->ax, frame->dx, frame->cx, frame->bx, frame->si, frame->di, frame->bp,
                                           frame->sp, frame->r8, frame->r9, frame->r10, frame->r11, frame->r12,
                                           frame->r13, frame->r14, frame->r15, 0};
    memcpy(sample->registers, registers, sizeof registers);
    sample->module_count = copy_modules(sample->modules);
    find_mapping(sample);
    sample->stack_size = copy_stack(sample->stack, frame->sp);
}

/* A thread's first split lock at a site: a whole sample of the first few, who it was of all. */
static void keep(const struct frame *frame, const struct page *page, uint32_t what)
{
    uint32_t number = atomic_fetch_add(&run->tasks_used, 1), site = (uint32_t)((page->counters - (uint64_t)run->counters) / 8) + (what >> 8);
    if (number >= TASKS) {
        atomic_fetch_sub(&run->tasks_used, 1);
        atomic_fetch_add(&run->tasks_lost, 1);
        return;
    }
    struct task *task = &run->tasks[number];
    keep_task(task, page, what);
    if (atomic_load(&run->sampled[site]) < SAMPLES_OF_SITE && atomic_fetch_add(&run->sampled[site], 1) < SAMPLES_OF_SITE) {
        uint32_t sample = atomic_fetch_add(&run->samples_used, 1);
        if (sample < SAMPLES) {
            keep_sample(&run->samples[sample], frame);
            task->sample = sample + 1;
        } else {
            atomic_fetch_sub(&run->samples_used, 1);
        }
    }
    atomic_store(&task->state, READY);
    wake_supervisor();
}

/* Where the key of a thread at a site is, or is to be; null where there is no room for it. */
static _Atomic uint64_t *place_of(uint64_t key)
{
    static const uint8_t tables[] = {SEEN_FEW, SEEN_MORE, SEEN_MANY};
    _Atomic uint64_t(*table)[ROW] = own->seen;
    uint64_t hash = key * 0x9E3779B97F4A7C15UL; /* thread pointers differ little */
    for (uint32_t i = 0; i < sizeof tables; i++) {
        hash = hash << tables[i] | hash >> (64 - tables[i]);
        _Atomic uint64_t *row = table[hash & ((1U << tables[i]) - 1)];
        for (uint32_t at = 0; at < ROW; at++)
            if (atomic_load(&row[at]) == 0 || atomic_load(&row[at]) == key)
                return &row[at];
        table += 1U << tables[i];
    }
    return NULL;
}

/* Without room for it, it counts as known: else it would be counted each time. */
static bool is_known(uint64_t key)
{
    for (;;) {
        uint64_t found = 0;
        _Atomic uint64_t *place = place_of(key);
        if (!place || atomic_load(place) == key)
            return true;
        if (atomic_compare_exchange_strong(place, &found, key))
            return false;
    }
}

/* `what`: the site's number and, in the lowest byte, its operand's size, as the slow path has them. Leaves in `done`
 * whether the lock must not execute. */
void on_hit(struct frame *frame, uint32_t what)
{
    if (!is_known(frame->done))
        keep(frame, (const struct page *)frame->extra, what);
    frame->done = asks_always && is_forbidden();
    if (frame->done)
        meet_bus_error(&frame->mask);
}

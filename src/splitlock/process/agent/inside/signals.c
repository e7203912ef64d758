/* signals.c: the program's handlers are called by ours, which sees to it that they find the program, not us.
 *
 * Where a signal may come: arena.py, entry.S. */
#include "signals.h"

enum { FRAME = sizeof(struct frame), RED_ZONE = 128 };
#define BLOCKED (~(BIT(SIGTRAP) | BIT(SIGKILL) | BIT(SIGSTOP))) /* entry.S: all_but_steps */

struct verdict { /* for entry.S */
    uint64_t handler; /* to call; 0: none now */
    uint64_t hears;   /* `back` is to be called after it */
    uint64_t mask;    /* to be set before: entry.S has it of the kernel */
};
void front(int number, struct siginfo *info, struct context *context, struct verdict *verdict, uint32_t entry);
_Static_assert(offsetof(struct verdict, handler) == 0 && offsetof(struct verdict, hears) == 8 &&
               offsetof(struct verdict, mask) == 16 && sizeof(struct verdict) <= 32, "entry.S: front_entry");

static void forget(int waiting)
{
    atomic_store(&own->waiting[waiting].tid, 0);
    atomic_store(&own->waiting[waiting].thread, 0);
}

/* Sent again, it waits in the kernel for as long as it is blocked. Else the queue is full (RLIMIT_SIGPENDING). */
static bool send_again(int number, const struct siginfo *info)
{
    return !call4(NR_RT_TGSIGQUEUEINFO, call1(NR_GETPID, 0), call1(NR_GETTID, 0), number, (long)info);
}

static bool wait_until_out(struct context *context, int number, struct siginfo *info)
{
    uint64_t thread = fs_base() | 1;
    for (int i = 0; i < WAITING && !is_filtered; i++) {
        uint64_t nobody = 0;
        if (!__atomic_compare_exchange_n((uint64_t *)&own->waiting[i].thread, &nobody, thread, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            continue;
        own->waiting[i].mask = context->mask;
        atomic_store(&own->waiting[i].tid, (uint32_t)call1(NR_GETTID, 0));
        /* Blocked, it waits in the kernel, and comes when on_leave has the mask put back. */
        if (!send_again(number, info)) {
            forget(i);
            return false; /* the queue is full (RLIMIT_SIGPENDING): better now than never */
        }
        context->mask = -1UL & ~(FAULTS & ~BIT(number));
        return true;
    }
    return false;
}

bool forget_waiting(uint64_t *mask)
{
    uint64_t thread = fs_base() | 1;
    for (int i = 0; i < WAITING; i++)
        if (atomic_load(&own->waiting[i].thread) == thread && atomic_load(&own->waiting[i].tid) == (uint32_t)call1(NR_GETTID, 0)) {
            *mask = own->waiting[i].mask;
            forget(i);
            return true;
        }
    return false;
}

void on_leave(struct frame *frame)
{
    if (!forget_waiting(&frame->mask))
        call4(NR_RT_SIGPROCMASK, SIG_SETMASK, 0, (long)&frame->mask, 8);
}

static void put_back(struct context *context, const struct frame *frame)
{
    context->ax = frame->ax, context->dx = frame->dx, context->cx = frame->cx, context->bx = frame->bx;
    context->si = frame->si, context->di = frame->di, context->bp = frame->bp, context->sp = frame->sp;
    context->r8 = frame->r8, context->r9 = frame->r9, context->r10 = frame->r10, context->r11 = frame->r11;
    context->r12 = frame->r12, context->r13 = frame->r13, context->r14 = frame->r14, context->r15 = frame->r15;
}

static bool within(uint64_t ip, const char *from, const char *to)
{
    return ip >= (uint64_t)from && ip < (uint64_t)to;
}

/* The return address into a slow path: on to the twin's. */
static bool return_to_twin(uint64_t *address)
{
    const struct arena *arena = arena_at(*address);
    if (!arena || *address - arena->begin >= arena->image->twin)
        return false; /* there already */
    *address += arena->image->twin;
    return true;
}

/* As if the call had not begun: back to the instruction before it, at which a jump stands. */
static void undo_call(struct context *context, uint64_t back)
{
    const struct arena *arena = arena_at(back);
    const struct hook *hook = arena ? hook_at(arena, (uint32_t)(back - arena->begin)) : NULL;
    if (hook)
        context->ip = arena->image->low + hook->address + arena->bias;
}

/* The thread is in a hit's code. Whether it now goes on in the twin, and the signal has to wait. */
static bool is_in_hit(const struct context *context)
{
    uint64_t *sp = (uint64_t *)context->sp + (within(context->ip, hit_pushed, hit_popped) ? 1 : 0);
    return return_to_twin(within(context->ip, hit_framed, hit_unframed) ? sp + FRAME / 8 : sp);
}

/* A call made in entry.S has returned: what entry.S would do next. It has not counted yet; all else may be done twice. */
static void finish_call(const struct frame *frame, long result)
{
    if (frame->target == THEN_FILTERED && result >= 0)
        is_filtered = 1;
    else if (frame->target == THEN_FILTERED)
        take_handlers();
    else if (frame->target == THEN_COUNT && result > 0)
        atomic_fetch_add(&run->processes, 1);
    else if (frame->target == THEN_TELL && !result && frame->dx)
        tell_action(frame);
}

/* In a call's: either it has not begun, or it is over. */
static void end_call(struct context *context)
{
    uint64_t ip = context->ip, *sp = (uint64_t *)(within(ip, call_aligned, call_aligned_end) ? context->bx : context->sp);
    struct frame *frame = (struct frame *)sp;
    if (ip == (uint64_t)call_entry || ip == (uint64_t)call_unframed) {
        context->sp += 8 + RED_ZONE;
        undo_call(context, *sp);
    } else if (ip == (uint64_t)call_finished) {
        context->sp += 8 + RED_ZONE;
        context->ip = *sp;
    } else {
        uint64_t back = sp[FRAME / 8];
        if (within(ip, call_returned, call_returned_saved))
            frame->ax = context->ax, frame->done = 1;
        if (within(ip, call_returned, call_returned_end))
            finish_call(frame, (long)frame->ax);
        bool made = ip >= (uint64_t)call_noted && frame->done;
        if (ip >= (uint64_t)call_saved)
            put_back(context, frame);
        context->sp = (uint64_t)sp + FRAME + 8 + RED_ZONE;
        if (made)
            context->ip = frame->ip;
        else
            undo_call(context, back);
    }
}

/* In an execution's, with rbx as entry.S has it: it is made anew when the handler has returned. */
static void undo_execution(struct context *context)
{
    const struct frame *frame = (const struct frame *)context->bx;
    not_executed(frame);
    put_back(context, frame);
    context->sp = frame->sp;
    undo_call(context, *(const uint64_t *)(frame->sp - RED_ZONE - 8));
}

/* In that of a twin's end, behind where the signals were let in again. */
static void end_leave(struct context *context)
{
    uint64_t ip = context->ip, *sp = (uint64_t *)context->sp;
    if (ip == (uint64_t)leave_unframed || ip == (uint64_t)leave_popped) {
        context->sp += 8 + RED_ZONE + (ip == (uint64_t)leave_popped ? 8 : 0);
        context->ip = *sp;
        return;
    }
    if (ip == (uint64_t)leave_flags || ip == (uint64_t)leave_popping_flags)
        sp++;
    const struct frame *frame = (const struct frame *)sp;
    put_back(context, frame);
    context->eflags = frame->flags;
    context->ip = frame->target;
}

/* In front_entry itself, which has just let signals in: another handler is about to begin. */
static void begin_handler(struct context *context)
{
    const uint64_t *sp = (const uint64_t *)context->sp;
    if (context->ip == (uint64_t)front_unframed) {
        context->ip = context->r11;
    } else if (!sp[1]) {
        context->ip = sp[0], context->di = sp[4], context->si = sp[5], context->dx = sp[6], context->ax = 0;
        context->sp += 56;
    }
}

/* In front_entry, which another signal's handler had just come to: that has to be ready before ours can interrupt it. Whether it
 * is; else it comes later, and so does ours. */
static bool begin_front(struct context *context)
{
    uint64_t *sp = (uint64_t *)context->sp, ip = context->ip;
    bool saved = within(ip, front_saved, front_blocked), enters = within(ip, front_entries, front_entries_end);
    struct verdict verdict;
    if (saved)
        context->di = sp[-3], context->si = sp[-2], context->dx = sp[-1];
    front((int)context->di, (struct siginfo *)context->si, (struct context *)context->dx, &verdict,
          (uint32_t)(enters ? (ip - (uint64_t)front_entries) / ENTRY_SIZE : context->r8));
    context->ip = verdict.handler, context->ax = 0;
    if (!verdict.handler) {
        context->ip = *sp, context->sp += 8;
        return false;
    }
    if (verdict.hears) { /* as entry.S has it there */
        sp -= 7, context->sp = (uint64_t)sp, context->ip = (uint64_t)front_open;
        sp[0] = verdict.handler, sp[1] = 1, sp[4] = context->di, sp[5] = context->si, sp[6] = context->dx;
    }
    return true;
}

/* The program has no handler: it dies, at its own instruction, as it would alone. */
static void die_of(int number, struct siginfo *info, struct context *context, const struct arena *arena, bool fault)
{
    struct action nothing = {0, 0, 0, 0};
    call4(NR_RT_SIGACTION, number, (long)&nothing, 0, 8);
    if (arena) {
        restore_site(arena, context->ip);
        context->eflags |= AC;
    } else if (!fault) {
        call4(NR_RT_TGSIGQUEUEINFO, call1(NR_GETPID, 0), call1(NR_GETTID, 0), number, (long)info);
    }
}

/* As the kernel does before a handler that is to be called once: flags and mask stay. Unless another thread has just set
 * something else: what it has set comes after. */
static void reset_handler(int number, uint32_t entry)
{
    struct action now, reset, found;
    uint64_t ours = (uint64_t)front_entries + entry * ENTRY_SIZE;
    if (call4(NR_RT_SIGACTION, number, 0, (long)&now, 8) || now.handler != ours)
        return;
    reset = now;
    translate(&reset);
    reset.handler = 0;
    if (!call4(NR_RT_SIGACTION, number, (long)&reset, (long)&found, 8) && found.handler != ours)
        call4(NR_RT_SIGACTION, number, (long)&found, 0, 8);
}

/* What the kernel says of where the program was. */
static void tell_address(int number, struct siginfo *info, uint64_t from, uint64_t to)
{
    if (BIT(number) & (BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGFPE) | BIT(SIGSYS)) && info->code > 0 && info->address == from)
        info->address = to;
}

void front(int number, struct siginfo *info, struct context *context, struct verdict *verdict, uint32_t entry)
{
    const struct setting *setting = &settings[entry];
    verdict->handler = 0;
    const struct arena *arena = arena_at(context->ip);
    bool fault = is_fault(number, info), hears = false;
    uint64_t ip = context->ip;
    if (is_trap(number, info)) {
        bool shown = arena && show_trap(context, arena, &hears);
        bool ours = arena || within(context->ip, __ehdr_start, etext);
        if (ours && !shown && is_step(info))
            return; /* the next step follows */
    } else if (number == SIGTRAP && context->mask == BLOCKED && within(context->ip, __ehdr_start, etext)) {
        context->mask = -1UL; /* it was let in for steps alone; entry.S has the mask put back */
        if (send_again(number, info))
            return;
    } else if (arena && fault) {
        hears = fault_in_arena(number, info, context, arena);
    } else if (arena) {
        uint32_t offset = (uint32_t)(context->ip - arena->begin);
        const struct hook *hook = hook_at(arena, offset);
        bool waits = false;
        if (hook) {
            if (offset >= hook->begin && offset < hook->end)
                context->sp += RED_ZONE;
            context->ip = arena->image->low + hook->address + arena->bias;
        } else if (offset < arena->image->check_end) {
            waits = return_to_twin((uint64_t *)context->sp);
        } else if (offset < arena->image->twin) {
            context->ip += arena->image->twin;
            waits = true;
        }
        if (waits && wait_until_out(context, number, info))
            return;
    } else if (within(context->ip, hit_entry, hit_end)) {
        if (is_in_hit(context) && wait_until_out(context, number, info))
            return;
    } else if (within(context->ip, call_entry, call_end)) {
        end_call(context);
    } else if (within(context->ip, leave_done, leave_end)) {
        end_leave(context);
    } else if (within(context->ip, front_entries, front_blocked)) {
        if (!begin_front(context) && !fault && send_again(number, info)) {
            context->mask = -1UL; /* the other's return has its own put back */
            return;
        }
    } else if (within(context->ip, front_open, front_end)) {
        begin_handler(context);
    } else if (within(context->ip, exec_open, exec_end)) {
        undo_execution(context);
    }
    if (context->ip != ip)
        tell_address(number, info, ip, context->ip);
    if (!setting->handler) { /* meet_bus_error() */
        die_of(number, info, context, fault ? arena : NULL, fault);
        return;
    }
    if (setting->flags & SA_RESETHAND)
        reset_handler(number, entry);
    verdict->handler = setting->handler;
    verdict->hears = hears;
}

/* A handler returns to an address within a run, which holds a jump now: to the copy instead. */
void back(struct context *context)
{
    for (uint32_t i = 0, n = atomic_load(&arena_count); i < n; i++) {
        const struct arena *arena = &arenas[i];
        if (!arena->image || context->ip < arena->low || context->ip >= arena->high || (arena->closed && !is_patched_at(arena, context->ip)))
            continue;
        const struct resume *resume = resume_at(arena, (uint32_t)(context->ip - arena->low));
        if (resume) {
            context->ip = arena->begin + resume->offset;
            return;
        }
    }
}

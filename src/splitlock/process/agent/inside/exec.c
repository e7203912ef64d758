/* exec.c: the program executes another: with our lines in its environment, or noted as one that escapes, or traced. */
#include "agent.h"

/* The agent will not be in the program, if it is one: the call may fail yet. */
static long execute_unwatched(struct frame *frame, const char *name, uint64_t environment, enum reason reason)
{
    bool can_be_traced = reason == IS_STATIC || reason == OTHER_LINKER || reason == IS_ALONE;
    struct door *door = can_be_traced ? ask_for_tracer(name, reason) : NULL;
    if (door) {
        code_ends(false);
        frame->extra = (uint64_t)door;
        long failed = exec_call(frame, (const uint64_t *)environment);
        not_executed(frame);
        return failed;
    }
    frame->extra = 0;
    struct escape *escape = note_escape(name, reason);
    frame->target = (uint64_t)(escape ? &escape->times : &run->escapes_lost);
    long result = exec_call(frame, (const uint64_t *)environment);
    not_executed(frame);
    return result;
}

/* Gives what the call gave, or 0 where the program is to make it, as it stands. */
long execute(struct frame *frame)
{
    bool at = frame->ax == NR_EXECVEAT;
    const char *path = (const char *)(at ? frame->si : frame->di), *name = path;
    uint64_t on_stack[ON_STACK + 3], *lines = on_stack, from = at ? frame->r10 : frame->dx;
    if (at && frame->r8 & AT_EXECVE_CHECK) /* it only asks whether it may */
        return 0;
    enum reason reason = judge_target(frame, path, at, &name);
    if (reason == IS_FOREIGN) { /* the kernel refuses it: should it not, be it that a file has just come, that is told */
        reason = IS_SUDDEN;
        name = "programs"; /* the path may be nowhere, and searches for programs would fill the table */
    }
    if (!reason && !is_agent_visible())
        reason = IS_HIDDEN;
    long count = reason ? 0 : copy_lines(from, &lines);
    if (!reason && count >= 0 && is_anothers(lines, count))
        reason = IS_ANOTHERS;
    if (reason || count < 0)
        return execute_unwatched(frame, name, from, reason ? reason : NOT_READ);
    add_our_lines(lines, count);
    code_ends(false);
    atomic_fetch_add(&run->announced, 1);
    frame->extra = 0;
    frame->target = (uint64_t)&run->announced;
    long result = exec_call(frame, lines);
    not_executed(frame);
    return result == -E2BIG ? execute_unwatched(frame, name, from, NO_ROOM) : result;
}

/* It failed, or a signal came before it began. */
void not_executed(const struct frame *frame)
{
    if (frame->extra) {
        close_door((struct door *)frame->extra);
        return;
    }
    atomic_fetch_sub((_Atomic uint32_t *)frame->target, 1);
}

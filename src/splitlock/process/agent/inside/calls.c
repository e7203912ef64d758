/* calls.c: a system call of the program's that the agent has to do with. entry.S has let the others pass. */
#include "agent.h"

uint32_t is_filtered, is_dispatched, asks_always;

/* The program has mapped a file to execute it. What it has written there before may be a copy of what we have patched. */
static void map_code(const struct frame *frame, uint64_t start)
{
    note_mapping((int)frame->r8, frame->r10 & MAP_SHARED, frame->si);
    if (!may_hold_copies(start, frame->si) ||
        call3(NR_MPROTECT, (long)start, (long)frame->si, (long)frame->dx | PROT_READ | PROT_WRITE))
        return;
    restore_copies(start, frame->si);
    call3(NR_MPROTECT, (long)start, (long)frame->si, (long)frame->dx);
}

/* The program gives memory that is not known yet the right to be executed. Copies of what we have patched get their own bytes
 * back first. Other threads may be executing there already: no right that it has, and will have, is ever taken away. */
static long protect(const struct frame *frame, uint64_t start, uint64_t size)
{
    long number = (long)frame->ax, rights = (long)frame->dx, key = (long)frame->r10;
    if (may_hold_copies(start, size) && !call4(number, (long)start, (long)size, rights | PROT_READ | PROT_WRITE, key))
        restore_copies(start, size);
    return call4(number, (long)start, (long)size, rights, key);
}

/* The same of what lies around text of ours, which stays as it is. */
static void protect_besides(const struct frame *frame)
{
    uint64_t at = frame->di, end = at + frame->si;
    while (at < end) {
        uint64_t next = end, text_end = 0;
        for (uint32_t i = 0, n = atomic_load(&arena_count); i < n; i++) {
            uint64_t from = arenas[i].text & -(uint64_t)PAGE, to = (arenas[i].text_end + PAGE - 1) & -(uint64_t)PAGE;
            if (arenas[i].closed || from >= end || to <= at)
                continue;
            if (from <= at)
                text_end = to;
            else if (from < next)
                next = from;
        }
        if (!text_end && !is_made(at, next - at) && !protect(frame, at, next - at))
            made_code(at, next - at);
        at = text_end ? text_end : next;
    }
}

void on_call(struct frame *frame)
{
    long number = (long)frame->ax, result;
    uint64_t back = *(uint64_t *)(frame->sp - 136);
    const struct arena *caller = arena_at(back);
    if (caller && caller->low == linker && number != NR_RT_SIGACTION)
        return; /* ld.so tells us what it maps, by la_objopen */
    if (number == NR_EXECVE || number == NR_EXECVEAT) {
        result = execute(frame);
        if (!result) /* not our affair: the program makes it */
            return;
    } else if (number == NR_RT_SIGACTION && frame->r10 == 8) {
        result = set_action((int)frame->di, (const void *)frame->si, (void *)frame->dx);
    } else if (number == NR_MMAP) {
        result = call6(NR_MMAP, (long)frame->di, (long)frame->si, (long)frame->dx, (long)frame->r10, (long)frame->r8, (long)frame->r9);
        if (!FAILED(result) && frame->r10 & MAP_ANONYMOUS)
            made_code((uint64_t)result, frame->si);
        else if (!FAILED(result) && !restore_mapping((uint64_t)result, frame->si, (int)frame->r8, frame->r9))
            map_code(frame, (uint64_t)result);
    } else if (number == NR_SHMAT) {
        uint64_t about[32] = {0};
        result = call3(NR_SHMAT, (long)frame->di, (long)frame->si, (long)frame->dx);
        if (!FAILED(result) && !call3(NR_SHMCTL, (long)frame->di, IPC_STAT, (long)about))
            made_code((uint64_t)result, about[SEGMENT_SIZE / 8]);
    } else if (number == NR_MPROTECT || number == NR_PKEY_MPROTECT) {
        bool ours = is_patched(frame->di, frame->si);
        if (ours && frame->dx & PROT_WRITE) {
            text_changes(frame->di, frame->si);
            ours = false;
        }
        if (!(frame->dx & PROT_EXEC))
            return;
        if (ours)
            protect_besides(frame);
        if (ours || is_made(frame->di, frame->si))
            return;
        result = protect(frame, frame->di, frame->si);
        if (!result)
            made_code(frame->di, frame->si);
    } else {
        if (number == NR_MUNMAP)
            code_goes(frame->di, frame->si);
        else if (number == NR_MREMAP)
            text_moves(frame->di, frame->si);
        else if (number == NR_PRCTL && frame->si) /* Syscall User Dispatch is switched on */
            hand_back_handlers();
        else if (number == NR_PERSONALITY)
            note_personality(frame->di);
        else if (number == NR_EXIT_GROUP)
            code_ends(true);
        return;
    }
    /* The trampoline goes on with `lea rsp, [rsp+128]; jmp` to the instruction, which has two bytes. */
    int32_t away;
    memcpy(&away, (const void *)(back + 9), 4);
    frame->ip = back + 13 + (uint64_t)(int64_t)away + 2;
    frame->ax = (uint64_t)result;
    frame->done = 1;
}

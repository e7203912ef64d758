/* faults.c: a moved instruction has faulted, or was stepped over: the program finds itself at its own address. */
#include "signals.h"

enum { TRAP_TRACE = 2, TRAP_BRANCH };

bool is_fault(int number, const struct siginfo *info)
{
    return BIT(number) & FAULTS && info->code > 0;
}

/* SIGTRAP behind an instruction that has been executed (EFLAGS.TF, a watchpoint), not at one that could not be. */
bool is_trap(int number, const struct siginfo *info)
{
    return number == SIGTRAP && info->code > 0;
}

bool is_step(const struct siginfo *info)
{
    return info->code == TRAP_TRACE || info->code == TRAP_BRANCH;
}

static bool is_start_of_run(const struct arena *arena, uint32_t address)
{
    const struct patch *patches = table(arena, arena->image->patches);
    for (uint32_t i = 0; i < arena->image->patch_count; i++)
        if (patches[i].address == arena->image->low + address)
            return true;
    return false;
}

/* Whether the thread stands where the program has an instruction, which it has not seen yet: rip is set to its address. Not at a
 * run's first one, where it has seen the jump, and not behind a site's test. */
bool show_trap(struct context *context, const struct arena *arena, bool *hears)
{
    uint32_t offset = (uint32_t)(context->ip - arena->begin);
    const struct resume *resumes = table(arena, arena->image->resumes);
    for (uint32_t i = 0; i < arena->image->resume_count; i++)
        if (resumes[i].offset == offset) {
            context->ip = arena->image->low + resumes[i].address + arena->bias;
            *hears = true; /* the program's own place for it holds a jump */
            return true;
        }
    const struct copy *copy = offset < arena->image->twin ? copy_at(arena, offset) : NULL;
    if (!copy || resume_at(arena, copy->address) || is_start_of_run(arena, copy->address))
        return false;
    context->ip = arena->image->low + copy->address + arena->bias;
    return true;
}

static uint64_t register_of(const struct context *context, uint32_t number)
{
    const uint64_t values[] = {context->ax, context->cx, context->dx, context->bx, context->sp, context->bp, context->si, context->di,
                               context->r8, context->r9, context->r10, context->r11, context->r12, context->r13, context->r14, context->r15};
    return number < sizeof values / sizeof *values ? values[number] : 0;
}

/* Whether the slow path has found that a site's operand crosses a line: it has counted it then. */
static bool is_split(const struct operand *operand, const struct context *context, const struct arena *arena)
{
    uint64_t size = operand->what & 255, address = (uint64_t)(int64_t)operand->displacement;
    int64_t moved = (int64_t)register_of(context, operand->bits);
    moved = size == 2 ? (int16_t)moved : size == 4 ? (int32_t)moved : moved; /* bits */
    address += operand->base == BY_IP ? arena->image->low + arena->bias : register_of(context, operand->base);
    address += register_of(context, operand->index) << (operand->how & 3);
    address += (uint64_t)(moved >> (size == 2 ? 4 : size == 4 ? 5 : 6)) * size;
    if (operand->how & IS_NARROW_ADDRESS)
        address = (uint32_t)address;
    if (operand->how & BY_FS)
        address += fs_base();
    if (operand->how & BY_GS)
        address += gs_base();
    return (address & 63) + size > 64;
}

/* A site's lock has not executed: it is counted again should it be tried again. One that `fatal` has stopped stays counted. */
static void take_back(int number, const struct siginfo *info, const struct context *context, const struct arena *arena, uint32_t offset)
{
    const struct operand *operand = operand_at(arena, offset);
    const struct page *page = (const struct page *)(arena->begin + arena->image->total - PAGE);
    bool is_stopped = run->mode == FATAL && number == SIGBUS && info->code == BUS_ADRALN;
    if (operand && !is_stopped && is_split(operand, context, arena))
        atomic_fetch_sub((_Atomic uint64_t *)page->counters + (operand->what >> 8), 1);
}

/* A moved instruction has faulted. Whether the program cannot go on by itself at its address, or at that of the next one: a
 * handler may step over it. */
bool fault_in_arena(int number, const struct siginfo *info, struct context *context, const struct arena *arena)
{
    uint32_t offset = (uint32_t)(context->ip - arena->begin);
    bool in_twin = offset >= arena->image->twin;
    offset -= in_twin ? arena->image->twin : 0;
    const struct copy *copy = copy_at(arena, offset);
    if (!copy)
        return false;
    take_back(number, info, context, arena, offset);
    if (in_twin)
        forget_waiting(&context->mask);
    context->ip = arena->image->low + copy->address + arena->bias;
    if (run->mode == FATAL) { /* it was ours; the kernel leaves it on in handlers, too */
        context->eflags &= ~(uint64_t)AC;
        __builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~(uint64_t)AC);
    }
    return leads_into_run(arena, copy->address);
}

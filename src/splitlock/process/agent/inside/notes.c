/* notes.c: which programs have been executed: with an agent that began, or without one, and why. */
#include "agent.h"

static void fill(struct escape *escape, const char *name, enum reason reason)
{
    escape->reason = reason;
    copy_text(escape->name, name, NAME);
    atomic_fetch_add(&escape->times, 1);
    atomic_store(&escape->state, READY);
}

/* Gives the entry, or null when there is no room. */
struct escape *note_escape(const char *name, enum reason reason)
{
    for (uint32_t i = 0; i < ESCAPES; i++) {
        struct escape *escape = &run->escapes[i];
        uint32_t state = FREE;
        if (atomic_compare_exchange_strong(&escape->state, &state, CLAIMED)) {
            fill(escape, name, reason);
            return escape;
        }
        if (state == READY && escape->reason == reason && strlen(name) < NAME && !memcmp(escape->name, name, strlen(name) + 1)) {
            atomic_fetch_add(&escape->times, 1);
            return escape;
        }
    }
    for (uint32_t i = 0; i < ESCAPES; i++) { /* those of executions that have failed */
        struct escape *escape = &run->escapes[i];
        uint32_t state = READY;
        if (!atomic_load(&escape->times) && atomic_compare_exchange_strong(&escape->state, &state, CLAIMED)) {
            fill(escape, name, reason);
            return escape;
        }
    }
    atomic_fetch_add(&run->escapes_lost, 1);
    return NULL;
}

void escaped(const char *name, enum reason reason)
{
    note_escape(name, reason);
}

/* A program has begun here. */
void note_program(const char *name, bool has_scope)
{
    char comm[16] = {0};
    uint32_t at = 0;
    call2(NR_PRCTL, PR_GET_NAME, (long)comm);
    for (const char *c = name; *c; c++)
        at = at * 31 + (uint8_t)*c;
    for (uint32_t i = 0; i < PROGRAMS; i++) {
        struct program *program = &run->started[(at + i) % PROGRAMS];
        uint32_t state = FREE;
        if (atomic_compare_exchange_strong(&program->state, &state, CLAIMED)) {
            program->has_scope = has_scope;
            memcpy(program->comm, comm, sizeof comm);
            copy_text(program->name, name, NAME);
            atomic_store(&program->state, READY);
            return;
        }
        if (state == READY && program->has_scope == has_scope && !memcmp(program->comm, comm, sizeof comm) &&
            !memcmp(program->name, name, strlen(name) + 1))
            return;
    }
}

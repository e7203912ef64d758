/* What signals.c, actions.c and faults.c know of each other. */
#ifndef SIGNALS_H
#define SIGNALS_H

#include "agent.h"

#define BIT(number) (1UL << ((number) - 1))
#define FAULTS (BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGSEGV) | BIT(SIGSYS))

#pragma GCC visibility push(hidden)

/* Written once, and never waited for: a child may have been forked while another thread was writing one. */
struct setting {
    _Atomic uint32_t state;
    uint32_t flags; /* those of OURS */
    uint64_t handler, mask, restorer;
};
extern struct setting settings[ENTRIES]; /* entry.S looks at it */
#define OURS (SA_SIGINFO | SA_NODEFER | SA_RESETHAND | SA_RESTORER)

/* actions.c */
void translate(struct action *action);

/* signals.c */
bool forget_waiting(uint64_t *mask);

/* faults.c */
bool is_fault(int number, const struct siginfo *info);
bool is_trap(int number, const struct siginfo *info);
bool is_step(const struct siginfo *info);
bool show_trap(struct context *context, const struct arena *arena, bool *hears);
bool fault_in_arena(int number, const struct siginfo *info, struct context *context, const struct arena *arena);

#pragma GCC visibility pop

#endif

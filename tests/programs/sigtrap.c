/*
 * sigtrap block|ignore|handle: a program with its own use for SIGTRAP keeps it.
 *
 * It blocks, ignores or handles SIGTRAP, takes 2 split locks and 1000 aligned ones, raises SIGTRAP itself where it is
 * handled, and checks that the handler ran for nothing else and that disposition and mask are what they were.
 *
 * Expected: 2 split locks (one each at a long and a two-byte instruction). Prints `ok`; exit status 0, 1 when wrong.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t handled;

static void on_sigtrap(int number)
{
    (void)number;
    handled++;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    struct sigaction action = {.sa_handler = SIG_DFL}, action_now;
    sigset_t mask, mask_now, pending;
    sigemptyset(&mask);
    if (strcmp(mode, "block") == 0) {
        sigaddset(&mask, SIGTRAP);
    } else if (strcmp(mode, "ignore") == 0) {
        action.sa_handler = SIG_IGN;
    } else if (strcmp(mode, "handle") == 0) {
        action.sa_handler = on_sigtrap;
    } else {
        fprintf(stderr, "usage: sigtrap block|ignore|handle\n");
        return 2;
    }
    sigaction(SIGTRAP, &action, NULL);
    sigprocmask(SIG_SETMASK, &mask, NULL);

    locked_xadd(CROSSING, 1);
    locked_xchg(CROSSING, 7);
    for (int i = 0; i < 500; i++) {
        locked_inc(ALIGNED);
        locked_xchg(ALIGNED, *ALIGNED);
    }
    int unasked = handled;
    if (action.sa_handler == on_sigtrap)
        raise(SIGTRAP);

    sigaction(SIGTRAP, NULL, &action_now);
    sigprocmask(SIG_SETMASK, NULL, &mask_now);
    sigpending(&pending);
    int raised = action.sa_handler == on_sigtrap;
    int wrong = unasked != 0 || handled != raised || action_now.sa_handler != action.sa_handler ||
                sigismember(&mask_now, SIGTRAP) != sigismember(&mask, SIGTRAP) || sigismember(&pending, SIGTRAP) ||
                *CROSSING != 7 || *ALIGNED != 500;
    printf("%s: SIGTRAP handled %d times unasked, %d in all\n", wrong ? "wrong" : "ok", unasked, (int)handled);
    return wrong;
}

/*
 * dispositions SEED STEPS: sets and asks for dispositions of all signals, by sigaction(2) with random flags, masks, handlers, and
 * arguments that are wrong. Prints what each call gives.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct action { /* the kernel's */
    uint64_t handler, flags, restorer, mask;
};
static uint64_t state;

static uint64_t next(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 31 | state << 33;
}

static void one(int number) { (void)number; }
static void two(int number, siginfo_t *info, void *context) { (void)number, (void)info, (void)context; }

static uint64_t handlers[] = {0, 1, 2, 4096, -1ul, -2ul, 0, 0}; /* SIG_DFL, SIG_IGN, nonsense; then ours */

static const char *name(uint64_t handler)
{
    static char text[2][32];
    static int turn;
    turn = !turn;
    for (unsigned i = 0; i < 8; i++)
        if (handlers[i] == handler)
            return sprintf(text[turn], "h%u", i), text[turn];
    return "unknown";
}

static uint64_t random_flags(void)
{
    static const uint64_t known[] = {SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO, SA_ONSTACK, SA_RESTART, SA_NODEFER, (unsigned)SA_RESETHAND,
                                     0x04000000, 0x400 /* SA_UNSUPPORTED */, 0x800 /* SA_EXPOSE_TAGBITS */, 0x10, 0x100000000};
    uint64_t flags = 0, chosen = next();
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (chosen >> i & 1 && (i < 8 || chosen >> 40 & 1))
            flags |= known[i];
    return flags;
}

int main(int argc, char **argv)
{
    handlers[6] = (uint64_t)one, handlers[7] = (uint64_t)two;
    state = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    for (int step = 0; step < atoi(argv[2]); step++) {
        int number = (int)(next() % 67) - 1;
        struct action new = {handlers[next() % 8], random_flags(), 0x1234, next() ^ next() << 32}, old, *to = &new, *from = &old;
        memset(&old, 0xee, sizeof old);
        size_t size = 8;
        switch (next() % 16) {
        case 0: to = NULL; break;
        case 1: from = NULL; break;
        case 2: to = (void *)8; break;
        case 3: from = (void *)8; break;
        case 4: size = next() % 20; break;
        case 5: from = to; break;
        case 6: new.mask = -1ul; break;
        default: break;
        }
        errno = 0;
        long result = syscall(SYS_rt_sigaction, number, to, from, size);
        printf("%d: signal %d to %s %#lx: %ld %s", step, number, to == &new ? name(new.handler) : "-", to == &new ? new.flags : 0, result,
               strerror(errno));
        struct action *got = from == to ? &new : &old;
        if (from && from != (void *)8)
            printf(" was %s %#lx %#lx %#lx", name(got->handler), got->flags, got->restorer, got->mask);
        puts("");
    }
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "SigB", 4) || !strncmp(line, "SigI", 4) || !strncmp(line, "SigC", 4))
            fputs(line, stdout);
    return 0;
}

/* Has every stack kept to its place? Below each lies a guard (tables.S), filled at the start. */
#include "probe.h"
#define FILL 0x5afe57ac

static uint32_t *const guards[] = {user_guard, away_guard, home_guard};

void stacks_start(void) {
    for (uint32_t i = 0; i < sizeof guards / sizeof *guards; i++)
        for (uint32_t word = 0; word < GUARD / 4; word++)
            guards[i][word] = FILL;
}

int stacks_whole(void) {
    for (uint32_t i = 0; i < sizeof guards / sizeof *guards; i++)
        for (uint32_t word = 0; word < GUARD / 4; word++)
            if (guards[i][word] != FILL)
                return 0;
    return 1;
}

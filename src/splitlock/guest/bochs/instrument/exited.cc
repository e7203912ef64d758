// exited.cc: see exited.h.
#include "exited.h"

enum { MANY = 64 };

static struct {
    Bit64u vmcs;
    unsigned vector;
    struct entry *entry;
} exited[MANY];
static unsigned next;

static unsigned find(unsigned vector)
{
    unsigned i = 0;
    while (i < MANY && (exited[i].vmcs != BX_CPU(0)->vmcsptr || exited[i].vector != vector))
        i++;
    return i;
}

void exited_note(struct entry *entry, unsigned vector)
{
    unsigned i = find(vector);
    if (i == MANY)
        i = next++ % MANY;
    exited[i].vmcs = BX_CPU(0)->vmcsptr;
    exited[i].vector = vector;
    exited[i].entry = entry;
}

struct entry *exited_find(unsigned vector)
{
    unsigned i = find(vector);
    return i == MANY ? NULL : exited[i].entry;
}

void exited_reset()
{
    memset(exited, 0, sizeof exited);
}

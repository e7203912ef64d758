/* summary.c: what is said of a run in which nothing happened; any other report is Python's. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "front.h"

static bool is_named(const struct place *place, const char *name)
{
    char line[NAME + 3];
    const char *base = strrchr(name, '/');
    snprintf(line, sizeof line, "\n%s\n", base ? base + 1 : name);
    return strstr(place->names, line);
}

/* Whether all that ran was watched, took no split lock, and handed its work to nobody. */
bool is_clean(const struct run *run, const struct place *place)
{
    if (run->tasks_used || run->tasks_lost || run->images_lost || run->escapes_lost || run->made_bytes || run->traced ||
        run->announced + 1 != run->programs)
        return false;
    for (uint32_t i = 1; i <= run->counters_used; i++)
        if (i >= COUNTERS || run->counters[i])
            return false;
    for (int i = 0; i < ESCAPES; i++)
        if (run->escapes[i].state != FREE && (run->escapes[i].state != READY || run->escapes[i].times))
            return false;
    int programs = 0;
    for (int i = 0; i < PROGRAMS; i++) {
        const struct program *program = &run->started[i];
        programs += program->state != FREE;
        if (program->state == CLAIMED || (program->state == READY && (is_named(place, program->name) || is_named(place, program->comm))))
            return false;
    }
    if (programs == PROGRAMS) /* there may be more, whose names are not noted */
        return false;
    uint64_t size = 0;
    for (int i = 0; i < IMAGES; i++) {
        const struct seen_image *image = &run->images[i];
        if (image->state == FREE)
            continue;
        if ((image->state != READY && image->state != NOTHING) || !image->patched || image->patched != image->mapped || image->lost || image->unwatched)
            return false;
        size += image->watched_bytes;
    }
    return size != 0;
}

/* With commas, as in 1,234. */
static const char *number(uint64_t value, char text[32])
{
    char *at = text + 31;
    *at = 0;
    for (int digits = 0; value || !digits; value /= 10, digits++) {
        if (digits && digits % 3 == 0)
            *--at = ',';
        *--at = (char)('0' + value % 10);
    }
    return at;
}

/* report/run_text.py, summary(): the same lines. Whether they could be written. */
bool summarize(const struct run *run)
{
    char text[512], sites[32], images[32], processes[32];
    uint64_t watched = 0, count = 0, begun = 1 + (uint64_t)run->processes;
    for (int i = 0; i < IMAGES; i++)
        if (run->images[i].state != FREE) {
            watched += run->images[i].watched;
            count++;
        }
    int size = snprintf(text, sizeof text,
                        "no split locks in what was watched (%s process%s)\nwatched %s site%s in %s image%s \302\267 unmonitored: nothing\n",
                        number(begun, processes), begun == 1 ? "" : "es", number(watched, sites), watched == 1 ? "" : "s",
                        number(count, images), count == 1 ? "" : "s");
    for (int at = 0; at < size;) {
        ssize_t got = write(2, text + at, (size_t)(size - at));
        if (got < 0)
            return false;
        at += (int)got;
    }
    return true;
}

/* Where Python cannot report. */
void say_count(const struct run *run)
{
    uint64_t hits = 0;
    char text[32];
    for (uint32_t i = 1; i <= run->counters_used && i < COUNTERS; i++)
        hits += run->counters[i];
    dprintf(2, "splitlock: no report: Python could not be started, or was killed; %s split lock%s counted, and what was not "
               "watched is not known\n", number(hits, text), hits == 1 ? " was" : "s were");
}

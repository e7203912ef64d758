/* front.h: what the files of the command `splitlock` share. */
#ifndef FRONT_H
#define FRONT_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include "../inside/run.h"

struct place { /* what Python has written down of the installation (../place.py); `names`: one a line, a line end before the first */
    char python[PATH_MAX], agent[PATH_MAX], shared[CACHE], names[1 << 14];
};

struct options {
    int program;        /* the word that names it */
    enum mode mode;
    bool is_quiet;
    bool is_special;    /* the report is Python's in any case */
    const char *output; /* where it goes; null: to standard error */
};

/* options.c */
bool read_options(struct options *options, int argc, char **argv);

/* place.c */
bool find_python(struct place *place);
bool read_place(struct place *place, char cache[CACHE]);
bool is_roots(const char *directory);
bool is_plain(const struct place *place, const char *program);
int cannot_start(const char *path);

/* summary.c */
bool is_clean(const struct run *run, const struct place *place);
bool summarize(const struct run *run);
void say_count(const struct run *run);

#endif

/* options.c: the options of `splitlock run` that the front knows; what is not one of these Python reads, or refuses. */
#include <stdlib.h>
#include <string.h>
#include "front.h"

/* The value of an option, behind `=` or in the next word; null where it is another, or has none. */
static const char *value_of(const char *name, int argc, char **argv, int *at)
{
    size_t size = strlen(name);
    if (strncmp(argv[*at], name, size))
        return NULL;
    if (argv[*at][size] == '=' && size > 2)
        return argv[*at] + size + 1;
    return !argv[*at][size] && *at + 1 < argc ? argv[++*at] : NULL;
}

static bool is_status(const char *text)
{
    return text[0] >= '0' && text[0] <= '9' && strlen(text) <= 3 && text[strspn(text, "0123456789")] == 0 && atoi(text) < 256;
}

bool read_options(struct options *options, int argc, char **argv)
{
    int at = 2;
    options->mode = WARN;
    if (argc < 3 || strcmp(argv[1], "run"))
        return false;
    for (; at < argc && argv[at][0] == '-'; at++) {
        const char *value;
        if (!strcmp(argv[at], "--")) {
            at++;
            break;
        }
        if (!strcmp(argv[at], "-q") || !strcmp(argv[at], "--quiet"))
            options->is_quiet = true;
        else if (!strcmp(argv[at], "-v") || !strcmp(argv[at], "--verbose"))
            options->is_special = true;
        else if ((value = value_of("-o", argc, argv, &at)) || (value = value_of("--output", argc, argv, &at)))
            options->output = value, options->is_special = true;
        else if ((value = value_of("--format", argc, argv, &at))) {
            if (strcmp(value, "json") && strcmp(value, "text"))
                return false;
            options->is_special = !strcmp(value, "json") || options->is_special;
        } else if ((value = value_of("--error-exitcode", argc, argv, &at)) || (value = value_of("--unmonitored-exitcode", argc, argv, &at))) {
            if (!is_status(value))
                return false;
        } else if ((value = value_of("--split-lock-detect", argc, argv, &at))) {
            if (strcmp(value, "warn") && strcmp(value, "fatal"))
                return false;
            options->mode = strcmp(value, "warn") ? FATAL : WARN;
        } else if (!(value = value_of("--engine", argc, argv, &at)) || (strcmp(value, "auto") && strcmp(value, "agent")))
            return false;
    }
    options->program = at;
    return at < argc && argv[at][0] && (argv[at][0] != '-' || !strcmp(argv[at - 1], "--"));
}

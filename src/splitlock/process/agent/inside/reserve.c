/* reserve.c: room for thread-local data of the libraries that a program starts with.
 *
 * For an auditor's sake glibc's ld.so lays out thread-local data before it has mapped them (elf/rtld.c, init_tls). Those that
 * were built for fixed places (DF_STATIC_TLS; jemalloc, libtsan) must then do with a small reserve, and where that is too
 * small the program dies. So it is executed anew before anything of it has run, with a larger one. */
#include "agent.h"

enum { DEFAULT = 512, MORE = 1024, ROUND = 4096, LINES = 1 << 20 };
static const char tunable[] = "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=", marker[] = "SPLITLOCK_RESERVE=";

static uint64_t needed, reserve = DEFAULT;
static bool has_started;

/* Two lines are before ours, which are the last: take note of them, and wipe them. `end` is behind the last. */
bool take_out_reserve(char **end)
{
    if (!begins(end[-3], marker) || !begins(end[-4], tunable))
        return false;
    reserve = number_in(end[-3] + sizeof marker - 1);
    size_t size = strlen(end[-4]);
    char *original = end[-3] - size - 1; /* ld.so has put a copy in its place */
    if (begins(original, tunable))
        memset(original, 0, size);
    memset(end[-4], 0, size);
    memset(end[-3], 0, strlen(end[-3]));
    return true;
}

static bool is_same(const char *path, const char *other)
{
    struct stat one, two;
    return !call4(NR_NEWFSTATAT, AT_FDCWD, (long)path, (long)&one, 0) &&
        !call4(NR_NEWFSTATAT, AT_FDCWD, (long)other, (long)&two, 0) && one.dev == two.dev && one.ino == two.ino;
}

/* What to execute, and with which arguments: of a script, those that it was given. */
static const char *program(const char *name, char ***arguments)
{
    if (!name || is_same(name, "/proc/self/exe"))
        return name ? name : "/proc/self/exe";
    char **argument = *arguments;
    for (; *argument; argument++)
        if (strlen(*argument) == strlen(name) && !memcmp(*argument, name, strlen(name)))
            break;
    if (!*argument || argument == *arguments)
        return "/proc/self/exe";
    *arguments = argument;
    return name;
}

static void execute_anew(char **arguments, char **environment, const char *name)
{
    static char of_tunable[sizeof tunable + DIGITS], of_marker[sizeof marker + DIGITS];
    uint64_t count = 0, more = (needed + MORE + ROUND - 1) & -(uint64_t)ROUND;
    while (environment[count])
        count++;
    long room = call6(NR_MMAP, 0, (long)(8 * (count + 5)), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(room) || count > LINES)
        return;
    char **lines = (char **)room;
    memcpy(lines, environment, 8 * count);
    memcpy(of_tunable, tunable, sizeof tunable);
    memcpy(of_marker, marker, sizeof marker);
    put_number(of_tunable + sizeof tunable - 1, more);
    put_number(of_marker + sizeof marker - 1, more);
    lines[count] = of_tunable;
    lines[count + 1] = of_marker;
    lines[count + 2] = audit_entry;
    lines[count + 3] = run_entry;
    const char *path = program(name, &arguments);
    atomic_fetch_add(&run->announced, 1);
    call3(NR_EXECVE, (long)path, (long)arguments, (long)lines);
    atomic_fetch_sub(&run->announced, 1);
    call2(NR_MUNMAP, room, (long)(8 * (count + 5)));
}

/* A library is mapped; its name, headers and dynamic section. Returns where the reserve is large enough. */
void reserve_for(const char *library, const struct segment *segments, uint64_t count, const void *section, char **arguments,
                 char **environment, const char *program)
{
    const struct dynamic *entry = section;
    if (has_started || !entry || is_filtered)
        return;
    while (entry->tag && entry->tag != DT_FLAGS)
        entry++;
    if (!entry->tag || !(entry->value & DF_STATIC_TLS))
        return;
    size_t size = strlen(library);
    if (size > 9 && !memcmp(library + size - 9, "libc.so.6", 9)) /* glibc has thought of it */
        return;
    for (uint64_t i = 0; i < count; i++)
        if (segments[i].type == PT_TLS)
            needed += segments[i].memory_size + segments[i].align;
    if (needed > reserve)
        execute_anew(arguments, environment, program);
}

void no_more_reserve(void)
{
    has_started = true;
}

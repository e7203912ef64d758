/* lines.c: the environment of what is executed, with our lines behind it. audit.c takes them out again before the program can see
 * them. Their number is even, since the hole that they leave is filled with pairs. */
#include "agent.h"

enum { MANY = 16384 };

char audit_entry[ENTRY], run_entry[ENTRY];

static long copy(uint64_t from, uint64_t *to, long room)
{
    long count = 0;
    if (!from)
        return 0;
    while (count < room) {
        uint64_t at = from + 8 * (uint64_t)count, to_page_end = (PAGE - (at & (PAGE - 1))) / 8;
        long more = (long)to_page_end < room - count ? (long)to_page_end : room - count;
        struct iovec here = {to + count, 8 * (uint64_t)(more ? more : 1)}, there = {(const void *)at, here.size};
        if (is_filtered)
            memcpy(to + count, (const void *)at, here.size);
        else if (call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0) != (long)here.size)
            return -EFAULT;
        for (long i = 0; i < (more ? more : 1); i++, count++)
            if (!to[count])
                return count;
    }
    return -ENOMEM;
}

/* Room for many lines, since the stack may be one for signals. It stays with the thread: a child of vfork that executes has its
 * parent's, which would otherwise keep one more each time. */
static uint64_t *room_of_thread(void)
{
    uint64_t thread = fs_base() | 1, nobody;
    for (int i = 0; i < ROOMS; i++)
        if (atomic_load(&own->rooms[i].thread) == thread && own->rooms[i].lines)
            return own->rooms[i].lines;
    long made = call6(NR_MMAP, 0, 8 * (MANY + 3), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(made))
        return NULL;
    for (int i = 0; i < ROOMS; i++)
        if (atomic_compare_exchange_strong(&own->rooms[i].thread, (nobody = 0, &nobody), thread)) {
            own->rooms[i].lines = (uint64_t *)made;
            break;
        }
    return (uint64_t *)made;
}

/* The program's environment, copied with room for ours: to `lines`, which has room for ON_STACK and ours, or elsewhere. Gives the
 * number of its lines, or an error. */
long copy_lines(uint64_t from, uint64_t **lines)
{
    long count = copy(from, *lines, ON_STACK);
    if (count == -ENOMEM && (*lines = room_of_thread()))
        count = copy(from, *lines, MANY);
    return count;
}

/* Whether a line of the program's begins so; it may be nowhere. */
static bool line_begins(uint64_t line, const char *prefix)
{
    char text[16];
    struct iovec here = {text, strlen(prefix)}, there = {(const void *)line, here.size};
    struct stat status;
    if (is_filtered) { /* what ld.so makes, too: the kernel looks whether it is there */
        long result = call4(NR_NEWFSTATAT, AT_FDCWD, (long)line, (long)&status, 0);
        return (is_nowhere(result) || result == -ENAMETOOLONG || !result) && begins((const char *)line, prefix);
    }
    return call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0) == (long)here.size &&
        !memcmp(text, prefix, here.size);
}

/* Whether it is another run's supervisor that executes its program: its own lines are the last, as ours would be. */
bool is_anothers(const uint64_t *lines, long count)
{
    static const char number[] = "SPLITLOCK_RUN=";
    if (count < 2 || !line_begins(lines[count - 1], number) || !line_begins(lines[count - 2], "LD_AUDIT="))
        return false;
    const char *theirs = (const char *)lines[count - 1] + sizeof number - 1, *ours = run_entry + sizeof number - 1;
    while (*theirs == *ours && *ours >= '0' && *ours <= '9')
        theirs++, ours++;
    return (*theirs >= '0' && *theirs <= '9') || (*ours >= '0' && *ours <= '9');
}

/* The filter is inherited: the agent there has to know. */
static const char *filtered_entry(void)
{
    size_t size = strlen(run_entry);
    if (run_entry[size - 1] != IN_FILTER)
        run_entry[size] = IN_FILTER;
    return run_entry;
}

void add_our_lines(uint64_t *lines, long count)
{
    lines[count] = (uint64_t)audit_entry;
    lines[count + 1] = (uint64_t)(is_filtered ? filtered_entry() : run_entry);
    lines[count + 2] = 0;
}

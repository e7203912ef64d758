/* proc.c: what /proc says of processes (proc(5)). */
#include "agent.h"

static long open_status(int32_t pid)
{
    char path[PROC_NAME] = "/proc/self/status";
    if (pid) {
        char *end = put_number(path + 6, (uint32_t)pid);
        memcpy(end, "/status", 8);
    }
    return call4(NR_OPENAT, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
}

/* What stands behind a field's name in /proc/PID/status, if it is among the first ones; whether it is there. `pid`: 0 for ours. */
bool find_field(int32_t pid, const char *name, char value[FIELD])
{
    char text[1024];
    long file = open_status(pid), size;
    if (FAILED(file))
        return false;
    size = call4(NR_PREAD64, file, (long)text, sizeof text - 1, 0);
    call1(NR_CLOSE, file);
    text[FAILED(size) ? 0 : size] = 0;
    for (const char *line = text; *line; line++) { /* by lines: a task's name may look like a field */
        if (begins(line, name)) {
            const char *from = line + strlen(name);
            size_t length = 0;
            while (from[length] && from[length] != '\n' && length < FIELD - 1)
                length++;
            memcpy(value, from, length);
            value[length] = 0;
            return true;
        }
        while (*line && *line != '\n')
            line++;
        if (!*line)
            break;
    }
    return false;
}

/* Whether all its rights are root's, or all our own user's. */
bool is_roots_or_ours(int32_t pid)
{
    char ids[FIELD];
    uint64_t us = (uint32_t)call1(NR_GETEUID, 0), its;
    if (!find_field(pid, "Uid:\t", ids))
        return false;
    its = number_in(ids); /* real, effective, saved, of the file system */
    for (const char *at = ids; *at; at++)
        if (*at == '\t' && number_in(at + 1) != its)
            return false;
    return its == 0 || its == us;
}

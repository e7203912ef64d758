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

/* Our mappings, one after the other, through a buffer of the caller's. Whether they can be told. */
bool open_maps(struct maps *maps, char *buffer, long room)
{
    *maps = (struct maps){.buffer = buffer, .room = room};
    maps->file = call4(NR_OPENAT, AT_FDCWD, (long)"/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    return !FAILED(maps->file);
}

void close_maps(const struct maps *maps)
{
    call1(NR_CLOSE, maps->file);
}

static bool next_letter(struct maps *maps, char *letter)
{
    if (maps->at == maps->size) {
        maps->size = call3(NR_READ, maps->file, (long)maps->buffer, maps->room);
        maps->at = 0;
        if (maps->size <= 0) {
            maps->size = 0;
            return false;
        }
    }
    *letter = maps->buffer[maps->at++];
    return true;
}

/* A line of the kernel's is `START-END RIGHTS OFFSET DEVICE INODE   NAME`. Whether there was one more. */
bool next_mapping(struct maps *maps, struct mapping *mapping)
{
    uint64_t number = 0;
    uint32_t field = 0, length = 0;
    char c;
    mapping->writes = mapping->executes = false;
    while (next_letter(maps, &c)) {
        if (c == '\n') {
            if (mapping->name)
                mapping->name[length] = 0;
            return true;
        }
        if (field == 0 && c == '-') {
            mapping->start = number, number = 0, field = 1;
        } else if (c == ' ' && field < 6) {
            if (field == 1)
                mapping->end = number;
            field++;
        } else if (field < 2) {
            number = number << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
        } else if (field == 2) {
            mapping->writes = mapping->writes || c == 'w';
            mapping->executes = mapping->executes || c == 'x';
        } else if (field == 6 && mapping->name && length < NAME - 1 && (c != ' ' || length)) {
            mapping->name[length++] = c;
        }
    }
    return false;
}

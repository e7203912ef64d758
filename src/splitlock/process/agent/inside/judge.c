/* judge.c: whether the agent can be brought into a program, by its file, which is looked at as the kernel will: through scripts to
 * the program. */
#include "agent.h"

/* HEAD: the kernel looks at 256 bytes, and we add a zero. CHAINED: it follows five scripts to the program (fs/exec.c, exec_binprm()) */
enum { HEAD = 257, CHAINED = 6 };
enum { TO_LOOK = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY }; /* it may be a FIFO or a terminal */

/* Whether its file's owner, group or capabilities give the program other rights than the real user's, or we have such ones:
 * then ld.so ignores LD_AUDIT (security/commoncap.c, cap_bprm_creds_from_file()). */
static bool is_secure(long file, const struct stat *status)
{
    char capability[24];
    if (is_filtered) /* where it is, the agent does not begin, which is counted */
        return false;
    bool sets_group = (status->mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
    uint32_t user = status->mode & S_ISUID ? status->uid : (uint32_t)call1(NR_GETEUID, 0);
    uint32_t group = sets_group ? status->gid : (uint32_t)call1(NR_GETEGID, 0);
    if (user != (uint32_t)call1(NR_GETUID, 0) || group != (uint32_t)call1(NR_GETGID, 0))
        return true;
    return call1(NR_GETEUID, 0) != 0 &&
        !FAILED(call4(NR_FGETXATTR, file, (long)"security.capability", (long)capability, sizeof capability));
}

static const char linker_name[] = "ld-linux-x86-64.so.2";

static enum reason judge_linker(long file, const struct segment *segment)
{
    char name[sizeof linker_name];
    if (segment->file_size < sizeof name ||
        call4(NR_PREAD64, file, (long)name, sizeof name, (long)(segment->offset + segment->file_size - sizeof name)) != sizeof name)
        return OTHER_LINKER;
    return memcmp(name, linker_name, sizeof name) ? OTHER_LINKER : NO_REASON;
}

/* Whether a name in the dynamic section's table of strings is ld.so's. `lowest` is the segment with the headers, where the table is
 * as well in what needs only ld.so: libc.so.6, which can be executed, and tells its version. */
static bool is_linker_at(long file, const struct segment *lowest, uint64_t strings, uint64_t name)
{
    char text[sizeof linker_name];
    long at = (long)(strings - lowest->address + lowest->offset + name);
    return strings - lowest->address < lowest->file_size && call4(NR_PREAD64, file, (long)text, sizeof text, at) == sizeof text &&
        !memcmp(text, linker_name, sizeof text);
}

/* Whether ld.so loads nothing but the program: with thread-local data, any auditor makes it fail then (an assertion in
 * elf/dl-tls.c, glibc 2.36). Go makes such programs. */
static bool is_alone(long file, const struct segment *section, const struct segment *lowest)
{
    struct dynamic entry;
    uint64_t needed = 0, count = 0, strings = 0;
    for (uint64_t at = 0; at < section->file_size; at += sizeof entry) {
        if (call4(NR_PREAD64, file, (long)&entry, sizeof entry, (long)(section->offset + at)) != sizeof entry || !entry.tag)
            break;
        if (entry.tag == DT_STRTAB)
            strings = entry.value;
        if (entry.tag == DT_NEEDED && count++)
            return false;
        if (entry.tag == DT_NEEDED)
            needed = entry.value;
    }
    return !count || is_linker_at(file, lowest, strings, needed);
}

enum { TOGETHER = 16 }; /* program headers that are read at a time */

static enum reason judge_elf(long file, const char *head, long size)
{
    struct elf elf;
    struct segment segments[TOGETHER], dynamic = {0}, lowest = {0};
    enum reason reason = IS_STATIC;
    bool has_thread_data = false;
    if (head[4] != ELF64)
        return IS_NARROW;
    if (size < (long)sizeof elf)
        return IS_UNKNOWN;
    memcpy(&elf, head, sizeof elf);
    if (elf.machine != X86_64)
        return IS_UNKNOWN;
    for (unsigned i = 0; i < elf.segment_count; i++) {
        struct segment *segment = &segments[i % TOGETHER];
        unsigned left = elf.segment_count - i, count = left < TOGETHER ? left : TOGETHER;
        long bytes = (long)(count * sizeof *segment);
        if (i % TOGETHER == 0 && call4(NR_PREAD64, file, (long)segments, bytes, (long)(elf.segments + i * sizeof *segment)) != bytes)
            return NOT_READ;
        if (segment->type == PT_INTERP)
            reason = judge_linker(file, segment);
        else if (segment->type == PT_DYNAMIC)
            dynamic = *segment;
        else if (segment->type == PT_LOAD && !lowest.type)
            lowest = *segment;
        has_thread_data = has_thread_data || segment->type == PT_TLS;
    }
    return !reason && has_thread_data && is_alone(file, &dynamic, &lowest) ? IS_ALONE : reason;
}

/* Opened where it is a file: to open another thing may block, or be noticed. */
static long open_program(long directory, const char *path)
{
    struct stat status;
    long result = call4(NR_NEWFSTATAT, directory, (long)path, (long)&status, 0);
    if (FAILED(result))
        return result;
    if ((status.mode & S_IFMT) != S_IFREG)
        return -EACCES;
    return call4(NR_OPENAT, directory, (long)path, TO_LOOK, 0);
}

/* The interpreter that a script's first line names, opened; or an error. */
static long open_interpreter(char *head)
{
    char *name = head + 2, *end;
    while (*name == ' ' || *name == '\t')
        name++;
    for (end = name; *end && *end != ' ' && *end != '\t' && *end != '\n'; end++)
        ;
    *end = 0;
    return open_program(AT_FDCWD, name);
}

/* Whether opening fails as it does in the kernel: nothing is there. For any other error it may have what we have not: it asks for
 * another permission, and for no descriptor. */
bool is_nowhere(long error)
{
    return error == -ENOENT || error == -ENOTDIR || error == -ELOOP;
}

/* What kind of program it is; for a script, what its first line names is looked at. `file` stays open. What is neither a script nor
 * our machine's ELF, the kernel mostly refuses; but an interpreter may be registered for it (binfmt_misc). */
static enum reason judge(long file)
{
    char head[HEAD];
    struct stat status;
    enum reason reason = IS_UNKNOWN;
    long now = file;
    for (int depth = 0; depth < CHAINED; depth++) {
        long size = call4(NR_PREAD64, now, (long)head, sizeof head - 1, 0), next;
        if (call2(NR_FSTAT, now, (long)&status) || (status.mode & S_IFMT) != S_IFREG) { /* the kernel refuses it */
            reason = IS_FOREIGN;
            break;
        }
        if (FAILED(size)) {
            reason = NOT_READ;
            break;
        }
        head[size] = 0;
        if (size >= 20 && !memcmp(head, "\177ELF", 4)) {
            reason = is_secure(now, &status) ? IS_SECURE : judge_elf(now, head, size);
            break;
        }
        if (size < 3 || memcmp(head, "#!", 2))
            break;
        next = open_interpreter(head);
        if (FAILED(next)) {
            reason = is_nowhere(next) ? IS_FOREIGN : NOT_READ;
            break;
        }
        if (now != file)
            call1(NR_CLOSE, now);
        now = next;
    }
    if (now != file)
        call1(NR_CLOSE, now);
    return reason;
}

/* A file by its descriptor; one that reads nothing (O_PATH) is opened again, where /proc is there. */
static enum reason judge_descriptor(int descriptor)
{
    char link[PROC_NAME];
    enum reason reason = judge(descriptor);
    if (reason != NOT_READ)
        return reason;
    name_descriptor(link, descriptor);
    long file = open_program(AT_FDCWD, link);
    if (FAILED(file))
        return NOT_READ;
    reason = judge(file);
    call1(NR_CLOSE, file);
    return reason;
}

/* What an execution executes. `name` is set where that is not its path. */
enum reason judge_target(const struct frame *frame, const char *path, bool at, const char **name)
{
    struct stat status;
    int32_t directory = at ? (int32_t)frame->di : AT_FDCWD;
    long file = open_program(directory, path);
    /* With a path the kernel looks at that, whatever the flag. The path may be nowhere: it is for the kernel to read it. */
    if (file == -ENOENT && at && frame->r8 & AT_EMPTY_PATH &&
        !call4(NR_NEWFSTATAT, directory, (long)path, (long)&status, AT_EMPTY_PATH)) {
        *name = "(by descriptor)";
        return judge_descriptor(directory);
    }
    if (is_nowhere(file) || file == -EFAULT || file == -ENAMETOOLONG)
        return IS_FOREIGN; /* it is for the kernel to say how the call fails */
    if (FAILED(file))
        return NOT_READ;
    enum reason reason = judge(file);
    call1(NR_CLOSE, file);
    return reason;
}

/* Whether ld.so will find the agent: this may be another root directory, or another user. */
bool is_agent_visible(void)
{
    long file = call4(NR_OPENAT, AT_FDCWD, (long)audit_entry + sizeof "LD_AUDIT=" - 1, O_RDONLY | O_CLOEXEC, 0);
    if (FAILED(file))
        return false;
    call1(NR_CLOSE, file);
    return true;
}

/* For the supervisor, which starts the first program. */
__attribute__((visibility("default"))) int splitlock_judge(const char *path)
{
    long file = open_program(AT_FDCWD, path);
    if (FAILED(file))
        return IS_FOREIGN;
    enum reason reason = judge(file);
    call1(NR_CLOSE, file);
    return (int)(reason == IS_UNKNOWN ? IS_FOREIGN : reason); /* it has our lines: a shell or an interpreter may take them */
}

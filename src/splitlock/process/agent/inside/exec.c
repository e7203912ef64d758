/* exec.c: the program executes another: our lines go into its environment, or it is noted that it escapes.
 *
 * They are the last of the environment; audit.c takes them out again before the program can see them. Their number is
 * even, since the hole that they leave is filled with pairs. */
#include "agent.h"

/* The stack may be a signal handler's, and small. HEAD: the kernel looks at 256 bytes, and we add a zero. */
enum { HEAD = 257, ON_STACK = 128, MANY = 16384 };
enum { CHAINED = 6 }; /* the kernel follows five scripts to the program (fs/exec.c, exec_binprm()) */
enum { TO_LOOK = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY }; /* it may be a FIFO or a terminal */

char audit_entry[ENTRY], run_entry[ENTRY];

static void fill(struct escape *escape, const char *name, enum reason reason)
{
    escape->reason = reason;
    copy_text(escape->name, name, NAME);
    atomic_fetch_add(&escape->times, 1);
    atomic_store(&escape->state, READY);
}

/* Gives the entry, or null when there is no room. */
static struct escape *note_escape(const char *name, enum reason reason)
{
    for (uint32_t i = 0; i < ESCAPES; i++) {
        struct escape *escape = &run->escapes[i];
        uint32_t state = FREE;
        if (atomic_compare_exchange_strong(&escape->state, &state, CLAIMED)) {
            fill(escape, name, reason);
            return escape;
        }
        if (state == READY && escape->reason == reason && strlen(name) < NAME && !memcmp(escape->name, name, strlen(name) + 1)) {
            atomic_fetch_add(&escape->times, 1);
            return escape;
        }
    }
    for (uint32_t i = 0; i < ESCAPES; i++) { /* those of executions that have failed */
        struct escape *escape = &run->escapes[i];
        uint32_t state = READY;
        if (!atomic_load(&escape->times) && atomic_compare_exchange_strong(&escape->state, &state, CLAIMED)) {
            fill(escape, name, reason);
            return escape;
        }
    }
    atomic_fetch_add(&run->escapes_lost, 1);
    return NULL;
}

void escaped(const char *name, enum reason reason)
{
    note_escape(name, reason);
}

/* A program has begun here. */
void note_program(const char *name, bool has_scope)
{
    char comm[16] = {0};
    uint32_t at = 0;
    call2(NR_PRCTL, PR_GET_NAME, (long)comm);
    for (const char *c = name; *c; c++)
        at = at * 31 + (uint8_t)*c;
    for (uint32_t i = 0; i < PROGRAMS; i++) {
        struct program *program = &run->started[(at + i) % PROGRAMS];
        uint32_t state = FREE;
        if (atomic_compare_exchange_strong(&program->state, &state, CLAIMED)) {
            program->has_scope = has_scope;
            memcpy(program->comm, comm, sizeof comm);
            copy_text(program->name, name, NAME);
            atomic_store(&program->state, READY);
            return;
        }
        if (state == READY && program->has_scope == has_scope && !memcmp(program->comm, comm, sizeof comm) &&
            !memcmp(program->name, name, strlen(name) + 1))
            return;
    }
}

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

static enum reason judge_linker(long file, const struct segment *segment)
{
    static const char linker[] = "ld-linux-x86-64.so.2";
    char name[sizeof linker];
    if (segment->file_size < sizeof linker ||
        call4(NR_PREAD64, file, (long)name, sizeof name, (long)(segment->offset + segment->file_size - sizeof name)) != sizeof name)
        return OTHER_LINKER;
    return memcmp(name, linker, sizeof linker) ? OTHER_LINKER : NO_REASON;
}

/* Whether ld.so loads nothing but the program: with thread-local data, any auditor makes it fail then (an assertion in
 * elf/dl-tls.c, glibc 2.36). Go makes such programs. */
static bool is_alone(long file, const struct segment *section)
{
    struct dynamic entry;
    for (uint64_t at = 0; at < section->file_size; at += sizeof entry) {
        if (call4(NR_PREAD64, file, (long)&entry, sizeof entry, (long)(section->offset + at)) != sizeof entry || !entry.tag)
            break;
        if (entry.tag == DT_NEEDED)
            return false;
    }
    return true;
}

enum { TOGETHER = 16 }; /* program headers that are read at a time */

static enum reason judge_elf(long file, const char *head, long size)
{
    struct elf elf;
    struct segment segments[TOGETHER], dynamic = {0};
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
        has_thread_data = has_thread_data || segment->type == PT_TLS;
    }
    return !reason && has_thread_data && is_alone(file, &dynamic) ? IS_ALONE : reason;
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
static bool is_nowhere(long error)
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

/* The program's environment, copied with room for ours; the number of its lines, or an error. */
static long copy_environment(uint64_t from, uint64_t *to, long room)
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

/* `name` is set where that is not its path. */
static enum reason judge_target(const struct frame *frame, const char *path, bool at, const char **name)
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
static bool is_anothers(const uint64_t *lines, long count)
{
    static const char number[] = "SPLITLOCK_RUN=";
    if (count < 2 || !line_begins(lines[count - 1], number) || !line_begins(lines[count - 2], "LD_AUDIT="))
        return false;
    const char *theirs = (const char *)lines[count - 1] + sizeof number - 1, *ours = run_entry + sizeof number - 1;
    while (*theirs == *ours && *ours >= '0' && *ours <= '9')
        theirs++, ours++;
    return (*theirs >= '0' && *theirs <= '9') || (*ours >= '0' && *ours <= '9');
}

/* Whether ld.so will find the agent: this may be another root directory, or another user. */
static bool is_agent_visible(void)
{
    long file = call4(NR_OPENAT, AT_FDCWD, (long)audit_entry + sizeof "LD_AUDIT=" - 1, O_RDONLY | O_CLOEXEC, 0);
    if (FAILED(file))
        return false;
    call1(NR_CLOSE, file);
    return true;
}

/* The agent will not be in the program, if it is one: the call may fail yet. */
static long execute_unwatched(struct frame *frame, const char *name, uint64_t environment, enum reason reason)
{
    bool can_be_traced = reason == IS_STATIC || reason == OTHER_LINKER || reason == IS_ALONE;
    struct door *door = can_be_traced ? ask_for_tracer(name, reason) : NULL;
    if (door) {
        code_ends(false);
        frame->extra = (uint64_t)door;
        long failed = exec_call(frame, (const uint64_t *)environment);
        not_executed(frame);
        return failed;
    }
    frame->extra = 0;
    struct escape *escape = note_escape(name, reason);
    frame->target = (uint64_t)(escape ? &escape->times : &run->escapes_lost);
    long result = exec_call(frame, (const uint64_t *)environment);
    not_executed(frame);
    return result;
}

/* The filter is inherited: the agent there has to know. */
static const char *filtered_entry(void)
{
    size_t size = strlen(run_entry);
    if (run_entry[size - 1] != IN_FILTER)
        run_entry[size] = IN_FILTER;
    return run_entry;
}

/* Gives what the call gave, or 0 where the program is to make it, as it stands. */
long execute(struct frame *frame)
{
    bool at = frame->ax == NR_EXECVEAT;
    const char *path = (const char *)(at ? frame->si : frame->di), *name = path;
    uint64_t on_stack[ON_STACK + 3], *lines = on_stack, from = at ? frame->r10 : frame->dx;
    enum reason reason = judge_target(frame, path, at, &name);
    if (reason == IS_FOREIGN) { /* the kernel refuses it: should it not, be it that a file has just come, that is told */
        reason = IS_SUDDEN;
        name = "programs"; /* the path may be nowhere, and searches for programs would fill the table */
    }
    if (!reason && !is_agent_visible())
        reason = IS_HIDDEN;
    long count = reason ? 0 : copy_environment(from, lines, ON_STACK);
    if (count == -ENOMEM && (lines = room_of_thread()))
        count = copy_environment(from, lines, MANY);
    if (!reason && count >= 0 && is_anothers(lines, count))
        reason = IS_ANOTHERS;
    if (reason || count < 0)
        return execute_unwatched(frame, name, from, reason ? reason : NOT_READ);
    lines[count] = (uint64_t)audit_entry;
    lines[count + 1] = (uint64_t)(is_filtered ? filtered_entry() : run_entry);
    lines[count + 2] = 0;
    code_ends(false);
    atomic_fetch_add(&run->announced, 1);
    frame->extra = 0;
    frame->target = (uint64_t)&run->announced;
    long result = exec_call(frame, lines);
    not_executed(frame);
    return result;
}

/* It failed, or a signal came before it began. */
void not_executed(const struct frame *frame)
{
    if (frame->extra) {
        close_door((struct door *)frame->extra);
        return;
    }
    atomic_fetch_sub((_Atomic uint32_t *)frame->target, 1);
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

/* audit.c: the door LD_AUDIT (rtld-audit(7)): glibc's ld.so loads the agent before the program, and tells it of each image
 * right after it has mapped it, before any code of it has run. No C library, no thread-local data: none is loaded with us. */
#include "agent.h"

#define EXPORTED __attribute__((visibility("default")))
enum { VERSION = 1, AT_PHDR = 3, AT_PHNUM = 5, AT_BASE = 7, AT_RANDOM = 25, AT_EXECFN = 31, AT_SYSINFO_EHDR = 33, AT_IGNORE = 1 };

struct map { /* struct link_map's public part, elf/link.h */
    uint64_t bias;
    const char *name;
    const void *dynamic;
    struct map *next, *before;
};

uint64_t linker;
uint32_t begun;
bool is_traced;
static uint64_t *environment;
static char **arguments;
static const char *executed; /* the program's name, as it was executed */
static const struct segment *main_segments;
static uint64_t main_segment_count, kernels; /* `kernels`: where the vDSO lies, 0 where there is none */
static bool is_main_known, has_scope;
static int main_arena = -1;

/* Whether a debugger is there already: it may have written breakpoints, which go with the pages that they are in. */
static bool has_tracer(void)
{
    char tracer[FIELD];
    return find_field(0, "TracerPid:\t", tracer) && tracer[0] != '0';
}

/* Our lines are the last ones, two or four. The hole that they leave becomes entries of the auxiliary vector that say
 * nothing. */
static void take_out_lines(void)
{
    uint64_t *line = environment;
    while (*line)
        line++;
    if (line - environment < 2 || !begins((char *)line[-2], "LD_AUDIT=") || !begins((char *)line[-1], "SPLITLOCK_RUN="))
        return;
    memset((char *)line[-2], 0, strlen((char *)line[-2]));
    memset((char *)line[-1], 0, strlen((char *)line[-1]));
    line[-1] = AT_IGNORE;
    line[0] = 0;
    if (line - environment >= 4 && take_out_reserve((char **)line)) {
        line[-3] = AT_IGNORE;
        line[-4] = 0;
    }
    line[-2] = 0;
}

__attribute__((constructor)) static void begin(int argc, char **argv, char **lines)
{
    for (int i = 1; i < argc; i++)
        has_scope = has_scope || (begins(argv[i], "--scope") && !argv[i][7]);
    arguments = argv;
    environment = (uint64_t *)lines;
    uint64_t *line = environment;
    while (*line)
        line++;
    for (uint64_t *entry = line + 1; *entry; entry += 2) {
        if (*entry == AT_PHDR)
            main_segments = (const struct segment *)entry[1];
        if (*entry == AT_BASE)
            linker = entry[1];
        if (*entry == AT_RANDOM)
            begun = *(const uint32_t *)entry[1];
        if (*entry == AT_EXECFN)
            executed = (const char *)entry[1];
        if (*entry == AT_SYSINFO_EHDR)
            kernels = entry[1];
        if (*entry == AT_PHNUM)
            main_segment_count = entry[1];
    }
    if (line - environment < 2 || !begins((char *)line[-1], "SPLITLOCK_RUN="))
        return;
    copy_text(audit_entry, (char *)line[-2], sizeof audit_entry);
    copy_text(run_entry, (char *)line[-1], sizeof run_entry);
    long at = call3(NR_SHMAT, (long)number_in(run_entry + sizeof "SPLITLOCK_RUN=" - 1), 0, 0);
    if (FAILED(at))
        return;
    long pages = call6(NR_MMAP, 0, (sizeof *own + PAGE - 1) & -PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (FAILED(pages) || ((struct run *)at)->magic != RUN_MAGIC || ((struct run *)at)->version != RUN_VERSION)
        return;
    is_filtered = run_entry[strlen(run_entry) - 1] == IN_FILTER;
    if (!is_filtered) {
        call3(NR_MADVISE, pages, (sizeof *own + PAGE - 1) & -PAGE, MADV_WIPEONFORK);
        call3(NR_MADVISE, at, sizeof *run, MADV_DONTDUMP);
    }
    own = (struct own *)pages;
    run = (struct run *)at;
    own->process = (uint64_t)call1(NR_GETPID, 0);
    asks_always = run->mode != WARN;
    is_traced = has_tracer();
    atomic_fetch_add(&run->programs, 1);
}

EXPORTED unsigned la_version(unsigned version)
{
    return version < VERSION ? version : VERSION;
}

/* False where it has no code. */
static bool find_span(const struct segment *segments, uint64_t count, struct span *span)
{
    *span = (struct span){-1UL, 0, -1UL, 0};
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = segments[i].address, end = start + segments[i].memory_size;
        if (segments[i].type != PT_LOAD)
            continue;
        span->low = start < span->low ? start : span->low;
        span->high = end > span->high ? end : span->high;
        if (!(segments[i].flags & PF_X))
            continue;
        span->text = start < span->text ? start : span->text;
        span->text_end = end > span->text_end ? end : span->text_end;
    }
    return span->text < span->text_end;
}

enum { SEGMENTS = 24 };
struct headers { /* as nearly all files begin */
    struct elf file;
    struct segment segments[SEGMENTS];
};

static bool are_headers(const struct headers *headers, long size)
{
    const struct elf *file = &headers->file;
    return size >= (long)sizeof *file && !memcmp(file->ident, "\177ELF", 4) && file->segment_count <= SEGMENTS &&
           file->segments == sizeof *file && (long)(sizeof *file + file->segment_count * sizeof(struct segment)) <= size;
}

/* The headers of most libraries are the first that is mapped of them, at their bias. Not so where the lowest address is not 0, or
 * the headers are not loaded: elsewhere may be anything, or nothing. The library's own dynamic section tells. */
static bool are_mapped(const struct map *map, struct headers *headers)
{
    struct iovec here = {headers, sizeof *headers}, there = {(const void *)map->bias, sizeof *headers};
    if (!are_headers(headers, call6(NR_PROCESS_VM_READV, call1(NR_GETPID, 0), (long)&here, 1, (long)&there, 1, 0)))
        return false;
    for (int i = 0; i < headers->file.segment_count; i++)
        if (headers->segments[i].type == PT_DYNAMIC && map->bias + headers->segments[i].address == (uint64_t)map->dynamic)
            return true;
    return false;
}

static bool are_read(const struct map *map, struct headers *headers)
{
    long file = call4(NR_OPENAT, AT_FDCWD, (long)map->name, O_RDONLY | O_CLOEXEC, 0);
    if (FAILED(file))
        return false;
    long size = call4(NR_PREAD64, file, (long)headers, sizeof *headers, 0);
    call1(NR_CLOSE, file);
    return are_headers(headers, size);
}

/* The program; its bias is told by its own headers, where there are any. */
static int open_main(uint64_t bias)
{
    struct span span;
    for (uint64_t i = 0; i < main_segment_count; i++)
        if (main_segments[i].type == PT_PHDR)
            bias = (uint64_t)main_segments - main_segments[i].address;
    char name[NAME];
    long size = call3(NR_READLINK, (long)"/proc/self/exe", (long)name, sizeof name - 1);
    name[FAILED(size) ? 0 : size] = 0;
    const char *known = FAILED(size) ? executed : name; /* no /proc */
    if (!known || !main_segments || !find_span(main_segments, main_segment_count, &span)) {
        escaped(known ? known : "the program", NO_HEADERS);
        return -1;
    }
    note_stack(main_segments, main_segment_count);
    if (FAILED(size))
        return watch_image(bias, executed, executed, &span);
    note_program(name, has_scope);
    return watch_image(bias, "/proc/self/exe", name, &span);
}

static int open_image_of(struct map *map)
{
    struct headers headers;
    struct span span;
    bool is_main = !map->name || !map->name[0];
    if (!is_main_known) { /* it is the first, but for audit modules that come behind us */
        is_main_known = true;
        take_out_lines();
        note_auditors((char *const *)environment);
        main_arena = open_main(is_main ? map->bias : 0);
    }
    if (is_main)
        return main_arena;
    if (is_ours(map->name) || (kernels && map->bias == kernels))
        return -1;
    if (is_filtered && !can_load) {
        escaped(map->name, IS_FILTERED);
        return -1;
    }
    if (!are_mapped(map, &headers) && !are_read(map, &headers)) {
        escaped(map->name, NO_HEADERS);
        return -1;
    }
    uint64_t count = headers.file.segment_count;
    note_stack(headers.segments, count);
    reserve_for(map->name, headers.segments, count, map->dynamic, arguments, (char **)environment, executed);
    if (!find_span(headers.segments, count, &span))
        return -1;
    return watch_image(map->bias, map->name, map->name, &span);
}

EXPORTED unsigned la_objopen(struct map *map, long space, uint64_t *cookie)
{
    (void)space;
    *cookie = -1UL;
    if (!run) {
        if (!is_main_known)
            take_out_lines();
        is_main_known = true;
        return 0;
    }
    *cookie = (uint64_t)(int64_t)open_image_of(map);
    return 0; /* nothing of symbols */
}

EXPORTED unsigned la_objclose(uint64_t *cookie)
{
    if (run && *cookie < atomic_load(&arena_count) && !arenas[*cookie].closed)
        arenas[*cookie].closed = 1;
    return 0;
}

EXPORTED void la_preinit(uint64_t *cookie)
{
    (void)cookie;
    no_more_reserve();
}

// plugged WHAT LIBRARY [N]: what programs, and workers that a program does not trust, do with libraries (tests/programs/plug.c).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void *load(const char *path)
{
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        puts(dlerror());
        exit(2);
    }
    return library;
}

static char *page_of_text(void *library) { return (char *)((uintptr_t)dlsym(library, "f10") & -4096); }

static int edits(char *page)
{
    int result = mprotect(page, 4096, PROT_READ | PROT_WRITE) ? errno : 0;
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
    return result;
}

static int filtered(const struct sock_filter *code, unsigned short length)
{
    struct sock_fprog program = {length, (struct sock_filter *)code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return prctl(PR_SET_SECCOMP, 2, &program) ? errno : 0;
}

// Closed, and where it was there is a large buffer now, which grows.
static int closes(const char *path, size_t size)
{
    dlclose(load(path));
    char *buffer = malloc(size);
    memset(buffer, 'A', size);
    buffer = realloc(buffer, 2 * size);
    size_t changed = 0;
    for (size_t i = 0; i < size; i++)
        changed += buffer[i] != 'A';
    memset(buffer, 'B', 2 * size);
    printf("%zu bytes changed\n", changed);
    return changed != 0;
}

static int edits_in_children(const char *path, long count)
{
    char *page = page_of_text(load(path));
    for (long i = 0; i < count; i++)
        if (!fork())
            _exit(edits(page));
    while (wait(NULL) > 0)
        ;
    return 0;
}

static int becomes_nobody(void) { return setgid(65534) || setuid(65534); }

// Somebody without rights is the first to load it.
static int spoils(const char *path)
{
    if (!fork())
        _exit(becomes_nobody() || !dlopen(path, RTLD_NOW));
    wait(NULL);
    void *library = load(path);
    _Alignas(64) static char line[128];
    ((int (*)(void *))dlsym(library, "f10"))(line + 62);
    return 0;
}

static char *segment(void)
{
    char line[512], *found = NULL;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        if (strstr(line, "/SYSV"))
            found = (char *)strtoul(line, NULL, 16);
    fclose(maps);
    return found;
}

// Somebody without rights writes into the memory that it shares with us, what it likes; at N, so many bytes.
static int scribbles(const char *path, long at, const char *hex)
{
    size_t size = strlen(hex) / 2;
    if (!fork()) {
        char *memory = segment();
        if (!memory || becomes_nobody())
            _exit(1);
        for (size_t i = 0; i < size; i++) {
            char digits[3] = {hex[2 * i], hex[2 * i + 1]};
            memory[at + (long)i] = (char)strtoul(digits, NULL, 16);
        }
        _exit(0);
    }
    wait(NULL);
    load(path);
    puts("loaded");
    return 0;
}

static int holds_apart(const char *path) // a filter of W^X
{
    const struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 10, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 6),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 6, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    void *library = load(path);
    if (filtered(code, 7))
        return 3;
    edits(page_of_text(library));
    puts("alive");
    return 0;
}

static int refuses(long number) // a filter, then another program
{
    const struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    if (filtered(code, 4))
        return 3;
    execl("/bin/true", "true", NULL);
    return 9;
}

static int jumps_far(long k)
{
    const struct sock_filter code[] = {BPF_STMT(BPF_JMP | BPF_JA, (unsigned)k), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    printf("%d\n", filtered(code, 2));
    return 0;
}

static int denies(const char *path) // PR_SET_MDWE
{
    void *library = load(path);
    if (prctl(65, 1, 0, 0, 0))
        return 77;
    printf("%d\n", mprotect(page_of_text(library), 4096, PROT_READ | PROT_WRITE) ? errno : 0);
    fflush(stdout);
    _exit(0);
}

static int moves(const char *path) // the same
{
    void *library = load(path);
    if (prctl(65, 1, 0, 0, 0))
        return 77;
    char *page = page_of_text(library), *moved = mremap(page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED,
                                                      mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    int value = 0;
    ((int (*)(void *))(moved + ((uintptr_t)dlsym(library, "f10") & 4095)))(&value);
    printf("%d\n", value);
    fflush(stdout);
    _exit(0);
}

// Only what dlopen(3) and printf(3) need; all else kills.
static int kills(const char *path)
{
    static const unsigned let[] = {0, 1, 3, 9, 10, 11, 12, 17, 28, 231, 257, 262, 318};
    enum { LET = sizeof let / sizeof *let };
    struct sock_filter code[LET + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)};
    for (unsigned i = 0; i < LET; i++)
        code[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, let[i], (unsigned char)(LET - i), 0);
    code[LET + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[LET + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    printf("%s", "");
    if (filtered(code, LET + 3))
        return 3;
    load(path);
    printf("loaded\n");
    return 0;
}

static int roots(const char *path, const char *root) // code from a file, where there is no /proc
{
    int file = open(path, O_RDONLY);
    if (chroot(root) || chdir("/"))
        return 77;
    int (*code)(void *) = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    int value = 0;
    code(&value);
    return value != 1;
}

static unsigned char in_data[] = {0xf0, 0xff, 0x07, 0xc3}; // lock incl (%rdi); ret
__attribute__((noinline)) static void patched(int *p) { __atomic_fetch_add(p, 1, 5); }

static int spans(long with_text) // data made executable, with text or alone
{
    int value = 0;
    patched(&value);
    uintptr_t start = (uintptr_t)(with_text ? (void *)patched : (void *)in_data) & -4096, end = ((uintptr_t)in_data + 4096) & -4096;
    if (mprotect((void *)start, end - start, PROT_READ | PROT_EXEC))
        return 2;
    ((void (*)(int *))in_data)(&value);
    mprotect((void *)(end - 4096), 4096, PROT_READ | PROT_WRITE);
    return value - 2;
}

static int waits(const char *path, long milliseconds)
{
    usleep((unsigned)milliseconds * 1000);
    load(path);
    puts("loaded");
    return 0;
}

int main(int count, char **words)
{
    const char *what = words[1], *path = words[2];
    long number = count > 3 ? strtol(words[3], NULL, 0) : 0;
    return !strcmp(what, "closes")  ? closes(path, (size_t)number)
        : !strcmp(what, "edits")    ? edits_in_children(path, number)
        : !strcmp(what, "spoils")   ? spoils(path)
        : !strcmp(what, "scribbles") ? scribbles(path, number, words[4])
        : !strcmp(what, "apart")    ? holds_apart(path)
        : !strcmp(what, "refuses")  ? refuses(number)
        : !strcmp(what, "far")      ? jumps_far(number)
        : !strcmp(what, "denies")   ? denies(path)
        : !strcmp(what, "moves")    ? moves(path)
        : !strcmp(what, "kills")    ? kills(path)
        : !strcmp(what, "roots")    ? roots(path, words[3])
        : !strcmp(what, "spans")    ? spans(number)
        : !strcmp(what, "waits")    ? waits(path, number)
                                    : 99;
}

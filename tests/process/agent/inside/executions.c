/*
 * executions DIRECTORY: executions that fail, each way there is, and their errno. DIRECTORY holds what is executed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096 };
static char *hole; /* the last bytes before a page that cannot be read */
static int directory;

static void put(const char *name, const char *text, int mode)
{
    int file = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (write(file, text, strlen(text)) < 0)
        exit(2);
    fchmod(file, (mode_t)mode);
    close(file);
}

static void prepare(void)
{
    put("text", "no program\n", 0755);
    put("empty", "", 0755);
    put("plain", "#!/bin/true\n", 0644);
    put("nowhere", "#!/no/such/interpreter\n", 0755);
    put("bare", "#!\n", 0755);
    put("loop", "#!loop\n", 0755);
    put("dir", "#!/\n", 0755);
    put("short", "\177ELF\002\001\001", 0755);
    put("header", "\177ELF\002\001\001\001\001\001\001\001\001\001\001\001\002\001>\001\001\001\001\001", 0755);
    mkfifoat(directory, "fifo", 0755);
    mkdirat(directory, "folder", 0755);
    symlinkat("self", directory, "self");
    symlinkat("/bin/true", directory, "link");
    put("busy", "\177ELF", 0755);
}

static void try_at(const char *title, int from, const char *path, char *const *arguments, char *const *lines, int flags)
{
    sigset_t before, after;
    sigprocmask(SIG_BLOCK, NULL, &before);
    errno = 0;
    long result = flags < 0 ? syscall(SYS_execve, path, arguments, lines)
                            : syscall(SYS_execveat, from, path, arguments, lines, flags);
    int code = errno;
    sigprocmask(SIG_BLOCK, NULL, &after);
    int free = dup(0);
    close(free);
    printf("%s: %ld %s, descriptor %d%s\n", title, result, strerror(code), free, memcmp(&before, &after, 8) ? ", mask" : "");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static char *none[] = {NULL}, *some[] = {"x", NULL}, *bad[] = {(char *)16, NULL};
    char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *huge = malloc(200000);
    char **many = calloc(300001, sizeof *many);
    mprotect(pages + PAGE, PAGE, PROT_NONE);
    hole = pages + PAGE;
    directory = open(argc > 1 ? argv[1] : ".", O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 || fchdir(directory))
        return 2;
    prepare();
    memset(huge, 'a', 199999), huge[199999] = 0;
    for (int i = 0; i < 300000; i++)
        many[i] = "0123456789012345678901234567890123456789";
    memcpy(hole - 4, "name", 4); /* without an end */
    char **cut = (char **)(hole - 16);
    cut[0] = "A=1", cut[1] = "B=2";

    static const char *const paths[] = {"text", "empty", "plain", "nowhere", "bare", "loop", "dir", "short", "header", "fifo", "folder",
                                        "self", "missing", "", "text/below", "/", "/dev/null", "/proc/self/mem", "./fifo"};
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
        try_at(paths[i], 0, paths[i], some, none, -1);
        try_at(paths[i], directory, paths[i], some, none, 0);
        try_at(paths[i], AT_FDCWD, paths[i], some, NULL, AT_SYMLINK_NOFOLLOW);
    }
    int writer = openat(directory, "busy", O_WRONLY | O_CLOEXEC);
    try_at("being written", 0, "busy", some, none, -1);
    close(writer);
    try_at("no path", 0, NULL, some, none, -1);
    try_at("bad path", 0, (char *)16, some, none, -1);
    try_at("path without an end", 0, hole - 4, some, none, -1);
    try_at("long path", 0, huge, some, none, -1);
    try_at("bad arguments", 0, "/bin/true", (char **)16, none, -1);
    try_at("a bad argument", 0, "/bin/true", bad, none, -1);
    try_at("a huge argument", 0, "/bin/true", (char *[]){huge, NULL}, none, -1);
    try_at("bad environment", 0, "/bin/true", some, (char **)16, -1);
    try_at("odd environment", 0, "/bin/true", some, (char **)(hole - 3), -1);
    try_at("a bad line", 0, "/bin/true", some, bad, -1);
    try_at("environment without an end", 0, "/bin/true", some, cut, -1);
    try_at("a huge line", 0, "/bin/true", some, (char *[]){huge, NULL}, -1);
    try_at("too many lines", 0, "/bin/true", some, many, -1);
    try_at("kernel's memory", 0, "/bin/true", some, (char **)0xffff800000000000, -1);
    try_at("closed directory", 99, "text", some, none, 0);
    try_at("closed file", 99, "", some, none, AT_EMPTY_PATH);
    try_at("a directory itself", directory, "", some, none, AT_EMPTY_PATH);
    try_at("unknown flag", directory, "link", some, none, 0x40);
    try_at("a link", directory, "link", some, none, AT_SYMLINK_NOFOLLOW);
    try_at("a file as a directory", open("text", O_RDONLY | O_CLOEXEC), "x", some, none, 0);
    return 0;
}

/*
 * surroundings [HOW PROGRAM [ARGUMENT...]]: prints everything that a program can easily find out about itself and that does not
 * change from run to run. With HOW, starts PROGRAM that way, waits for it, prints its status. HOW: fork, vfork, spawn, clone3,
 * thread (which executes), fd (fexecve), empty (execveat with AT_EMPTY_PATH), at (execveat, by a directory), bare (no
 * environment), null (the environment is NULL).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <link.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char **program;

static void lines(const char *title, const char *path, const char *wanted)
{
    char text[1 << 16], *rest = text, *line;
    FILE *file = fopen(path, "r");
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = 0;
    while ((line = strsep(&rest, "\n")))
        for (const char *name = wanted; *name; name += strlen(name) + 1)
            if (!strncmp(line, name, strlen(name)))
                printf("%s %s\n", title, line);
}

static void print_environment(void)
{
    char text[1 << 20];
    for (char **line = environ; line && *line; line++)
        printf("environ %s\n", *line);
    int file = open("/proc/self/environ", O_RDONLY);
    ssize_t size = 0, got;
    while ((got = read(file, text + size, sizeof text - (size_t)size)) > 0)
        size += got;
    close(file);
    for (char *at = text; at < text + size; at += strlen(at) + 1)
        if (*at)
            printf("/proc/self/environ %s\n", at);
    for (char **line = environ; line && line[0] && line[1]; line++) /* one behind the other, as setproctitle expects */
        if (line[1] != line[0] + strlen(line[0]) + 1)
            printf("a gap behind %s\n", *line);
}

static int is_address(uint64_t type)
{
    return type == AT_PHDR || type == AT_BASE || type == AT_ENTRY || type == AT_RANDOM || type == AT_EXECFN || type == AT_PLATFORM ||
        type == AT_SYSINFO_EHDR;
}

static void print_vector(char **envp)
{
    while (*envp)
        envp++;
    Elf64_auxv_t *stack = (Elf64_auxv_t *)(envp + 1), file[64];
    int descriptor = open("/proc/self/auxv", O_RDONLY), count = 0;
    size_t known = (size_t)read(descriptor, file, sizeof file) / sizeof *file;
    close(descriptor);
    for (; stack->a_type; stack++) {
        if (stack->a_type == AT_IGNORE)
            continue;
        if (is_address(stack->a_type))
            printf("auxv %lu\n", stack->a_type);
        else
            printf("auxv %lu %#lx\n", stack->a_type, stack->a_un.a_val);
        if (getauxval(stack->a_type) != stack->a_un.a_val)
            printf("getauxval(%lu) differs\n", stack->a_type);
        for (size_t i = 0; i < known; i++)
            count += file[i].a_type == stack->a_type && file[i].a_un.a_val == stack->a_un.a_val;
    }
    printf("auxv: %d entries as in /proc; %s; %s\n", count, (char *)getauxval(AT_EXECFN), (char *)getauxval(AT_PLATFORM));
}

static int print_image(struct dl_phdr_info *image, size_t size, void *unused)
{
    (void)unused;
    if (size >= offsetof(struct dl_phdr_info, dlpi_tls_data))
        printf("image %s %u\n", image->dlpi_name, image->dlpi_phnum);
    return 0;
}

static void print_descriptors(void)
{
    for (int i = 0; i < 64; i++) {
        struct stat status;
        if (!fstat(i, &status))
            printf("descriptor %d %o %#x\n", i, status.st_mode & S_IFMT, fcntl(i, F_GETFD));
    }
}

static void print_limits(void)
{
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        getrlimit(i, &limit);
        printf("limit %d %lx %lx\n", i, limit.rlim_cur, limit.rlim_max);
    }
    printf("dumpable %d, subreaper %d, timer slack %d\n", prctl(PR_GET_DUMPABLE), prctl(PR_GET_CHILD_SUBREAPER, &(int){0}),
           prctl(PR_GET_TIMERSLACK));
}

static void print_handlers(void)
{
    for (int i = 1; i < 65; i++) {
        struct sigaction action;
        if (!sigaction(i, NULL, &action) && (action.sa_handler != SIG_DFL || action.sa_flags))
            printf("signal %d %p %#x\n", i, (void *)action.sa_handler, action.sa_flags);
    }
}

static void print_all(char **envp)
{
    print_environment();
    print_vector(envp);
    dl_iterate_phdr(print_image, NULL);
    print_descriptors();
    print_limits();
    print_handlers();
    lines("status", "/proc/self/status",
          "Name:\0State:\0TracerPid:\0Threads:\0SigPnd:\0SigBlk:\0SigIgn:\0SigCgt:\0ShdPnd:\0Cap\0NoNewPrivs:\0Seccomp:\0");
    for (struct link_map *map = _r_debug.r_map; map; map = map->l_next)
        printf("link_map %s\n", map->l_name);
    fflush(stdout);
}

static void *execute(void *unused)
{
    execv(program[0], program);
    return unused;
}

static pid_t start(const char *how)
{
    pid_t child;
    if (!strcmp(how, "spawn")) {
        posix_spawn(&child, program[0], NULL, NULL, program, environ);
        return child;
    }
    if (!strcmp(how, "clone3")) {
        struct clone_args arguments = {.exit_signal = SIGCHLD};
        child = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    } else {
        child = !strcmp(how, "vfork") ? vfork() : fork();
    }
    if (child)
        return child;
    if (!strcmp(how, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, execute, NULL);
        pthread_join(thread, NULL);
    } else if (!strcmp(how, "fd")) {
        fexecve(open(program[0], O_RDONLY | O_CLOEXEC), program, environ);
    } else if (!strcmp(how, "empty")) {
        syscall(SYS_execveat, open(program[0], O_PATH | O_CLOEXEC), "", program, environ, AT_EMPTY_PATH);
    } else if (!strcmp(how, "at")) {
        char *path = strdup(program[0]);
        int directory = open(dirname(path), O_PATH | O_DIRECTORY | O_CLOEXEC);
        syscall(SYS_execveat, directory, strrchr(program[0], '/') + 1, program, environ, 0);
    } else if (!strcmp(how, "bare")) {
        execve(program[0], program, (char *[]){NULL});
    } else if (!strcmp(how, "null")) {
        execve(program[0], program, NULL);
    } else {
        execv(program[0], program);
    }
    _exit(errno);
}

int main(int argc, char **argv, char **envp)
{
    print_all(envp);
    if (argc < 3)
        return argc + 40;
    int status = 0;
    program = argv + 2;
    pid_t child = start(argv[1]);
    if (waitpid(child, &status, 0) != child)
        return 2;
    printf("%s: status %#x\n", argv[1], status);
    print_descriptors();
    return 0;
}

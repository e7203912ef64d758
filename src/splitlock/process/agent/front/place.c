/* place.c: what the command has to know of its installation, of this machine and of the program before it starts it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "front.h"

enum { FSGSBASE = 2 }; /* in AT_HWCAP2: Documentation/arch/x86/x86_64/fsgs.rst */
enum { MAJOR = 2, MINOR = 35 }; /* of glibc: supervise.py says why */

int cannot_start(const char *path)
{
    dprintf(2, "splitlock: %s: %s; install splitlock again\n", path, strerror(errno));
    return 125;
}

/* splitlock-python, beside us. */
bool find_python(struct place *place)
{
    static const char name[] = "splitlock-python";
    ssize_t size = readlink("/proc/self/exe", place->python, sizeof place->python - sizeof name - 1);
    char *end = size > 0 ? memrchr(place->python, '/', (size_t)size) : NULL;
    if (!end) {
        dprintf(2, "splitlock: /proc is not mounted here; mount it, or call splitlock-python\n");
        return false;
    }
    strcpy(end + 1, name);
    return true;
}

static bool is_kept_by(const struct stat *status, uid_t owner, mode_t kind)
{
    return (status->st_mode & S_IFMT) == kind && status->st_uid == owner && !(status->st_mode & 022);
}

/* Nobody else can have put a file there. */
bool is_roots(const char *directory)
{
    struct stat status;
    char above[CACHE];
    strcpy(above, directory);
    char *end = strrchr(above, '/');
    if (!end)
        return false;
    *end = 0;
    return !lstat(above, &status) && is_kept_by(&status, 0, S_IFDIR) && !lstat(directory, &status) && is_kept_by(&status, 0, S_IFDIR);
}

static int open_cache(char cache[CACHE])
{
    const char *place = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct stat status;
    int size = place && *place ? snprintf(cache, CACHE, "%s/splitlock", place)
               : home && *home ? snprintf(cache, CACHE, "%s/.cache/splitlock", home)
                               : CACHE;
    if (size >= CACHE || cache[0] != '/')
        return -1;
    int directory = open(cache, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory >= 0 && (fstat(directory, &status) || !is_kept_by(&status, geteuid(), S_IFDIR))) {
        close(directory);
        return -1;
    }
    return directory;
}

/* A file's key as names of image files have it. */
static bool is_file(const char *path, const char *key)
{
    struct stat status;
    char now[96];
    if (stat(path, &status))
        return false;
    snprintf(now, sizeof now, "%llx-%llx-%llx-%llx-%llx", (unsigned long long)status.st_dev, (unsigned long long)status.st_ino,
             (unsigned long long)status.st_size, status.st_mtim.tv_sec * 1000000000ULL + (unsigned long long)status.st_mtim.tv_nsec,
             status.st_ctim.tv_sec * 1000000000ULL + (unsigned long long)status.st_ctim.tv_nsec);
    return !strcmp(now, key);
}

/* Whether all of it is there, of this very installation. Lines: `versions RUN IMAGE`, `front KEY`, `agent KEY PATH`, `shared PATH`,
 * `name NAME`..., `end`. */
bool read_place(struct place *place, char cache[CACHE])
{
    static char text[1 << 15];
    char *rest = text, *line, versions[32];
    size_t used = 1;
    bool is_whole = false;
    unsigned seen = 0;
    int directory = open_cache(cache);
    int file = directory < 0 ? -1 : openat(directory, "place", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
    close(file);
    close(directory);
    snprintf(versions, sizeof versions, "versions %d %d", RUN_VERSION, IMAGE_VERSION);
    strcpy(place->names, "\n");
    while (size > 0 && size < (ssize_t)sizeof text - 1 && (line = strsep(&rest, "\n"))) {
        size_t length = strlen(line);
        if (!strcmp(line, versions))
            seen |= 1;
        else if (!strncmp(line, "front ", 6))
            seen |= is_file("/proc/self/exe", line + 6) ? 2 : 0;
        else if (!strncmp(line, "agent ", 6)) {
            char *path = strchr(line + 6, ' ');
            if (!path || length >= sizeof place->agent)
                return false;
            *path++ = 0;
            seen |= is_file(path, line + 6) ? 4 : 0;
            strcpy(place->agent, path);
        } else if (!strncmp(line, "shared ", 7) && length - 7 < sizeof place->shared) {
            seen |= 8;
            strcpy(place->shared, line + 7);
        } else if (!strncmp(line, "name ", 5) && used + length < sizeof place->names - 2) {
            used += (size_t)sprintf(place->names + used, "%s\n", line + 5);
        } else if (!strcmp(line, "end")) {
            is_whole = true;
        }
    }
    return is_whole && seen == 15;
}

/* As execvp(3) finds it. */
static bool find_program(const char *name, char found[PATH_MAX])
{
    const char *places = getenv("PATH");
    if (strchr(name, '/'))
        return snprintf(found, PATH_MAX, "%s", name) < PATH_MAX;
    if (!places)
        return false;
    for (const char *at = places, *end; at; at = *end ? end + 1 : NULL) {
        end = strchrnul(at, ':');
        if (end == at ? snprintf(found, PATH_MAX, "./%s", name) < PATH_MAX
                      : snprintf(found, PATH_MAX, "%.*s/%s", (int)(end - at), at, name) < PATH_MAX)
            if (!access(found, X_OK))
                return true;
    }
    return false;
}

/* Whether Python will have what it takes when it is wanted: else it had better say so before the program runs. */
static bool has_room(void)
{
    static const struct {
        int what;
        rlim_t least;
    } needs[] = {{RLIMIT_NOFILE, 64}, {RLIMIT_AS, 1 << 29}, {RLIMIT_DATA, 1 << 28}, {RLIMIT_STACK, 1 << 20}, {RLIMIT_FSIZE, 1 << 20}};
    struct rlimit limit;
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++)
        if (getrlimit(needs[i].what, &limit) || limit.rlim_cur < needs[i].least)
            return false;
    return true;
}

/* Whether the agent can be brought into the program, and nobody counts on our process (aside.py); Python says why not. */
bool is_plain(const struct place *place, const char *program)
{
    char path[PATH_MAX];
    int major = 0, minor = 0;
    if (getenv("LISTEN_PID") || getenv("NOTIFY_SOCKET") || !(getauxval(AT_HWCAP2) & FSGSBASE) || !has_room() || !find_program(program, path))
        return false;
    if (sscanf(gnu_get_libc_version(), "%d.%d", &major, &minor) != 2 || major < MAJOR || (major == MAJOR && minor < MINOR))
        return false;
    void *agent = dlopen(place->agent, RTLD_NOW | RTLD_LOCAL);
    int (*judge)(const char *) = agent ? (int (*)(const char *))dlsym(agent, "splitlock_judge") : NULL;
    return judge && judge(path) == NO_REASON;
}

/* images.c: a file has been mapped: what is known of it in this run, and the image file that Python makes of it. */
#include "agent.h"

void wake_supervisor(void)
{
    atomic_fetch_add(&run->asked, 1);
    call6(NR_FUTEX, (long)&run->asked, FUTEX_WAKE, 1 << 30, 0, 0, 0); /* the front waits there, too */
}

/* The entry of a file in the run's memory; null when there is no room. */
static struct seen_image *find(const uint64_t key[KEY], const char *name, uint64_t low, uint32_t size)
{
    uint32_t at = (uint32_t)((key[1] * 31 + key[0] + key[3]) * 0x9E3779B1U) % IMAGES;
    for (uint32_t i = 0; i < IMAGES; i++, at = (at + 1) % IMAGES) {
        struct seen_image *image = &run->images[at];
        uint32_t state = FREE;
        if (atomic_compare_exchange_strong(&image->state, &state, CLAIMED)) {
            memcpy(image->key, key, sizeof image->key);
            copy_text(image->name, name, NAME);
            image->low = low;
            image->size = size;
            return image;
        }
        for (int spin = 0; state == CLAIMED && !image->key[KEY - 1] && spin < 1000; spin++) {
            __builtin_ia32_pause();
            state = atomic_load(&image->state);
        }
        if (memcmp(image->key, key, sizeof image->key) == 0)
            return image;
    }
    atomic_fetch_add(&run->images_lost, 1);
    return NULL;
}

static void put_hex(char **to, uint64_t value)
{
    int digits = 1;
    while (digits < 16 && value >> 4 * digits)
        digits++;
    while (digits--)
        *(*to)++ = "0123456789abcdef"[value >> 4 * digits & 15];
}

/* It is code: so it must be root's, or of whoever executes it. The run's memory is shared by all that it watches, a worker that has
 * given up root's rights among them: it tells where files are, not whose they may be. */
static bool is_trusted(const struct stat *status, bool roots)
{
    return (status->uid == 0 || (!roots && status->uid == (uint32_t)call1(NR_GETEUID, 0))) && !(status->mode & 022) &&
           (status->mode & S_IFMT) == S_IFREG;
}

static long open_image_in(const char *directory, bool roots, const uint64_t key[KEY], struct image *image, struct arena *arena)
{
    char path[CACHE + 17 * KEY + 8], *to;
    struct stat status;
    copy_text(path, directory, CACHE);
    to = path + strlen(path);
    for (int i = 0; i < KEY; i++) {
        *to++ = i ? '-' : '/';
        put_hex(&to, key[i]);
    }
    memcpy(to, ".image", 7);
    long file = call4(NR_OPENAT, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (FAILED(file))
        return file;
    if (call2(NR_FSTAT, file, (long)&status) || !is_trusted(&status, roots) || call4(NR_PREAD64, file, (long)image, sizeof *image, 0) != sizeof *image ||
        image->magic != IMAGE_MAGIC || image->version != IMAGE_VERSION ||
        image->file_size != (uint64_t)status.size || memcmp(image->key, key, sizeof image->key)) {
        call1(NR_CLOSE, file);
        return -EACCES;
    }
    arena->file_device = status.dev;
    arena->file_inode = status.ino;
    return file;
}

static long open_image(const uint64_t key[KEY], struct image *image, struct arena *arena)
{
    const char *places[] = {run->cache, run->spare, run->shared};
    long file = -ENOENT;
    for (int i = 0; i < 3 && FAILED(file); i++)
        if (places[i][0])
            file = open_image_in(places[i], places[i] == run->shared, key, image, arena);
    return file;
}

bool lives(int32_t pid)
{
    struct {
        int32_t file;
        int16_t wanted, got;
    } ends = {(int32_t)call2(NR_PIDFD_OPEN, pid, 0), 1 /* POLLIN */, 0};
    if (ends.file < 0) /* in another PID namespace nobody knows */
        return false;
    long ended = call3(NR_POLL, (long)&ends, 1, 0);
    call1(NR_CLOSE, ends.file);
    return ended == 0; /* else it may be a zombie, which kill(2) would find */
}

/* Whether the supervisor still works, be it on what others wait for: asked again and again, each tenth of a second. Where it
 * stands still, or has become another process, nobody waits for more than ten. */
bool is_served(struct waited *waited)
{
    uint32_t beats = atomic_load(&run->beats);
    if (beats != waited->beats)
        *waited = (struct waited){beats, 0};
    return waited->times++ < PATIENCE && lives(run->supervisor);
}

/* Nobody will watch it. */
static void refuse(struct seen_image *image, enum reason reason)
{
    uint32_t claimed = CLAIMED;
    if (atomic_compare_exchange_strong(&image->state, &claimed, REFUSED))
        image->reason = reason;
}

/* One program of one process, and not the one that it executes next. */
static uint64_t who_settles(void)
{
    return (uint64_t)begun << 32 | (uint32_t)call1(NR_GETPID, 0);
}

/* This process cannot have it watched; the next one may be allowed more. */
static void leave(struct seen_image *image, enum reason reason)
{
    uint64_t us = who_settles();
    image->reason = reason;
    atomic_compare_exchange_strong(&image->settler, &us, 0);
}

/* Have the supervisor make the image file; `file` is the ELF file. */
static void ask(struct seen_image *image, long file)
{
    struct timespec patience = {0, 100000000};
    struct waited waited = {0, 0};
    uint32_t state = atomic_load(&image->state), asked = ASKED;
    image->pid = (int32_t)call1(NR_GETPID, 0);
    image->fd = (int32_t)file;
    if ((state != CLAIMED && state != ASKED) || !atomic_compare_exchange_strong(&image->state, &state, ASKED))
        return;
    wake_supervisor();
    while (atomic_load(&image->state) == ASKED && is_served(&waited))
        call6(NR_FUTEX, (long)&image->state, FUTEX_WAIT, ASKED, (long)&patience, 0, 0);
    if (atomic_compare_exchange_strong(&image->state, &asked, REFUSED))
        image->reason = NO_ANSWER;
}

/* Where two settle it, of two PID namespaces, they come to the same, with one place for counters. */
static void count_sites(struct seen_image *seen, const struct image *image)
{
    uint32_t first = atomic_fetch_add(&run->counters_used, image->sites) + 1, none = 0;
    if (first > COUNTERS || image->sites > COUNTERS - first) {
        refuse(seen, NO_COUNTERS);
        return;
    }
    atomic_compare_exchange_strong(&seen->counters, &none, first);
    seen->watched = image->watched;
    seen->unwatched = image->unwatched;
    seen->watched_bytes = image->watched_bytes;
    atomic_store(&seen->state, image->sites || image->hook_count ? READY : NOTHING);
}

/* Whether another one still settles it: it may have been killed, or have executed another program. */
static bool is_settled_by(uint64_t settler, uint64_t us)
{
    return settler == us || (settler && (uint32_t)settler != (uint32_t)us && lives((int32_t)settler));
}

static void find_or_ask(struct seen_image *seen, struct image *image, long *from, const char *path, struct arena *arena)
{
    *from = open_image(seen->key, image, arena);
    if (FAILED(*from) && is_filtered) {
        leave(seen, IS_FILTERED);
        return;
    } else if (FAILED(*from)) {
        long file = call4(NR_OPENAT, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
        if (FAILED(file)) {
            leave(seen, file == -EACCES ? NOT_READ : NOT_OPENED);
            return;
        }
        if (is_plain(file, seen->key, &seen->watched_bytes))
            atomic_store(&seen->state, NOTHING);
        else
            ask(seen, file);
        call1(NR_CLOSE, file);
        if (atomic_load(&seen->state) == CLAIMED)
            *from = open_image(seen->key, image, arena);
    }
    if (!FAILED(*from))
        count_sites(seen, image);
    else if (atomic_load(&seen->state) == CLAIMED)
        leave(seen, NOT_OPENED);
}

/* Only one settles what becomes of a file; others wait for it, for as long as the supervisor works on it. Where it is there and
 * nothing happens, its settler may be stopped: then two settle it. */
static void settle(struct seen_image *seen, struct image *image, long *from, const char *path, struct arena *arena)
{
    struct timespec patience = {0, 100000000};
    struct waited asked = {0, 0};
    uint64_t us = who_settles();
    int claimed = 0;
    for (uint32_t state; (state = atomic_load(&seen->state)) == CLAIMED || state == ASKED;) {
        if (is_filtered) { /* others are not waited for */
            find_or_ask(seen, image, from, path, arena);
            return;
        }
        uint64_t settler = atomic_load(&seen->settler);
        bool goes_on = state == ASKED ? is_served(&asked) : claimed++ < BRIEF;
        if (goes_on && is_settled_by(settler, us)) {
            call6(NR_FUTEX, (long)&seen->state, FUTEX_WAIT, state, (long)&patience, 0, 0);
        } else if (atomic_compare_exchange_strong(&seen->settler, &settler, us)) {
            find_or_ask(seen, image, from, path, arena);
            call6(NR_FUTEX, (long)&seen->state, FUTEX_WAKE, 1 << 30, 0, 0, 0);
            return;
        }
    }
}

void key_of(const struct stat *status, uint64_t key[KEY])
{
    key[0] = status->dev;
    key[1] = status->ino;
    key[2] = (uint64_t)status->size;
    key[3] = (uint64_t)(status->mtime * 1000000000 + status->mtime_ns);
    key[4] = (uint64_t)(status->ctime * 1000000000 + status->ctime_ns);
}

/* The program maps a file to execute it, past the dynamic linker: it is not watched. */
void note_mapping(int file, bool shared, uint64_t mapped)
{
    if (is_filtered) {
        escaped("files mapped under a filter", shared ? IS_SHARED : IS_OWN);
        return;
    }
    struct stat status;
    uint64_t key[KEY];
    char link[PROC_NAME], name[NAME];
    name_descriptor(link, file);
    long size = call3(NR_READLINK, (long)link, (long)name, sizeof name - 1);
    if (call2(NR_FSTAT, file, (long)&status))
        return;
    if (FAILED(size)) /* no /proc here */
        copy_text(name, "a file", sizeof name), size = (long)strlen(name);
    name[size] = 0;
    key_of(&status, key);
    struct seen_image *seen = find(key, name, 0, (uint32_t)mapped);
    if (!seen)
        return;
    atomic_fetch_add(&seen->mapped, 1);
    seen->reason = shared ? IS_SHARED : IS_OWN;
}

/* A file has been mapped, none of its code has run: patch it. Gives the number of its arena, or -1. */
int watch_image(uint64_t bias, const char *path, const char *name, const struct span *span)
{
    struct stat status;
    struct image image;
    long file = -1;
    if (call4(NR_NEWFSTATAT, AT_FDCWD, (long)path, (long)&status, 0)) { /* no /proc here, or its file is gone */
        escaped(name, NOT_OPENED);
        return -1;
    }
    uint64_t key[KEY];
    key_of(&status, key);
    struct seen_image *seen = find(key, name, span->low, (uint32_t)(span->high - span->low));
    free_arenas(span->low + bias, span->high + bias);
    uint32_t number = 0, count = atomic_load(&arena_count);
    while (number < count && !(arenas[number].closed == 2))
        number++;
    if (!seen)
        return -1;
    if (number == ARENAS) {
        atomic_fetch_add(&seen->mapped, 1);
        return -1;
    }
    struct arena *arena = &arenas[number];
    memset(arena, 0, sizeof *arena);
    arena->bias = bias;
    arena->low = span->low + bias;
    arena->high = span->high + bias;
    arena->text = span->text + bias;
    arena->text_end = span->text_end + bias;
    arena->seen = (uint32_t)(seen - run->images);
    atomic_fetch_add(&seen->mapped, 1);
    settle(seen, &image, &file, path, arena);
    if (atomic_load(&seen->state) == READY) {
        if (FAILED(file))
            file = open_image(key, &image, arena);
        if (FAILED(file))
            seen->reason = NOT_OPENED;
        else if (place(arena, seen, &image, file))
            atomic_fetch_add(&seen->patched, 1);
    } else if (atomic_load(&seen->state) == NOTHING) {
        atomic_fetch_add(&seen->patched, 1);
    }
    if (!FAILED(file))
        call1(NR_CLOSE, file);
    if (number == count)
        atomic_store(&arena_count, count + 1);
    return (int)number;
}


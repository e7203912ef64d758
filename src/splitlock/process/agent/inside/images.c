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
            image->pid = 0;
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

/* `owner`: whose the file must be, since it is code. */
static long open_image_in(const char *directory, uint32_t owner, const uint64_t key[KEY], struct image *image, struct arena *arena)
{
    char path[CACHE + 17 * KEY + 8], *to = path + strlen(directory);
    struct stat status;
    memcpy(path, directory, strlen(directory));
    for (int i = 0; i < KEY; i++) {
        *to++ = i ? '-' : '/';
        put_hex(&to, key[i]);
    }
    memcpy(to, ".image", 7);
    long file = call4(NR_OPENAT, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
    if (FAILED(file))
        return file;
    if (call2(NR_FSTAT, file, (long)&status) || status.uid != owner || status.mode & 022 ||
        (status.mode & S_IFMT) != S_IFREG || call4(NR_PREAD64, file, (long)image, sizeof *image, 0) != sizeof *image ||
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
            file = open_image_in(places[i], places[i] == run->shared ? 0 : (uint32_t)run->uid, key, image, arena);
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

/* Have the supervisor make the image file; `file` is the ELF file. */
static void ask(struct seen_image *image, long file)
{
    struct timespec patience = {0, 100000000};
    image->pid = (int32_t)call1(NR_GETPID, 0);
    image->fd = (int32_t)file;
    atomic_store(&image->state, ASKED);
    wake_supervisor();
    while (atomic_load(&image->state) == ASKED && lives(run->supervisor))
        call6(NR_FUTEX, (long)&image->state, FUTEX_WAIT, ASKED, (long)&patience, 0, 0);
    uint32_t asked = ASKED;
    if (atomic_compare_exchange_strong(&image->state, &asked, REFUSED))
        image->reason = NO_ANSWER;
}

static void count_sites(struct seen_image *seen, const struct image *image)
{
    uint32_t first = atomic_fetch_add(&run->counters_used, image->sites);
    if (first + image->sites > COUNTERS || first + image->sites < first) {
        seen->reason = NO_COUNTERS;
        atomic_store(&seen->state, REFUSED);
        return;
    }
    seen->counters = first;
    seen->watched = image->watched;
    seen->unwatched = image->unwatched;
    seen->watched_bytes = image->watched_bytes;
    atomic_store(&seen->state, image->sites || image->hook_count ? READY : NOTHING);
}

/* Only one process settles what becomes of a file; others wait for it, for as long as it may take. */
static void settle(struct seen_image *seen, struct image *image, long *from, const char *path, struct arena *arena)
{
    if (seen->pid == 0 && atomic_load(&seen->state) == CLAIMED) {
        int32_t nobody = 0, we = (int32_t)call1(NR_GETPID, 0);
        if (__atomic_compare_exchange_n(&seen->pid, &nobody, we, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            *from = open_image(seen->key, image, arena);
            if (FAILED(*from) && is_filtered) {
                seen->reason = IS_FILTERED;
                atomic_store(&seen->state, REFUSED);
                return;
            }
            if (FAILED(*from)) {
                long file = call4(NR_OPENAT, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
                if (!FAILED(file)) {
                    if (is_plain(file, seen->key, &seen->watched_bytes))
                        atomic_store(&seen->state, NOTHING);
                    else
                        ask(seen, file);
                    call1(NR_CLOSE, file);
                } else {
                    seen->reason = file == -EACCES ? NOT_READ : NOT_OPENED;
                    atomic_store(&seen->state, REFUSED);
                }
                if (atomic_load(&seen->state) == REFUSED)
                    return;
                if (atomic_load(&seen->state) != NOTHING)
                    *from = open_image(seen->key, image, arena);
            }
            if (atomic_load(&seen->state) == NOTHING) {
                ; /* it is plain */
            } else if (FAILED(*from)) {
                seen->reason = NOT_OPENED;
                atomic_store(&seen->state, REFUSED);
            } else {
                count_sites(seen, image);
            }
            call6(NR_FUTEX, (long)&seen->state, FUTEX_WAKE, 1 << 30, 0, 0, 0);
            return;
        }
    }
    struct timespec patience = {0, 100000000};
    for (uint32_t state; (state = atomic_load(&seen->state)) == CLAIMED || state == ASKED;) {
        if (call2(NR_KILL, seen->pid, 0) == -ESRCH)
            return; /* it died before it knew */
        call6(NR_FUTEX, (long)&seen->state, FUTEX_WAIT, state, (long)&patience, 0, 0);
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
    char link[32] = "/proc/self/fd/", name[NAME], digits[12];
    int count = 0, at = 14;
    for (unsigned rest = (unsigned)file; rest || !count; rest /= 10)
        digits[count++] = (char)('0' + rest % 10);
    while (count)
        link[at++] = digits[--count];
    long size = call3(NR_READLINK, (long)link, (long)name, sizeof name - 1);
    if (FAILED(size) || call2(NR_FSTAT, file, (long)&status))
        return;
    name[size] = 0;
    key_of(&status, key);
    struct seen_image *seen = find(key, name, 0, (uint32_t)mapped);
    if (!seen)
        return;
    atomic_fetch_add(&seen->mapped, 1);
    seen->reason = shared ? IS_SHARED : IS_OWN;
}

/* A file has been mapped, none of its code has run: patch it. Gives the number of its arena, or -1. */
int watch_image(uint64_t bias, const char *path, const char *name, uint64_t low, uint64_t high)
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
    struct seen_image *seen = find(key, name, low, (uint32_t)(high - low));
    free_arenas(low + bias, high + bias);
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
    arena->low = low + bias;
    arena->high = high + bias;
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


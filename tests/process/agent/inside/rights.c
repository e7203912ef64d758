/*
 * rights SEED: threads and forked children give memory random rights, right ones and wrong ones, and print what each call gave and,
 * by /proc/self/maps, what rights each page has in the end. Some of it holds copies of locked code.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 24, THREADS = 3, STEPS = 60, GROWS_DOWN = 0x01000000, NOT_A_RIGHT = 0x100 };
static int counter;
static char *areas[THREADS + 1];
static char log_of[THREADS + 1][STEPS * 8];

__attribute__((noinline)) static void bump(void)
{
    __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
}

static void step(char *area, unsigned *seed, char *log)
{
    static const int extra[] = {0, 0, 0, 0, GROWS_DOWN, NOT_A_RIGHT};
    int first = rand_r(seed) % PAGES, count = rand_r(seed) % (PAGES - first + 2), rights = rand_r(seed) % 8, kind = rand_r(seed) % 8;
    char *at = area + first * PAGE;
    size_t size = (size_t)count * PAGE;
    int result = 0;
    errno = 0;
    if (kind == 0)
        result = munmap(at, PAGE);
    else if (kind == 1)
        result = mmap(at, PAGE, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
    else if (kind == 2 && !mprotect(at, PAGE, PROT_READ | PROT_WRITE))
        memcpy(at + rand_r(seed) % 2000, (const void *)bump, 64);
    else if (kind == 3)
        result = pkey_mprotect(at, size, rights, rand_r(seed) % 2 ? -1 : 77);
    else
        result = mprotect(at + (rand_r(seed) % 16 ? 0 : 8), size, rights | extra[rand_r(seed) % 6]);
    sprintf(log + strlen(log), "%d ", result ? errno : 0);
}

static void *in_thread(void *number)
{
    unsigned seed = (unsigned)(uintptr_t)number, slot = seed % 10;
    for (int i = 0; i < STEPS; i++)
        step(areas[slot], &seed, log_of[slot]);
    return NULL;
}

static void tell(char *area)
{
    char line[512], rights[PAGES + 1] = {0};
    FILE *file = fopen("/proc/self/maps", "r");
    uint64_t low, high;
    memset(rights, '.', PAGES);
    while (fgets(line, sizeof line, file)) {
        char word[8];
        sscanf(line, "%lx-%lx %4s", &low, &high, word);
        int now = (word[0] == 'r') + (word[1] == 'w') * 2 + (word[2] == 'x') * 4;
        for (int i = 0; i < PAGES; i++)
            if ((uint64_t)area + (uint64_t)i * PAGE >= low && (uint64_t)area + (uint64_t)i * PAGE < high)
                rights[i] = (char)('0' + now);
    }
    fclose(file);
    printf("%s\n", rights);
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : 0;
    bump();
    for (int i = 0; i <= THREADS; i++) { /* with a gap behind each, which is nobody's */
        areas[i] = mmap(NULL, (PAGES + 4) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(areas[i] + PAGES * PAGE, 4 * PAGE);
        mmap(areas[i] + (PAGES + 2) * PAGE, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, in_thread, (void *)(uintptr_t)(seed * 10 + (unsigned)i));
    for (int i = 0; i < 3; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            in_thread((void *)(uintptr_t)((seed + 100 + (unsigned)i) * 10 + THREADS));
            printf("%s\n", log_of[THREADS]);
            tell(areas[THREADS]);
            fflush(stdout);
            _exit(0);
        }
        waitpid(child, NULL, 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++) {
        printf("%s\n", log_of[i]);
        tell(areas[i]);
    }
    return 0;
}

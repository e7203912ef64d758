/* What of a C library the guest's init needs: system calls, and lines for the kernel's log. 64 and 32 bits. */
#pragma once
#include <asm/signal.h>
#include <asm/unistd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __x86_64__
#define SP "%%rsp"
static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0; /* mmap's offset */
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#else
#define SP "%%esp"
static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return result;
}
#endif
#define CALL(name, ...) CALL_(__NR_##name, __VA_ARGS__, 0, 0, 0, 0, 0)
#define CALL_(number, a, b, c, d, e, ...) call(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

struct time { long seconds, nanoseconds; };

static inline int64_t now(void)
{
    struct time time = {0, 0};
    CALL(clock_gettime, 1 /* CLOCK_MONOTONIC */, &time);
    return time.seconds * 1000000000ll + time.nanoseconds;
}

static inline void pause_for(long nanoseconds)
{
    struct time time = {0, nanoseconds};
    CALL(nanosleep, &time, 0);
}

__attribute__((naked)) static void restorer(void)
{
#ifdef __x86_64__
    __asm__("mov %0, %%eax\n syscall" : : "i"(__NR_rt_sigreturn));
#else
    __asm__("mov %0, %%eax\n int $0x80" : : "i"(__NR_rt_sigreturn));
#endif
}

static inline void handle(int signal, void *handler, unsigned long flags)
{
    struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } action = {
        handler, flags | SA_SIGINFO | 0x04000000 /* SA_RESTORER */, restorer, 0};
    CALL(rt_sigaction, signal, &action, 0, 8);
}

static inline size_t length(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

static inline bool same(const char *a, const char *b, size_t n)
{
    while (n && *a == *b && *a)
        a++, b++, n--;
    return !n || *a == *b;
}

static inline size_t read_file(const char *path, char *text, size_t size)
{
    long fd = CALL(open, path, 0), n = 0, more;
    while (fd >= 0 && n < (long)size - 1 && (more = CALL(read, fd, text + n, size - 1 - n)) > 0)
        n += more;
    if (fd >= 0)
        CALL(close, fd);
    text[n] = 0;
    return n;
}

/* A line: begun, with words and `name=number`s added, and written at once to /kmsg. */
static struct { char text[256]; size_t at; } line;

static void add(const char *text)
{
    for (; *text && line.at < sizeof line.text - 1; text++)
        line.text[line.at++] = *text == '\n' ? ' ' : *text;
}

static void begin(const char *what, const char *kind)
{
    line.at = 0;
    add("<5>splitlock-matrix: ");
    add(what);
    if (kind)
        add(" "), add(kind);
}

static void number(const char *name, uint64_t value)
{
    char digits[] = "0x0000000000000000";
    for (int i = 17; i > 1; i--, value >>= 4)
        digits[i] = "0123456789abcdef"[value & 15];
    add(" "), add(name), add("="), add(digits);
}

static void end(void)
{
    long fd = CALL(open, "/kmsg", 1);
    line.text[line.at++] = '\n';
    CALL(write, fd, line.text, line.at);
    CALL(close, fd);
}

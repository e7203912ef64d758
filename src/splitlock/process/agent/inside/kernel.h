/* What the agent needs of Linux, without a C library: it must not touch the program's. x86-64 only.
 * Numbers: arch/x86/entry/syscalls/syscall_64.tbl; structures: include/uapi. */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    NR_CLOSE = 3, NR_FSTAT = 5, NR_POLL = 7, NR_MMAP = 9, NR_MPROTECT = 10, NR_MUNMAP = 11,
    NR_READ = 0, NR_RT_SIGACTION = 13, NR_RT_SIGPROCMASK = 14, NR_PREAD64 = 17, NR_PWRITE64 = 18, NR_MREMAP = 25, NR_MSYNC = 26, NR_MINCORE = 27,
    NR_MADVISE = 28, NR_SHMAT = 30, NR_SHMCTL = 31, NR_NANOSLEEP = 35, NR_GETPID = 39,
    NR_EXECVE = 59, NR_READLINK = 89, NR_GETUID = 102, NR_GETGID = 104, NR_GETEUID = 107,
    NR_GETEGID = 108, NR_PERSONALITY = 135, NR_PRCTL = 157, NR_GETTID = 186, NR_FGETXATTR = 193, NR_FUTEX = 202, NR_CLOCK_GETTIME = 228,
    NR_EXIT_GROUP = 231, NR_OPENAT = 257, NR_NEWFSTATAT = 262, NR_RT_TGSIGQUEUEINFO = 297, NR_PROCESS_VM_READV = 310,
    NR_EXECVEAT = 322, NR_PKEY_MPROTECT = 329, NR_PIDFD_OPEN = 434,
};

enum { PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4 };
enum { MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20, MAP_FIXED_NOREPLACE = 0x100000 };
enum { MADV_DONTDUMP = 16, MADV_WIPEONFORK = 18 };
enum { O_RDONLY = 0, O_RDWR = 2, O_NOCTTY = 0400, O_NONBLOCK = 04000, O_CLOEXEC = 02000000, O_NOFOLLOW = 0400000, O_PATH = 010000000 };
enum { AT_FDCWD = -100, AT_EMPTY_PATH = 0x1000, AT_EXECVE_CHECK = 0x10000 };
enum { IPC_STAT = 2, SHM_EXEC = 0100000, SEGMENT_SIZE = 48 /* in struct shmid64_ds */ };
enum { FUTEX_WAIT = 0, FUTEX_WAKE = 1, CLOCK_REALTIME = 0, CLOCK_MONOTONIC = 1 };
enum { PR_GET_NAME = 16, PR_SET_SECCOMP = 22, PR_SET_PTRACER = 0x59616d61 };
enum {
    EPERM = 1, ENOENT = 2, E2BIG = 7, ENOMEM = 12, EACCES = 13, EFAULT = 14, ENOTDIR = 20,
    ENAMETOOLONG = 36, ELOOP = 40,
};
enum { S_IFMT = 0170000, S_IFREG = 0100000, S_ISUID = 04000, S_ISGID = 02000, S_IXGRP = 010 };

#define FAILED(result) ((unsigned long)(result) > -4096UL)

static inline long call6(long nr, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long call4(long nr, long a, long b, long c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}

static inline long call3(long nr, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static inline long call2(long nr, long a, long b)
{
    return call3(nr, a, b, 0);
}

static inline long call1(long nr, long a)
{
    return call3(nr, a, 0, 0);
}

static inline uint64_t fs_base(void)
{
    uint64_t base;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    return base;
}

static inline uint64_t gs_base(void)
{
    uint64_t base;
    __asm__ volatile("rdgsbase %0" : "=r"(base));
    return base;
}

/* include/uapi/asm-generic/stat.h, arch/x86/include/uapi/asm/stat.h */
struct stat {
    uint64_t dev, ino, nlink;
    uint32_t mode, uid, gid, pad;
    uint64_t rdev;
    int64_t size, block_size, blocks;
    int64_t atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns;
    int64_t unused[3];
};

struct iovec {
    const void *base;
    uint64_t size;
};

struct timespec {
    int64_t seconds, nanoseconds;
};

/* struct kernel_sigaction as rt_sigaction(2) takes it */
struct action {
    uint64_t handler, flags, restorer, mask;
};
enum { SA_SIGINFO = 4, SA_RESTORER = 0x04000000, SA_NODEFER = 0x40000000 };
enum { AC = 1 << 18 }; /* of EFLAGS */
#define SA_RESETHAND 0x80000000UL
enum { SIG_SETMASK = 2 };
enum { SIGILL = 4, SIGTRAP = 5, SIGBUS = 7, SIGFPE = 8, SIGKILL = 9, SIGSTOP = 19, SIGSEGV = 11, SIGSYS = 31, SIGNALS = 64 };
enum { BUS_ADRALN = 1 };

struct siginfo {
    int32_t signo, error, code, unused;
    uint64_t address; /* of a fault, or of a call that a filter has refused (si_call_addr) */
    uint8_t rest[104];
};

/* struct ucontext with struct sigcontext_64 inside (arch/x86/include/uapi/asm/sigcontext.h) */
struct context {
    uint64_t flags, link, stack[3];
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp, ip, eflags;
    uint16_t cs, gs, fs, ss;
    uint64_t error, trap, old_mask, cr2, fpstate, reserved[8];
    uint64_t mask;
};

#endif

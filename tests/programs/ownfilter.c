/*
 * ownfilter errno|kill|trap: a program that locks itself in with a seccomp filter of its own.
 *
 * Its filter answers mmap, mprotect, shmat, every open and every system call number above 500 with EPERM, the end of
 * the process, or SIGSYS. Then it takes 3 split locks and a few aligned ones, writes `done`, leaves by exit_group.
 *
 * Expected: 3 split locks; exit status 0. Exit status 2: the filter could not be installed.
 */
#define _GNU_SOURCE
#include "crossing.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REFUSE(number, left) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, left, 0)

static int install(uint32_t answer)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 500, 8, 0),
        REFUSE(SYS_mmap, 7),
        REFUSE(SYS_mprotect, 6),
        REFUSE(SYS_shmat, 5),
        REFUSE(SYS_open, 4),
        REFUSE(SYS_openat, 3),
        REFUSE(SYS_openat2, 2),
        REFUSE(SYS_creat, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, answer),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    uint32_t answer = strcmp(mode, "errno") == 0  ? SECCOMP_RET_ERRNO | EPERM
                      : strcmp(mode, "kill") == 0 ? SECCOMP_RET_KILL_PROCESS
                                                  : SECCOMP_RET_TRAP;
    if (install(answer) != 0) {
        perror("ownfilter: seccomp");
        return 2;
    }
    for (int i = 0; i < 5; i++) {
        locked_xadd(ALIGNED, 1);
        locked_xchg(ALIGNED, i);
    }
    locked_xadd(CROSSING, 1);
    locked_inc(CROSSING);
    locked_xchg(CROSSING, 3);
    if (write(STDOUT_FILENO, "done\n", 5) != 5)
        return 1;
    syscall(SYS_exit_group, 0);
}

/*
 * forbids NUMBER: kills itself at one system call, and then does what makes the agent call: a split lock, executable shared memory.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((aligned(64))) static char memory[128];

int main(int argc, char **argv)
{
    int segment = shmget(IPC_PRIVATE, 4096, 0700);
    void *first = shmat(segment, NULL, 0); /* it goes with the last that has it */
    shmctl(segment, IPC_RMID, NULL);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)atoi(argv[argc - 1]), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return 2;
    __atomic_fetch_add((int *)(memory + 62), 1, __ATOMIC_SEQ_CST);
    void *second = shmat(segment, NULL, SHM_EXEC);
    _exit(first == (void *)-1 || second == (void *)-1 ? 3 : 7);
}

"""Seccomp's strict mode in programs that are traced: it is kept, though our filter is there first."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

STRICT = """
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static char bytes[128] __attribute__((aligned(64)));
static volatile sig_atomic_t got;
static void handler(int number) { got += write(1, "handler\\n", 8); }
static int confine(int by_call)
{
    char stack[300]; /* its bytes below are the program's again */
    memset(stack, 7, sizeof stack);
    int result = by_call ? syscall(SYS_seccomp, 0, 0, 0) : prctl(PR_SET_SECCOMP, 1);
    for (int i = 0; i < 300; i++) if (stack[i] != 7) return 9;
    return result;
}
static void *work(void *why) { confine(0); if (why) syscall(SYS_getpid); syscall(SYS_exit, 0); return 0; }
int main(int argc, char **argv)
{
    char way = *argv[1];
    alarm(20);
    if (way == 't') { /* a thread's mode is its own, and so is its end */
        pthread_t thread;
        pthread_create(&thread, 0, work, argv);
        pthread_join(thread, 0);
        return getpid() > 0 ? 4 : 1;
    }
    signal(SIGUSR1, handler);
    sigset_t all, none;
    sigfillset(&all); sigemptyset(&none);
    if (way == 's') { /* one that waits comes in strict mode */
        pid_t self = getpid();
        if (!fork()) { usleep(300000); kill(self, SIGUSR1); _exit(0); }
    }
    if (confine(way == 'c')) return 2;
    if (write(1, "in\\n", 3) != 3) return 3;
    if (way == 'g') syscall(SYS_getpid);
    if (way == 'i') { long result; __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory"); }
    if (way == 'l') __atomic_fetch_add((int *)(bytes + 62), 1, __ATOMIC_SEQ_CST);
    while (way == 's' && !got) __asm__ volatile("pause");
    syscall(SYS_exit, 5);
}
"""


@pytest.fixture(scope="session")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("strict")
    (place / "strict.c").write_text(STRICT)
    words = ["gcc", "-O1", "-w", "-static", "-pthread", "-o", str(place / "strict"), str(place / "strict.c")]
    subprocess.run(words, check=True)
    return place / "strict"


@pytest.mark.parametrize("way", ["prctl", "call", "signal", "getpid", "int 0x80", "thread"])
def test_it_is_as_alone(watch: Callable[..., Run], strict: Path, way: str) -> None:
    words = ["sh", "-c", f"'{strict}' {way}; echo $?"]
    alone = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    run = watch(words)
    assert run.out == alone.stdout
    assert run.report["unmonitored"] == []


def test_split_locks_are_seen_there(watch: Callable[..., Run], strict: Path) -> None:
    run = watch([strict, "lock"], "--split-lock-detect=fatal")
    assert (run.status, run.out, run.report["hits"]) == (128 + signal.SIGBUS, "in\n", 1), run.err

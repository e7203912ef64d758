"""Programs that map files of code: those that are executed are watched, those that are translated left alone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

OWN = "mapped by the program itself, past the dynamic linker"
LOCKED = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *work(void *at) {
    for (int i = 0; i < 50; i++) {
        pthread_mutex_lock(&mutex); free(malloc(9)); pthread_mutex_unlock(&mutex);
        __atomic_fetch_add((int *)at, 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}
int main(void) {
    int sum = 0; pthread_t thread;
    pthread_create(&thread, 0, work, &sum); work(&sum); pthread_join(thread, 0);
    printf("%d\\n", sum);
    return 3;
}
"""
SPLIT = "static char bytes[128] __attribute__((aligned(64)));"
LIBRARY = f"{SPLIT} int bump(void) {{ return __atomic_fetch_add((int *)(bytes + 62), 1, __ATOMIC_SEQ_CST); }}"
LOADS = """
#include <dlfcn.h>
int main(int argc, char **argv) { return ((int (*)(void))dlsym(dlopen(argv[1], RTLD_NOW), "bump"))(); }
"""


def _compiled(directory: Path, name: str, source: str, *flags: str) -> Path:
    (directory / f"{name}.c").write_text(source)
    command = ["gcc", "-O1", "-w", "-pthread", "-o", str(directory / name), str(directory / f"{name}.c"), *flags]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return directory / name


@pytest.mark.parametrize(
    ("tool", "how"),
    [("memcheck", "itself"), ("none", "itself"), ("none", "child"), ("none", "static"), ("none", "linker")],
)
def test_valgrind(watch: Callable[..., Run], tmp_path: Path, tool: str, how: str) -> None:
    """What it executes are translations: a jump of ours in the guest's text would lead to where it knows of nothing."""
    guest = _compiled(tmp_path, "guest", LOCKED, *["-static"] * (how == "static"))
    words: list[str | Path] = ["valgrind", "-q", f"--tool={tool}", *["/lib64/ld-linux-x86-64.so.2"] * (how == "linker")]
    words.append(guest)
    if how == "child":
        words = ["sh", "-c", f"{' '.join(map(str, words))}; echo $?"]
    run = watch(words)
    assert (run.status, run.out) == ((0, "100\n3\n") if how == "child" else (3, "100\n")), run.err
    assert OWN in {u["reason"] for u in run.report["unmonitored"] if u.get("image") == str(guest)}


@pytest.mark.parametrize("flag", ["-static", "-static-pie", "-pie"])
def test_a_library_that_a_program_loads_is_watched(watch: Callable[..., Run], tmp_path: Path, flag: str) -> None:
    """Static programs have no dynamic linker but in themselves."""
    library = _compiled(tmp_path, "libbump.so", LIBRARY, "-shared", "-fPIC")
    program = _compiled(tmp_path, "loads", LOADS, flag)
    run = watch([program, library], "--split-lock-detect=fatal")
    assert run.status == 128 + signal.SIGBUS, run.err
    assert sum(run.hits(library).values()) == 1


def test_a_dynamic_linker_that_is_the_program(watch: Callable[..., Run], tmp_path: Path) -> None:
    library = _compiled(tmp_path, "libbump.so", LIBRARY, "-shared", "-fPIC")
    program = _compiled(tmp_path, "loads", LOADS)
    run = watch(["/lib64/ld-linux-x86-64.so.2", program, library], "--split-lock-detect=fatal")
    assert (run.status, run.report["unmonitored"]) == (128 + signal.SIGBUS, []), run.err
    assert sum(run.hits(library).values()) == 1


MAPS = """
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char *text = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, open(argv[1], O_RDONLY), strtol(argv[2], 0, 16));
    char *plain = mmap(0, 4096, PROT_READ, MAP_PRIVATE, open(argv[1], O_RDONLY), strtol(argv[2], 0, 16));
    if (text == MAP_FAILED || plain == MAP_FAILED) return 2;
    for (int i = 0; i < 4096; i++) if (text[i] != plain[i]) return 1;
    return 0;
}
"""


def test_the_text_of_a_guest_is_as_in_its_file(watch: Callable[..., Run], tmp_path: Path) -> None:
    guest = _compiled(tmp_path, "guest", LOCKED)
    headers = subprocess.run(["readelf", "-lW", guest], capture_output=True, text=True, check=True).stdout
    offset = next(line.split()[1] for line in headers.splitlines() if "LOAD" in line and " E " in line)
    program = _compiled(tmp_path, "maps", MAPS, "-static")
    assert watch([program, guest, offset]).status == 0

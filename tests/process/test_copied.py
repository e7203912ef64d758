"""A traced program that copies its own text, patched by us, and executes the copy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

COPIES = """
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static int value;
__attribute__((noipa, aligned(64))) int bump(int *at, int by)
{
    int before = __atomic_fetch_add(at, by, 5);
    return before ^ __atomic_exchange_n(at, by + before, 5);
}
int main(int argc, char **argv)
{
    long page = (long)bump & -4096;
    char *copy = 0;
    int file = memfd_create("copy", 0);
    switch (*argv[1]) {
    case 'w': case 'p': /* all of it written, or not */
        copy = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(copy, (void *)page, 8192);
        mprotect(copy, *argv[1] == 'w' ? 8192 : 16384, PROT_READ | PROT_EXEC);
        break;
    case 's': case 'f': /* a file of memory, shared or not */
        if (write(file, (void *)page, 8192) != 8192) return 1;
        copy = mmap(0, 8192, PROT_READ | PROT_EXEC, *argv[1] == 's' ? MAP_SHARED : MAP_PRIVATE, file, 0);
    }
    int (*there)(int *, int) = (void *)(copy + ((long)bump - page));
    int first = there(&value, 1), second = bump(&value, 2);
    printf("%d %d %d\\n", first, second, value);
    return 0;
}
"""


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("copies")
    (place / "copies.c").write_text(COPIES)
    words = ["gcc", "-O1", "-w", "-static", "-o", str(place / "copies"), str(place / "copies.c")]
    subprocess.run(words, check=True)
    return place / "copies"


@pytest.mark.parametrize("way", ["written", "part", "shared", "file"])
def test_the_copy_has_its_own_bytes(watch: Callable[..., Run], copies: Path, way: str) -> None:
    alone = subprocess.run([copies, way], capture_output=True, text=True, check=True)
    run = watch([copies, way])
    assert (run.status, run.out) == (0, alone.stdout), run.err
    assert run.report["unmonitored"] != []

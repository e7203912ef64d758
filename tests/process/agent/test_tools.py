"""Programs that are machines themselves: valgrind, sanitizers, node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from process.agent.conftest import AsAlone, Compiled

LEAKS = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static int counter;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *work(void *other) {
    for (int i = 0; i < 2000; i++) {
        pthread_mutex_lock(&mutex); counter++; pthread_mutex_unlock(&mutex);
        __atomic_fetch_add((int *)other, 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}
int main(int argc, char **argv) {
    int other = 0; pthread_t threads[3];
    for (int i = 0; i < 3; i++) pthread_create(threads + i, 0, work, &other);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
    char *volatile bytes = malloc(100); bytes[argc > 1 ? 100 : 5] = 3;
    printf("%d %d\\n", counter, other);
    if (argc > 2) bytes = 0; else free(bytes);
    return 0;
}
"""


def _sanitized(directory: Path, kind: str) -> Path:
    (directory / "leaks.c").write_text(LEAKS)
    made = directory / kind
    subprocess.run(["gcc", "-g", "-pthread", f"-fsanitize={kind}", "-o", made, directory / "leaks.c"], check=True)
    return made


@pytest.mark.parametrize("kind", ["address", "thread", "leak", "undefined"])
def test_sanitizers(as_alone: AsAlone, tmp_path: Path, kind: str) -> None:
    """Its leak check too, at the end."""
    assert as_alone([_sanitized(tmp_path, kind)]).out == "6000 6000\n"


@pytest.mark.parametrize("size", [100, 1000, 3000, 60000])
def test_a_library_with_static_thread_local_data(as_alone: AsAlone, tmp_path: Path, size: int) -> None:
    """As allocators, OpenGL and sanitizers have it."""
    model = f'__thread char block[{size}] __attribute__((tls_model("initial-exec")));'
    (tmp_path / "tls.c").write_text(f"{model}\nchar *place(void) {{ return block; }}\n")
    (tmp_path / "main.c").write_text("char *place(void);\nint main(void) { return *place(); }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libtls.so", tmp_path / "tls.c"], check=True)
    paths = (tmp_path / "main", tmp_path / "main.c", tmp_path / "libtls.so")
    subprocess.run(["gcc", "-o", *paths, f"-Wl,-rpath,{tmp_path}"], check=True)
    as_alone([tmp_path / "main"])


def test_valgrind_inside(as_alone: AsAlone, compiled: Compiled) -> None:
    as_alone(["valgrind", "-q", "--tool=none", compiled("made", "-Wno-unused-result"), "unmap"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", ["--use-largepages=on", "--jitless", "--interpreted-frames-native-stack", "--no-opt"]
)
def test_node_that_copies_its_text(as_alone: AsAlone, option: str) -> None:
    script = "const a = new Int32Array(new SharedArrayBuffer(8)); for (let i = 0; i < 1e5; i++) Atomics.add(a, 0, 1);"
    as_alone(["node", option, "-e", f"{script} console.log(a[0])"], timeout=120)

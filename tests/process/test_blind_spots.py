"""What cannot be watched is in the report, and what we do about it does no harm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, spent

Program = Callable[..., Path]


def _compiled(directory: Path, name: str, source: str, *flags: str) -> Path:
    (directory / f"{name}.c").write_text(source)
    target = directory / name
    subprocess.run(["gcc", "-O2", "-o", target, directory / f"{name}.c", *flags], check=True)
    return target


def _reasons(run: Run) -> dict[str, Any]:
    return {u["reason"]: u for u in run.report["unmonitored"]}


LIBRARY = """
static int counter;
int bump(void) { return __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST); }
int bump_at(int *at) { return __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST); }
"""


def test_text_that_is_moved_gets_its_own_bytes_back(watch: Callable[..., Run], tmp_path: Path) -> None:
    library = _compiled(tmp_path, "libbump.so", LIBRARY, "-shared", "-fPIC")
    program = _compiled(
        tmp_path,
        "move",
        """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <stdint.h>
        #include <stdio.h>
        #include <sys/mman.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            int value = 0;
            void *library = dlopen(argv[1], RTLD_NOW);
            int (*bump)(int *) = (int (*)(int *))dlsym(library, "bump_at");
            for (int i = 0; i < 3; i++) bump(&value);
            uintptr_t page = (uintptr_t)bump & ~4095ul;
            char *moved = mremap((void *)page, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)0x10000000);
            if (moved == MAP_FAILED) return 1;
            int (*there)(int *) = (int (*)(int *))(moved + ((uintptr_t)bump & 4095));
            for (int i = 0; i < 3; i++) there(&value);
            printf("%d\\n", value);
            fflush(stdout);
            _exit(value != 6);  /* the library's own exit code has moved, too */
        }
        """,
    )
    run = watch([program, library])
    assert (run.status, run.out) == (0, "6\n")
    assert _reasons(run)["text moved by the program (mremap)"]["image"] == str(library)


def test_a_shared_executable_mapping_is_not_patched(watch: Callable[..., Run], tmp_path: Path) -> None:
    library = _compiled(tmp_path, "libbump.so", LIBRARY, "-shared", "-fPIC")
    before = library.read_bytes()
    program = _compiled(
        tmp_path,
        "share",
        """
        #include <fcntl.h>
        #include <sys/mman.h>
        int main(int argc, char **argv) {
            int fd = open(argv[1], O_RDWR);
            return mmap(0, 65536, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) == MAP_FAILED;
        }
        """,
    )
    run = watch([program, library])
    assert run.status == 0
    assert _reasons(run)["a shared executable mapping"]["sites"] == 2
    assert library.read_bytes() == before


def test_a_library_loaded_after_the_programs_own_filter(watch: Callable[..., Run], engine: str, tmp_path: Path) -> None:
    library = _compiled(tmp_path, "libbump.so", LIBRARY, "-shared", "-fPIC")
    program = _compiled(
        tmp_path,
        "late",
        """
        #include <dlfcn.h>
        #include <linux/filter.h>
        #include <linux/seccomp.h>
        #include <stddef.h>
        #include <sys/prctl.h>
        int main(int argc, char **argv) {
            struct sock_filter code[] = {  /* kill for madvise, which we would need and the program does not */
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 28, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
            struct sock_fprog filter = {4, code};
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) return 1;
            void *library = dlopen(argv[1], RTLD_NOW);
            int (*bump)(void) = (int (*)(void))dlsym(library, "bump");
            return bump() + bump() != 1;
        }
        """,
    )
    run = watch([program, library])
    assert run.status == 0, run.err
    if engine == "agent":  # which makes the same calls as the dynamic linker; here it had to ask, by others
        library_reasons = {u["reason"] for u in run.report["unmonitored"] if u.get("image") == str(library)}
        assert library_reasons <= {"the program's own seccomp filter forbids what patching needs"}
        run = watch([program, library])
        assert (run.status, run.report["unmonitored"]) == (0, []), run.err
        return
    assert _reasons(run)["the program's own seccomp filter forbids what patching needs"]["image"] == str(library)


def test_a_library_unloaded_and_another_at_its_place(watch: Callable[..., Run], tmp_path: Path) -> None:
    crossing = (
        LIBRARY
        + "static struct { char pad[62]; int v; } __attribute__((packed, aligned(64))) s;"
        + ("int split(void) { return bump_at((int *)&s.v); }")
    )
    one = _compiled(tmp_path, "libone.so", crossing, "-shared", "-fPIC")
    two = _compiled(tmp_path, "libtwo.so", crossing, "-shared", "-fPIC")
    program = _compiled(
        tmp_path,
        "reload",
        """
        #include <dlfcn.h>
        int main(int argc, char **argv) {
            for (int i = 0; i < 20; i++) {
                void *library = dlopen(argv[1 + i % 2], RTLD_NOW);
                ((int (*)(void))dlsym(library, "split"))();
                dlclose(library);
            }
            return 0;
        }
        """,
    )
    run = watch([program, one, two])
    assert run.status == 0, run.err
    assert (sum(run.hits(one).values()), sum(run.hits(two).values())) == (10, 10)


def test_a_32_bit_program_runs_and_is_unmonitored(watch: Callable[..., Run], tmp_path: Path) -> None:
    """Assembled by hand, so that no 32-bit compiler libraries are needed: exit(7) by int 0x80."""
    (tmp_path / "narrow.s").write_text(".globl _start\n_start: mov $1, %eax\nmov $7, %ebx\nint $0x80\n")
    program = tmp_path / "narrow"
    subprocess.run(["as", "--32", "-o", tmp_path / "narrow.o", tmp_path / "narrow.s"], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-o", program, tmp_path / "narrow.o"], check=True)
    run = watch([program])
    assert run.status == 7
    assert ("32-bit code", str(program)) in {(u["reason"], u.get("image")) for u in run.report["unmonitored"]}
    assert watch(["sh", "-c", f"{program}; echo $?"]).out == "7\n"


def test_no_memory_for_an_arena(watch: Callable[..., Run], engine: str) -> None:
    """Somewhere between too little for `true` and enough for it and us, it runs unwatched."""
    said = {"ptrace": "no memory for trampolines", "agent": "the agent could not begin"}[engine]
    for kilobytes in range(2300, 2800, 20):
        words: list[str | Path] = ["prlimit", f"--as={kilobytes * 1000}", "true"]
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            run = watch(words)
            if run.status == 0 and any(said in reason for reason in _reasons(run)):
                return
    pytest.fail("no limit was tight enough")


def test_a_deleted_program_is_watched_too(watch: Callable[..., Run], program: Program, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(program("demo").read_bytes())
    copy.chmod(0o755)
    run = watch(["sh", "-c", f"exec 3<{copy}; rm {copy}; exec /proc/self/fd/3 3"])
    assert (run.status, run.report["hits"]) == (0, 3), run.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_program_that_drops_its_privileges(watch: Callable[..., Run], engine: str, program: Program) -> None:
    copy = Path(f"/var/tmp/splitlock-demo-{os.getpid()}")
    try:
        copy.write_bytes(program("demo").read_bytes())
        copy.chmod(0o755)
        run = watch(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copy, "6"])
        if engine == "agent":  # it may not have the run's memory, which is another user's
            spent(6)
            assert (run.status, run.report["hits"]) == (0, 0), run.err
            assert any(reason.startswith("1 ran unwatched") for reason in _reasons(run))
        else:
            assert (run.status, run.report["hits"]) == (0, 6), run.err
    finally:
        copy.unlink(missing_ok=True)


EXECUTABLE = {
    "mmap": "c.mmap(None, 4096, 7, PRIVATE | ANONYMOUS, -1, 0)",
    "mmap, shared": "c.mmap(None, 4096, 7, SHARED | ANONYMOUS, -1, 0)",
    "mmap of a memfd": "c.mmap(None, 4096, 7, SHARED, memfd(), 0)",
    "mmap of /dev/zero": "c.mmap(None, 4096, 7, PRIVATE, os.open('/dev/zero', 2), 0)",
    "mprotect": "c.mprotect(c.mmap(None, 4096, 3, PRIVATE | ANONYMOUS, -1, 0), 4096, 7)",
    "mprotect, written before": "c.mprotect(written(PRIVATE | ANONYMOUS, -1), 4096, 5)",
    "mprotect, shared": "c.mprotect(c.mmap(None, 4096, 3, SHARED | ANONYMOUS, -1, 0), 4096, 7)",
    "mprotect, shared, written before": "c.mprotect(written(SHARED | ANONYMOUS, -1), 4096, 5)",
    "mprotect of a memfd": "c.mprotect(c.mmap(None, 4096, 3, SHARED, memfd(), 0), 4096, 5)",
    "mprotect of a private file, written before": "c.mprotect(written(PRIVATE, memfd()), 4096, 5)",
    "pkey_mprotect": "c.syscall(329, c.mmap(None, 4096, 3, PRIVATE | ANONYMOUS, -1, 0), 4096, 7, -1)",
    "shmat": "segment = c.shmget(0, 4096, 0o1700); c.shmat(segment, None, 0o100000); c.shmctl(segment, 0, None)",
}


@pytest.mark.parametrize("way", EXECUTABLE)
def test_each_way_to_executable_memory_is_told(watch: Callable[..., Run], way: str) -> None:
    code = f"""if True:
        import ctypes, os
        PRIVATE, SHARED, ANONYMOUS = 2, 1, 32
        c = ctypes.CDLL(None)
        for call in (c.mmap, c.shmat): call.restype = ctypes.c_void_p
        c.mmap.argtypes = [ctypes.c_void_p] + [ctypes.c_long] * 5
        c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
        c.syscall.argtypes = [ctypes.c_long, ctypes.c_void_p] + [ctypes.c_long] * 3
        c.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        def memfd():
            new = os.memfd_create("x"); os.write(new, bytes(4096)); return new
        def written(flags, fd):
            at = c.mmap(None, 4096, 3, flags, fd, 0); ctypes.memset(at, 0x90, 4096); return at
        before = open("/proc/self/maps").read().count(" r-x") + open("/proc/self/maps").read().count(" rwx")
        {EXECUTABLE[way]}
        after = open("/proc/self/maps").read().count(" r-x") + open("/proc/self/maps").read().count(" rwx")
        os._exit(after - before)
    """
    run = watch(["/usr/bin/python3", "-c", code])
    assert run.status == 1, "no executable mapping was made"
    assert sum(u.get("bytes", 0) for u in run.report["unmonitored"]) >= 4096

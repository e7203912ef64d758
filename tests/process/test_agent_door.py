"""What the agent's way in must not change: how programs start, and what is said of those that it cannot enter."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import SPLITLOCK

BIG = """
static __thread char room[SIZE] __attribute__((tls_model("initial-exec")));
char *big(int at) { return &room[at]; }
"""
SHOWS = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
extern char **environ;
char *big(int);
int main(int argc, char **argv) {
    char name[17] = "";
    prctl(PR_GET_NAME, name);
    printf("%s %s %d", name, (char *)getauxval(AT_EXECFN), *big(5) + *big(4000));
    for (int i = 0; i < argc; i++) printf(" [%s]", argv[i]);
    for (char **line = environ; *line; line++) printf(" %s", *line);
    unsigned long page = getauxval(6); /* AT_PAGESZ: the auxiliary vector is whole */
    printf(" %lu", page);
    puts("");
}
"""


class Ran(NamedTuple):
    """One run: what it wrote, its exit status, the report."""

    status: int
    out: str
    err: str
    report: dict[str, Any]

    @property
    def reasons(self) -> dict[str, str]:
        """Why something is not watched, by name."""
        return {os.path.basename(u["image"] or u.get("name") or ""): u["reason"] for u in self.report["unmonitored"]}


def _run(directory: Path, *argv: str | Path, env: dict[str, str] | None = None) -> Ran:
    report = directory / "report.json"
    command = [*SPLITLOCK, "run", "--engine", "agent", "--format", "json", "-o", str(report), "--", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
    return Ran(done.returncode, done.stdout, done.stderr, json.loads(report.read_text()))


def _compiled(directory: Path, name: str, source: str, *flags: str | Path) -> Path:
    (directory / f"{name}.c").write_text(source)
    target = directory / name
    subprocess.run(["gcc", "-O1", "-w", "-o", target, directory / f"{name}.c", *flags], check=True)
    return target


@pytest.fixture(params=[4096, 200_000])
def shows(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A program that is linked to a library with so much static TLS, as jemalloc or libtsan have; a script for it."""
    library = _compiled(tmp_path, "libbig.so", BIG.replace("SIZE", str(request.param)), "-shared", "-fPIC")
    program = _compiled(tmp_path, "shows", SHOWS, library, f"-Wl,-rpath,{tmp_path}")
    (tmp_path / "script").write_text(f"#!{program} -x\n")
    (tmp_path / "script").chmod(0o755)
    return program


@pytest.mark.parametrize("words", [["shows", "a b"], ["script", "c", ""]])
@pytest.mark.parametrize("more", [{}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}])
def test_static_tls_of_libraries_has_room(shows: Path, tmp_path: Path, words: list[str], more: dict[str, str]) -> None:
    """Nor does the program see how: its name, arguments and environment are as alone."""
    argv = [str(tmp_path / words[0]), *words[1:]]
    env = {"PATH": os.environ["PATH"], "A": "b", **more}
    alone = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    run = _run(tmp_path, *argv, env=env)
    assert (run.status, run.out, run.err) == (0, alone.stdout, alone.stderr)
    assert not run.report["unmonitored"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o755)
    program = _compiled(
        tmp_path,
        "tries",
        """
        #include <errno.h>
        #include <stdio.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            for (int i = 1; i < argc; i++) { execv(argv[i], argv); printf("%d ", errno); }
            execv((char *)8, argv);
            printf("%d\\n", errno);
        }
        """,
    )
    argv = [str(program), str(tmp_path / "fifo"), "/", "/dev/null", "/nowhere", ""]
    alone = subprocess.run(argv, capture_output=True, text=True, check=True)
    run = _run(tmp_path, *argv)
    assert run.out == alone.stdout
    assert not run.report["unmonitored"]  # none of these calls has started anything


def test_a_program_that_could_not_be_looked_at_is_named(tmp_path: Path) -> None:
    _compiled(tmp_path, "still", "int main(void) { return 7; }", "-static")
    program = _compiled(
        tmp_path,
        "poor",
        """
        #include <sys/resource.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_NOFILE, &none);
            execv(argv[1], argv + 1);
        }
        """,
    )
    run = _run(tmp_path, program, tmp_path / "still")
    assert run.status == 7
    assert run.reasons["still"] == "may not be read"


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot takes root")
def test_another_root_directory_is_entered_in_silence(tmp_path: Path) -> None:
    needed = subprocess.run(["ldd", "/bin/true"], capture_output=True, text=True, check=True).stdout.split()
    for file in ["/bin/true", *(word for word in needed if word.startswith("/"))]:
        place = tmp_path / "root" / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(Path(file).read_bytes())
        place.chmod(0o755)
    run = _run(tmp_path, "chroot", tmp_path / "root", "/bin/true")
    assert (run.status, run.err) == (0, "")
    assert "cannot be read there" in run.reasons["true"]


def test_code_made_after_a_child_of_vfork_is_looked_at(tmp_path: Path) -> None:
    program = _compiled(
        tmp_path,
        "makes",
        """
        #include <string.h>
        #include <sys/mman.h>
        #include <sys/wait.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            char *code = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (!vfork()) { execl("/bin/true", "true", (char *)0); _exit(1); }
            wait(0);
            if (!vfork()) _exit(0);
            wait(0);
            memcpy(code, "\\xf0\\xff\\x07\\xc3", 4);
            return 0;
        }
        """,
    )
    run = _run(tmp_path, program)
    held = [u for u in run.report["unmonitored"] if u["reason"] == "code made at run time (JIT)"]
    assert [u["sites"] for u in held] == [1]


def test_a_program_without_libraries_runs_alone(tmp_path: Path) -> None:
    """With thread-local data, ld.so of glibc 2.36 fails an assertion whenever it has an auditor."""
    source = """
    __thread int word = 5;
    void _start(void) { __asm__ volatile("syscall" : : "a"(231L), "D"((long)word)); for (;;); }
    """
    alone = _compiled(tmp_path, "alone", source, "-nostdlib", "-fPIE", "-pie")
    starts = _compiled(tmp_path, "starts", "#include <unistd.h>\nint main(int c, char **v) { execv(v[1], v + 1); }")
    run = _run(tmp_path, starts, alone)
    assert (run.status, run.err) == (5, "")
    assert "alone" not in run.reasons  # traced
    assert _run(tmp_path, alone).status == 5  # traced


@pytest.mark.parametrize("call", [27, 28, 186, 193, 297, 310, 434])
def test_a_filter_that_is_inherited_kills_nobody(tmp_path: Path, call: int) -> None:
    """It kills whoever makes a call that a plain program does not make: mincore, madvise, process_vm_readv ..."""
    program = _compiled(
        tmp_path,
        "filters",
        """
        #include <linux/filter.h>
        #include <linux/seccomp.h>
        #include <signal.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <sys/prctl.h>
        #include <unistd.h>
        static void handler(int number) {}
        int main(int argc, char **argv) {
            if (argc == 3) { /* in the filter */
                signal(SIGUSR1, handler);
                raise(SIGUSR1);
                char *code = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                memcpy(code, "\\xb8\\3\\0\\0\\0\\xc3", 6);
                mprotect(code, 4096, 5);
                exit(((int (*)(void))code)() + 1);
            }
            struct sock_filter lines[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(argv[1]), 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
            struct sock_fprog filter = {4, lines};
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if (prctl(PR_SET_SECCOMP, 2, &filter)) return 9;
            execl(argv[0], argv[0], argv[1], "", (char *)0);
        }
        """,
    )
    argv = [str(program), str(call)]
    alone = subprocess.run(argv, check=False)
    run = _run(tmp_path, *argv)
    assert (alone.returncode, run.status) == ((-31, 159) if call == 186 else (4, 4))  # 186: raise(3) calls gettid

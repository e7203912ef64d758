"""Things that once ended a program, or the tracer: each was found by attacking it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import iced_x86
import msgspec
import pytest
from conftest import SPLITLOCK, Run

import splitlock

Program = Callable[..., Path]

DATA_IN_A_FUNCTION = """
    .globl sum
    .type sum, @function
sum:
    .cfi_startproc
    jmp 1f
table:
    .byte 0xf0, 0xff, 0x07, 0x90, 0x90, 0x87, 0x07, 0x90, 0x90, 0xf0, 0x0f, 0xc1, 0x07, 0x90
1:  lea table(%rip), %rdx
    xor %eax, %eax
    mov $14, %ecx
2:  movzbl -1(%rdx,%rcx), %esi
    add %esi, %eax
    loop 2b
    ret
    .cfi_endproc
    .size sum, .-sum
"""
COMPUTED_GOTO = """
#include <stdio.h>
int value;
__attribute__((noinline)) static int run(const int *program, int argument) {
    static const int offsets[] = {0, &&store - &&load, &&end - &&load};
    goto *(&&load + offsets[*program]);
load:  argument = ~argument; goto *(&&load + offsets[*++program]);
store: __atomic_store_n(&value, argument, __ATOMIC_SEQ_CST); goto *(&&load + offsets[*++program]);
end:   return argument;
}
int main(void) {
    int one[] = {0, 1, 2}, two[] = {1, 0, 2}, three[] = {1, 1, 2};
    printf("%d ", run(one, 1)); printf("%d ", value);
    printf("%d ", run(two, 5)); printf("%d ", value);
    printf("%d %d\\n", run(three, 9), value);
}
"""


def test_faults_and_signals_while_stepping_out(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("faults", "-O2")])
    assert (run.status, run.out, run.report["hits"]) == (0, "ok\n", 0), run.err


def test_children_whose_parent_was_killed(watch: Callable[..., Run], program: Program) -> None:
    run = watch([program("orphans", "-O2")])
    assert (run.status, run.out) == (0, "ok\n"), run.err


def test_threads_that_come_while_others_go(watch: Callable[..., Run], program: Program) -> None:
    """A new thread's first stop before its creator's event, and another thread's end between the two.

    The new one was taken for a process whose parent had died, and then again for a thread; the space of it never ended,
    and what had been counted in it was not told.
    """
    for _ in range(3):
        run = watch([program("churn", "-O2", "-pthread")], "--split-lock-detect=fatal")
        assert (run.status, run.out, run.report["hits"]) == (0, "ok\n", 1), run.err
        assert run.report["watched"]["processes"] == 1


def test_sigcont_while_a_library_is_patched(watch: Callable[..., Run], program: Program, tmp_path: Path) -> None:
    source = tmp_path / "bump.c"
    source.write_text("int value; int bump(int *at) { return __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST); }\n")
    library = tmp_path / "libbump.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    run = watch([program("continued", "-O2"), library])
    assert (run.status, run.out) == (0, "ok\n"), run.err


def test_data_within_a_function_is_left_alone(watch: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "data.S").write_text(DATA_IN_A_FUNCTION)
    (tmp_path / "main.c").write_text('#include <stdio.h>\nint sum(void);\nint main(void) { printf("%d\\n", sum()); }\n')
    binary = tmp_path / "data"
    subprocess.run(["gcc", "-o", binary, tmp_path / "main.c", tmp_path / "data.S"], check=True)
    alone = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    run = watch([binary])
    assert (run.status, run.out) == (0, alone)
    assert any(u.get("image") == str(binary) for u in run.report["unmonitored"])


def test_labels_as_values(watch: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "goto.c").write_text(COMPUTED_GOTO)
    for flags in (["-O2"], ["-Os"], ["-O1", "-fno-pie", "-no-pie"]):
        binary = tmp_path / f"goto{len(flags)}{flags[0]}"
        subprocess.run(["gcc", *flags, "-o", binary, tmp_path / "goto.c"], check=True)
        alone = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
        assert watch([binary]).out == alone


def test_dev_zero_mapped_executable(watch: Callable[..., Run]) -> None:
    code = "import mmap, os; mmap.mmap(os.open('/dev/zero', os.O_RDWR), 4096, mmap.MAP_PRIVATE, 7)"
    run = watch(["/usr/bin/python3", "-c", code])
    assert run.status == 0, run.err
    assert any(u["reason"] == "no ELF image" for u in run.report["unmonitored"])


@pytest.mark.parametrize("name", ["a\fb", "a\x85b", "a\nb", "a b (deleted)", "a\x1b[31mred"])
def test_odd_file_names(watch: Callable[..., Run], program: Program, tmp_path: Path, name: str) -> None:
    binary = tmp_path / name
    binary.write_bytes(program("demo").read_bytes())
    binary.chmod(0o755)
    run = watch([binary, "0"])
    assert run.status == 0, run.err
    text = subprocess.run([*SPLITLOCK, "run", "-v", "--", binary, "0"], capture_output=True, check=True).stderr
    assert b"\x1b" not in text
    assert b"\f" not in text


def test_names_that_are_not_utf_8(tmp_path: Path, program: Program) -> None:
    binary = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(binary, "wb") as file:
        file.write(program("sigbus").read_bytes())
    os.chmod(binary, 0o755)  # no str for it
    for options in ["--format=text"], ["--format=json"]:
        words: list[str | bytes] = [*SPLITLOCK, "run", "--split-lock-detect=fatal", *options, "--", binary]
        done = subprocess.run(words, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"caf" in done.stderr
    report = json.loads(done.stderr[done.stderr.index(b"{\n") :])
    assert report["command"] == [os.fsencode(tmp_path).decode() + "/caf\ufffd"]


@pytest.mark.parametrize(
    ("redirection", "status"), [("2>&-", 3), (">&-", 3), ("2>/dev/full", 125), ("2>&1 >/dev/null | true", 0)]
)
def test_nobody_listens(environment: dict[str, str], program: Program, redirection: str, status: int) -> None:
    """The program runs to its end all the same; 125 says that the report was lost."""
    line = f"{' '.join(SPLITLOCK)} run -- sh -c '{program('demo')} 0 >/dev/null; exit 3' {redirection}"
    done = subprocess.run(["sh", "-c", line], env=environment, timeout=60, check=False, capture_output=True)
    assert done.returncode == status, done.stderr


def test_the_environment_is_passed_on_as_it_is(environment: dict[str, str]) -> None:
    bare = {"PATH": environment["PATH"], "XDG_CACHE_HOME": environment["XDG_CACHE_HOME"], "X": "\xff"}
    words = ["/usr/bin/env", "-0"]
    alone = subprocess.run(words, env=bare, capture_output=True, check=True).stdout
    ours = subprocess.run([*SPLITLOCK, "run", "-q", "--", *words], env=bare, capture_output=True, check=True).stdout
    assert sorted(ours.split(b"\0")) == sorted(alone.split(b"\0"))


def test_a_script_without_an_interpreter_on_path(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "no-interpreter"
    script.write_text("exit 5\n")
    script.chmod(0o755)
    env = {**environment, "PATH": f"{tmp_path}:{environment['PATH']}"}
    assert subprocess.run([*SPLITLOCK, "run", "-q", "--", script.name], env=env, check=False).returncode == 5


def test_the_old_report_stays_until_there_is_a_new_one(environment: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.write_text("old " * 1000)
    words = [*SPLITLOCK, "run", "-o", str(report), "--"]
    assert subprocess.run([*words, "no-such-program"], env=environment, check=False).returncode == 127
    assert report.read_text().startswith("old")
    assert subprocess.run([*words, "true"], env=environment, check=False).returncode == 0
    assert "old" not in report.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("mode", [0o711, 0o755], ids=["execute-only", "readable"])
def test_as_another_user(tmp_path: Path, mode: int) -> None:
    """Without privileges, and a program whose file may not even be read."""
    binary = Path(f"/var/tmp/splitlock-true-{os.getpid()}")
    cache = Path(f"/var/tmp/splitlock-cache-{os.getpid()}")
    # The system's Python with this one's packages: the virtual environment's own may lie in root's home.
    packages = [str(Path(module.__file__ or "").parents[1]) for module in (splitlock, iced_x86, msgspec)]
    splitlock_as_nobody = [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", f"XDG_CACHE_HOME={cache}",
        f"PYTHONPATH={os.pathsep.join(packages)}", "/usr/bin/python3", "-m", "splitlock",
    ]  # fmt: skip
    if subprocess.run([*splitlock_as_nobody, "--version"], check=False, capture_output=True).returncode:
        pytest.skip("this checkout or its packages are out of other users' reach")
    try:
        binary.write_bytes(Path("/bin/true").read_bytes())
        binary.chmod(mode)
        done = subprocess.run(
            [*splitlock_as_nobody, "run", "--", str(binary)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("may not be read" in done.stderr) == (mode == 0o711)
    finally:
        binary.unlink()


STARVED = """
import sys
from splitlock.process import arrivals
real, left = arrivals.Arrivals.wait, [int(sys.argv.pop(1))]
def wait(self, timeout):
    left[0] -= 1
    if left[0] == 0:
        raise MemoryError
    real(self, timeout)
arrivals.Arrivals.wait = wait
from splitlock._start import entry
entry()
"""


@pytest.mark.parametrize("wait", [1, 2, 3])
def test_no_memory_while_waiting(environment: dict[str, str], wait: int) -> None:
    """Our end would be the program's."""
    words = [sys.executable, "-c", STARVED, str(wait), "run", "--", "sh", "-c", "sleep 0.1; exit 6"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 6, done.stderr
    assert "unmonitored: nothing" in done.stderr

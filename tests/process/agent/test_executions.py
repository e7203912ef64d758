"""Each way by which a program is executed: it is watched, or told; and what the kernel refuses is neither."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import COMMAND, Run
from process.agent.conftest import AsAlone, Compiled

DEEPEST = 5  # scripts, each the next one's interpreter, that the kernel follows to a program
END = "int main(void) { return 77; }"
AUDITOR = "unsigned la_version(unsigned version) { return version; }"
Ends = dict[str, Path]
Told = Callable[..., list[tuple[str, str]]]


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """A program that ends with 77, of both kinds."""
    directory = tmp_path_factory.mktemp("ends")
    return {kind: _built(directory / kind, END, f"-{kind}") for kind in ("static", "pie")}


@pytest.fixture
def told(watch: Callable[..., Run]) -> Told:
    """What a run's report tells of what was not watched."""

    def run(argv: Sequence[str | Path], *options: str, **more: str) -> list[tuple[str, str]]:
        unwatched = watch(list(argv), *options, env=more).report["unmonitored"]
        return [(os.path.basename(u.get("image") or u["mapping"]), u["reason"]) for u in unwatched]

    return run


def _built(target: Path, text: str, *flags: str) -> Path:
    subprocess.run(["gcc", "-x", "c", "-o", target, "-", *flags], input=text, text=True, check=True)
    return target


def _script(path: Path, interpreter: str | Path) -> Path:
    path.write_text(f"#!{interpreter}\n")
    path.chmod(0o755)
    return path


def _chain(directory: Path, name: str, end: Path, depth: int, is_relative: bool) -> str:
    """So many scripts before a program, which is a file of its own, so that the report names it."""
    program = directory / f"{name}-end"
    program.write_bytes(end.read_bytes())
    program.chmod(0o755)
    for number in range(depth):
        here = f"{name}-{number - 1}" if number else program.name
        _script(directory / f"{name}-{number}", here if is_relative else directory / here)
    first = f"{name}-{depth - 1}" if depth else program.name
    return first if is_relative else str(directory / first)


@pytest.mark.parametrize("how", ["execve", "execveat", "spawn", "flagged"])
@pytest.mark.parametrize("kind", ["static", "pie"])
def test_scripts_of_scripts(
    compiled: Compiled, ends: Ends, environment: dict[str, str], tmp_path: Path, how: str, kind: str
) -> None:
    """As deep as the kernel goes, and one more: the program at the end is among what was watched."""
    cases = [(depth, is_relative) for depth in range(DEEPEST + 2) for is_relative in (True, False)]
    names = {_chain(tmp_path, f"{depth}{'ra'[not near]}", ends[kind], depth, near): depth for depth, near in cases}
    words = [*COMMAND, "run", "-v", "--engine=agent", "--", str(compiled("executes")), how, str(tmp_path), *names]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=True)
    said = dict(line.split(": ") for line in done.stdout.splitlines())
    assert said == {
        name: "ran" if depth <= DEEPEST else "Too many levels of symbolic links" for name, depth in names.items()
    }
    assert "unmonitored: nothing" in done.stderr
    ran = {f"{Path(name).name.split('-')[0]}-end" for name, depth in names.items() if depth <= DEEPEST}
    listed = {Path(line.split()[-1]).name for line in done.stderr.splitlines() if " sites " in line}
    assert ran - listed == set()


def test_a_descriptor_that_reads_nothing(compiled: Compiled, ends: Ends, told: Told) -> None:
    """O_PATH: the file is opened again to be looked at."""
    assert told([compiled("executes"), "empty", ends["static"].parent, "static", "pie"]) == []


def test_an_interpreter_that_no_descriptor_is_left_for(
    compiled: Compiled, ends: Ends, told: Told, tmp_path: Path
) -> None:
    script = _script(tmp_path / "script", ends["static"])
    assert told([compiled("executes"), "crowded", tmp_path, script]) == [("script", "may not be read")]


def test_an_interpreter_that_may_not_be_read(ends: Ends, told: Told, tmp_path: Path) -> None:
    """But executed: neither by its owner nor, without these rights, by root."""
    hidden = tmp_path / "hidden"
    hidden.write_bytes(ends["static"].read_bytes())
    hidden.chmod(0o111)
    script = _script(tmp_path / "script", hidden)
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    assert told([*without, "sh", "-c", f"{script}; true"]) == [("script", "may not be read")]


def test_what_comes_at_the_last_moment(watch: Callable[..., Run], ends: Ends, tmp_path: Path) -> None:
    """The agent finds nothing, the kernel does: here since strace says so to the agent's own look."""
    program = tmp_path / "late"
    program.write_bytes(ends["static"].read_bytes())
    program.chmod(0o755)
    lie = ["strace", "-f", "-o", tmp_path / "log", "-P", program, "-e", "inject=newfstatat:error=ENOENT"]
    run = watch([*lie, "sh", "-c", f"{program}; echo $?"])
    assert run.out == "77\n"
    assert "executed, though there was nothing to execute a moment before" in {
        u["reason"] for u in run.report["unmonitored"]
    }


def test_failed_executions_leave_no_trace(told: Told, tmp_path: Path) -> None:
    """More of them than there is room for escapes: it is given to one that comes after."""
    for number in range(200):
        (tmp_path / f"text{number}").write_text("exit 0\n")
        (tmp_path / f"text{number}").chmod(0o755)
    (tmp_path / "wide").write_bytes(b"\177ELF\1\1\1".ljust(200, b"\0"))
    (tmp_path / "wide").chmod(0o755)
    script = f"for t in {tmp_path}/text*; do $t; done; {tmp_path}/wide; true"
    assert told(["sh", "-c", script]) == []
    module = _built(tmp_path / "module.so", AUDITOR, "-shared", "-fPIC")
    assert told(["sh", "-c", f"{script}; LD_AUDIT={module} env true"]) == [("module.so", AUDITED)]


@pytest.mark.parametrize("under", [["all", "exec"], ["errno", "exec"]])
def test_a_line_that_is_nowhere(as_alone: AsAlone, compiled: Compiled, under: list[str]) -> None:
    """Under a filter of the program's own too: the kernel says so (EFAULT)."""
    assert as_alone([compiled("filtered"), *under, compiled("executes"), "nowhere", "/bin/true"]).status == errno.EFAULT


REGISTER = """
mount -t binfmt_misc none "$1" || exit 99
echo ":splitlock:M::SPLIT::$2:" >"$1/register" || exit 99
shift 2
exec "$@"
"""


def test_another_program_runs_it(ends: Ends, environment: dict[str, str], tmp_path: Path) -> None:
    """Registered for what is neither a script nor ELF (binfmt_misc), in a namespace of its own (Linux 6.7)."""
    (tmp_path / "place").mkdir()
    file = tmp_path / "file"
    file.write_text("SPLIT\n")
    file.chmod(0o755)
    words = ["unshare", "-Urm", "sh", "-c", REGISTER, "sh", str(tmp_path / "place"), str(ends["static"])]
    words += [*COMMAND, "run", "--", "sh", "-c", f"{file}; exit $?"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 77:
        assert done.returncode != 0, done.stderr
        pytest.skip(f"binfmt_misc cannot be mounted here: {done.stderr[-200:]}")
    assert "file: no program of this machine's: another runs it (binfmt_misc)" in done.stderr


@pytest.mark.parametrize("more", [[], ["-D"]])
@pytest.mark.parametrize("outer", [[], ["env", "-i", f"PATH={os.environ['PATH']}"], ["sh", "-c", 'exec "$@"', "sh"]])
def test_a_run_inside_a_run(
    compiled: Compiled, told: Told, tmp_path: Path, environment: dict[str, str], outer: list[str], more: list[str]
) -> None:
    """The inner one watches its program, and the outer one says so, and nothing else."""
    report = tmp_path / "inner"
    cache = f"XDG_CACHE_HOME={environment['XDG_CACHE_HOME']}"
    inner = [*COMMAND, "run", "--split-lock-detect=fatal", "-o", str(report), *more, "--"]
    words = [*outer, "env", cache, *inner, "sh", "-c", f"{compiled('splits')}; true"]
    found = told(words)
    assert {name for name, reason in found if reason == ANOTHERS} == {"sh"}
    assert "" not in {name for name, _ in found}
    assert "agent.so" not in {name for name, _ in found}
    text = report.read_text()
    assert "1  main  splits.c" in text
    assert "unmonitored: nothing" in text


ANOTHERS = "watched by another splitlock: what it takes is in that report"
AUDITED = "an audit module of the program's own: it and its C library are not watched"


def test_the_programs_own_audit_modules(told: Told, tmp_path: Path) -> None:
    """Of the run itself, and of a child; a variable that names none says nothing."""
    one, other = (_built(tmp_path / name, AUDITOR, "-shared", "-fPIC") for name in ("one.so", "other.so"))
    assert told(["true"], LD_AUDIT=str(one)) == [("one.so", AUDITED)]
    assert sorted(told(["env", f"LD_AUDIT={other}::{one}", "true"])) == [("one.so", AUDITED), ("other.so", AUDITED)]
    assert told(["env", "LD_AUDIT=", "true"]) == []


def test_an_audit_module_that_the_program_itself_names(ends: Ends, environment: dict[str, str], tmp_path: Path) -> None:
    """DT_AUDIT: it comes behind the agent, and is watched like a library; so is the program."""
    module = _built(tmp_path / "module.so", AUDITOR, "-shared", "-fPIC")
    program = _built(tmp_path / "program", END, f"-Wl,--audit={module}")
    words = [*COMMAND, "run", "-v", "--", str(program)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 77
    assert "unmonitored: nothing" in done.stderr
    assert {str(module), str(program)} <= set(done.stderr.split())


_LONGEST = """
import os, subprocess
low, high = 0, 1 << 22
while low + 1 < high:
    size = (low + high) // 2
    words = ["x" * 100000] * (size // 100001) + ["x" * (size % 100001)]
    try:
        subprocess.run(["/bin/true", *words], check=True, close_fds=False)
        low = size
    except OSError:
        high = size
print(low)
"""


def test_the_longest_arguments(as_alone: AsAlone) -> None:
    """As many bytes as alone, to the byte: where our lines leave no room the program is executed without them."""
    run = as_alone(["/usr/bin/python3", "-c", _LONGEST])
    assert int(run.out) > 1 << 20
    assert "no room for the agent" in str(run.report["unmonitored"])


def test_libc_itself(as_alone: AsAlone) -> None:
    """It needs nothing but ld.so, which then ends by an assertion where there is an auditor."""
    run = as_alone(["sh", "-c", "/lib/x86_64-linux-gnu/libc.so.6"])
    assert "GNU C Library" in run.out


def test_a_question_whether_one_may(as_alone: AsAlone, compiled: Compiled) -> None:
    """AT_EXECVE_CHECK (Linux 6.14) executes nothing; older kernels refuse it."""
    for target in ("/bin/true", "/nowhere"):
        run = as_alone([compiled("asks"), target])
        assert run.report["unmonitored"] == []

"""Real programs end, and say, the same under splitlock as alone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SPLITLOCK, Run

KEY = "00112233445566778899aabbccddeeff"
PYTHON = "/usr/bin/python3"

PROGRAMS = {
    # Tables in libcrypto's text that look like locked instructions: patching them breaks these two.
    "openssl whirlpool": ["openssl", "dgst", "-whirlpool", "-provider", "legacy", "-provider", "default", "/bin/bash"],
    "openssl camellia": ["openssl", "enc", "-camellia-256-cbc", "-K", KEY * 2, "-iv", KEY, "-in", "/bin/bash"],
    "openssl sha512": ["openssl", "dgst", "-sha512", "/bin/bash"],
    "openssl prime": ["openssl", "prime", "170141183460469231731687303715884105727"],
    "perl": ["perl", "-e", "my %h; $h{$_ % 97} += $_ for 1 .. 200000; print join(',', map {$h{$_}} sort keys %h)"],
    "git": ["git", "--no-pager", "log", "--stat", "-n", "20"],
    "xz threads": ["xz", "-0", "-T2", "--block-size=262144", "-c", "/bin/bash"],
    "gzip": ["gzip", "-nc", "/bin/bash"],
    "gcc": ["gcc", "-O2", "-x", "c", "-S", "-o", "-", "tests/programs/demo.c"],
    "java": ["java", "-Xshare:auto", "-cp", "build/java", "Busy"],
    "node, non-PIE with several executable segments": [
        "node", "-e", "console.log([...Array(1e5).keys()].reduce((a, b) => a + b))",
    ],
    "node workers": [
        "node", "-e",
        "const {Worker}=require('worker_threads');const s=new SharedArrayBuffer(8);const a=new Int32Array(s);"
        "let n=2;for(let i=0;i<2;i++)new Worker('const a=new Int32Array(require(\"worker_threads\").workerData);"
        "for(let i=0;i<1e5;i++)Atomics.add(a,0,1)',{eval:true,workerData:s})"
        ".on('exit',()=>{if(!--n)console.log(a[0])})",
    ],
    "multiprocessing": [
        PYTHON, "-c", "import multiprocessing as m\nwith m.Pool(2) as p: print(p.map(abs, range(-5, 5)))",
    ],
    "threads": [
        PYTHON, "-c",
        "import threading, queue; q = queue.Queue()\n"
        "ts = [threading.Thread(target=lambda: [q.put(1) for _ in range(500)]) for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; print(q.qsize())",
    ],
    "shell": [
        "bash", "-c", "x=$(ls /usr | sort | wc -l); (exit 3); echo $x $?; trap 'echo t' TERM; kill -TERM $$; exit 4",
    ],
    "abort": [PYTHON, "-c", "import os; os.abort()"],
    "sort": ["sort", "-R", "--random-source=/bin/bash", "/etc/services"],
    "ldconfig, a static program": ["/sbin/ldconfig", "-p"],
}  # fmt: skip


@pytest.fixture(scope="session")
def java_class() -> None:
    Path("build/java").mkdir(parents=True, exist_ok=True)
    source = Path("build/java/Busy.java")
    source.write_text(
        """
        public class Busy {
            public static void main(String[] args) throws Exception {
                var total = new java.util.concurrent.atomic.AtomicLong();
                var threads = new Thread[4];
                for (int i = 0; i < 4; i++) {
                    threads[i] = new Thread(() -> { for (int k = 0; k < 100000; k++) total.incrementAndGet(); });
                    threads[i].start();
                }
                for (var t : threads) t.join();
                System.out.println(total.get());
            }
        }
        """
    )
    subprocess.run(["javac", "-d", "build/java", str(source)], check=True)


@pytest.mark.usefixtures("java_class")
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_output_and_status(environment: dict[str, str], engine: str, name: str) -> None:
    command = PROGRAMS[name]
    alone = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    ours = subprocess.run(
        [*SPLITLOCK, "run", f"--engine={engine}", "-q", "--", *command],
        env=environment,
        capture_output=True,
        timeout=240,
        check=False,
    )
    status = alone.returncode if alone.returncode >= 0 else 128 - alone.returncode
    assert (ours.returncode, ours.stdout) == (status, alone.stdout)
    assert ours.stderr == alone.stderr


@pytest.mark.parametrize(
    ("engine", "suite"),
    [
        *(
            (engine, suite)
            for engine in ("ptrace", "agent")
            for suite in ("test_threading", "test_mmap", "test_ctypes")
        ),
        # by the agent all of them: agent/test_compared.py
        *(
            pytest.param("ptrace", suite, marks=pytest.mark.slow)
            for suite in ("test_signal", "test_subprocess", "test_multiprocessing_fork")
        ),
    ],
)
def test_cpythons_own_tests(environment: dict[str, str], engine: str, tmp_path: Path, suite: str) -> None:
    """Debian's CPython and its test suite: the same verdict, and as many tests run."""
    command = [PYTHON, "-m", "test", "-v", suite]
    environment = {**environment, "TMPDIR": str(tmp_path)}
    verdicts = []
    for words in (command, [*SPLITLOCK, "run", f"--engine={engine}", "-q", "--", *command]):
        done = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        said = done.stdout + done.stderr
        verdicts.append((done.returncode, sorted(re.findall(r"^Ran (\d+) tests?", said, re.M))))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][1], "no test ran"


def test_a_set_user_id_program_keeps_its_rights_under_root(
    watch: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import os

    if os.geteuid() != 0:
        pytest.skip("needs root: only a privileged tracer may keep set-user-ID")
    directory = Path("/var/tmp")  # not mounted nosuid
    source = tmp_path_factory.mktemp("suid") / "suid.c"
    source.write_text('#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("%d\\n", geteuid()); }\n')
    binary = directory / f"splitlock-suid-{os.getpid()}"
    try:
        subprocess.run(["gcc", "-o", binary, source], check=True)
        os.chown(binary, 65534, 65534)
        binary.chmod(0o4755)
        assert watch([binary]).out == "65534\n"
    finally:
        binary.unlink(missing_ok=True)


def test_no_locked_instruction_in_the_vdso() -> None:
    """The one piece of code no report lists: it is the kernel's, in every process, and holds none."""
    from splitlock.x86.locked import likely_locked

    with open("/proc/self/maps") as maps:
        line = next(line for line in maps if "[vdso]" in line)
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        code = memory.read(end - start)
    assert code[:4] == b"\x7fELF"
    assert likely_locked(code) == 0

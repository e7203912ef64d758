"""What bench.py runs: programs of half a second to two seconds natively, each a command built on first use.

The seven that count for the mean are CORE; the others are shown below them. None of them executes a split lock: on real
hardware that would stall the whole host.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
ORACLE_PLUGIN = Path(__file__).parent.parent / "tests" / "programs" / "oracle_plugin.c"

# With --quick all sizes are divided by this.
_QUICK = 10


class Unavailable(Exception):
    """Something that a workload or a peer needs is not on this machine."""


class Workshop:
    """Builds the programs and input files in `directory`, each once. `quick` makes the work a tenth as long."""

    def __init__(self, directory: Path, *, quick: bool) -> None:
        self.directory = directory
        self._quick = quick

    def size(self, full: int) -> int:
        """How much of something to do, given the full amount."""
        return max(1, full // _QUICK) if self._quick else full

    def path(self, name: str) -> Path:
        """The file `name` in the work directory."""
        return self.directory / name

    def program(self, source: str, *flags: str) -> str:
        """Path of the compiled programs/`source`. Raises Unavailable without a compiler."""
        return str(self._compile(PROGRAMS / source, self.path(Path(source).stem), "-O2", "-pthread", *flags))

    def plugin(self) -> str:
        """Path of the tests' QEMU plugin that counts split locks, compiled."""
        return str(self._compile(ORACLE_PLUGIN, self.path("oracle_plugin.so"), "-O2", "-pthread", "-shared", "-fPIC"))

    def text(self) -> str:
        """Path of 12 MB of generated text that compresses like source code; the same on every machine."""
        path = self.path("text")
        if not path.exists():
            choice = random.Random(1)
            words = ["".join(choice.choices("etaoinshrdlucmfwyp", k=choice.randint(2, 9))) for _ in range(4000)]
            weights = [1 / (rank + 1) for rank in range(len(words))]  # Zipf's law, as in natural text
            chunk = " ".join(choice.choices(words, weights, k=200_000))
            lines = chunk.split(" ")
            with path.open("w") as file:
                while file.tell() < self.size(12_000_000):
                    begin = choice.randrange(len(lines) - 1000)
                    file.write(" ".join([*lines[begin : begin + 12], *choice.choices(words, k=4)]) + "\n")
        return str(path)

    def repository(self) -> str:
        """Path of a bare git repository with 30 000 commits of one changing file."""
        path = self.path("repository.git")
        if not path.exists():
            git = _tool("git")
            subprocess.run([git, "init", "--quiet", "--bare", "--initial-branch=main", path], check=True)
            stream = []
            for number in range(self.size(30_000)):
                content = "".join(f"line {line} of {number // (line + 1)}\n" for line in range(20))
                who = f"A U Thor <author{number % 7}@example.org> {1_500_000_000 + 60 * number} +0000"
                stream.append(
                    f"commit refs/heads/main\ncommitter {who}\ndata <<END\nChange number {number}\nEND\n"
                    f"M 100644 inline file{number % 10}\ndata <<END\n{content}END\n\n"
                )
            importer = [git, "-C", str(path), "fast-import", "--quiet", "--done"]
            subprocess.run(importer, input="".join(stream) + "done\n", text=True, check=True)
        return str(path)

    def c_source(self) -> str:
        """Path of a preprocessed C file of many small functions."""
        path = self.path("input.i")
        if not path.exists():
            functions = (
                f"int f{n}(int *a, int n) {{ int s = {n}; for (int i = 0; i < n; i++) {{ if (a[i] % {n % 13 + 2} == 0) "
                f"s += a[i] * {n % 31}; else s ^= a[i] >> {n % 7}; }} return s; }}\n"
                for n in range(self.size(300))
            )
            path.write_text("".join(functions))
        return str(path)

    def java_classes(self) -> str:
        """Path of the directory with Hello.class."""
        directory = self.path("classes")
        if not directory.exists():
            _run([_tool("javac"), "-d", str(directory), str(PROGRAMS / "Hello.java")])
        return str(directory)

    def _compile(self, source: Path, target: Path, *flags: str) -> Path:
        if not target.exists():
            compiler = _tool("g++" if source.suffix == ".cpp" else "gcc")
            _run([compiler, "-o", str(target), str(source), *flags])
        return target


@dataclass(frozen=True)
class Workload:
    """`name` is for --only, `title` for the table; `command` gives the words to run, the first an absolute path."""

    name: str
    title: str
    command: Callable[[Workshop], list[str]]
    core: bool = False


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"{name} is not installed")
    return path


def _run(command: list[str]) -> None:
    """Runs a build step. Raises Unavailable with what the tool says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")


def _python(shop: Workshop) -> list[str]:
    loop = f"x = 0\nfor i in range({shop.size(12_000_000)}):\n    x = (x * 31 + i) & 0xFFFFFF\nprint(x)"
    path = "/usr/bin/python3"  # the distribution's, not one of pyenv's or a virtual environment's
    if not Path(path).exists():
        raise Unavailable(f"{path} does not exist")
    return [path, "-S", "-c", loop]


def _perl(shop: Workshop) -> list[str]:
    loop = f"my $x = 0; for (my $i = 0; $i < {shop.size(15_000_000)}; $i++) {{ $x = ($x * 31 + $i) & 0xFFFFFF }}"
    return [_tool("perl"), "-e", loop + ' print "$x\\n"']


def _node(shop: Workshop) -> list[str]:
    loop = f"let x = 0; for (let i = 0; i < {shop.size(400_000_000)}; i++) x = (x * 31 + i) & 0xFFFFFF;"
    return [_tool("node"), "-e", loop + " console.log(x)"]


def _cc1(shop: Workshop) -> list[str]:
    # The compiler proper: `gcc` itself would start it as a child, which qemu-user does not follow.
    name = subprocess.check_output([_tool("gcc"), "-print-prog-name=cc1"], text=True).strip()
    return [_tool(name), "-quiet", "-fpreprocessed", "-O2", "-o", "/dev/null", shop.c_source()]


def _mutex(*pairs: tuple[int, int]) -> Callable[[Workshop], list[str]]:
    def command(shop: Workshop) -> list[str]:
        words = [word for threads, times in pairs for word in (str(threads), str(shop.size(times)))]
        return [shop.program("mutex.c"), *words]

    return command


WORKLOADS = (
    Workload("python", "python loop", _python, core=True),
    Workload("sort", "C sort", lambda shop: [shop.program("sort.c"), str(shop.size(5_000_000))], core=True),
    Workload("xz", "xz -T1 -1", lambda shop: [_tool("xz"), "-T1", "-1", "-c", shop.text()], core=True),
    Workload("gzip", "gzip -9", lambda shop: [_tool("gzip"), "-9", "-c", shop.text()], core=True),
    Workload("mutex", "mutex, 1 + 2 threads", _mutex((1, 60_000_000), (2, 10_000_000)), core=True),
    Workload("xadd", "2 x aligned xadd", lambda shop: [shop.program("xadd.c"), str(shop.size(300_000_000))], core=True),
    Workload(
        "exceptions",
        "2 x C++ exceptions",
        lambda shop: [shop.program("exceptions.cpp"), str(shop.size(500_000))],
        core=True,
    ),
    Workload("mutex1", "mutex, 1 thread", _mutex((1, 100_000_000))),
    Workload("mutex2", "mutex, 2 threads", _mutex((2, 20_000_000))),
    Workload("perl", "perl loop", _perl),
    Workload("node", "node loop", _node),
    Workload("java", "java hello", lambda shop: [_tool("java"), "-cp", shop.java_classes(), "Hello"]),
    Workload("git", "git log", lambda shop: [_tool("git"), "--no-pager", "-C", shop.repository(), "log", "--stat"]),
    Workload("cc1", "gcc -O2 (cc1)", _cc1),
)

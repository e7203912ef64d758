"""splitlock.image.symbols against addr2line and nm of binutils, and against programs of our own."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from image.stopped import PTRACE_ATTACH, PTRACE_CONT, PTRACE_SETREGS, USER_REGS, WALL, libc, ptrace, traced, until_stop

from splitlock.image import _libdw, symbols
from splitlock.image.apart import Symbols
from splitlock.image.elf import PT_LOAD, Elf
from splitlock.image.symbols import Frame, Names, Unwinder

C_SOURCE = r"""
#include <stdio.h>
static int counter = 3;
int table[16];
static __thread long per_thread = 7;
static inline __attribute__((always_inline)) int leaf(int x)
{
    counter += x;
    return table[x & 15] * 3;
}
static inline __attribute__((always_inline)) int twig(int x)
{
    for (int i = 0; i < x; i++)
        table[i & 15] += leaf(x + i);
    return x;
}
__attribute__((noinline)) int worker(int x)
{
    per_thread++;
    return twig(x) + leaf(x + 1);
}
static __attribute__((noinline)) int hidden(int x) { return worker(x) ^ 5; }
__asm__(".data\n.balign 8\n.globl label\nlabel:\n.type behind, @object\n.size behind, 8\nbehind: .quad 1\n.text");
int main(int argc, char **argv)
{
    printf("%s %d %ld\n", argv[0], hidden(argc), per_thread);
    return 0;
}
"""

CXX_SOURCE = r"""
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>
namespace stock {
std::vector<std::string> items;
struct Box { int kept = 1; __attribute__((noinline)) ~Box() { puts("gone"); } };
template <class F> __attribute__((noinline)) int apply(F f) { Box box; return f(3) + box.kept; }
__attribute__((noinline)) int sized(const char *s)
{
    items.push_back(s);
    std::sort(items.begin(), items.end(), [](auto &a, auto &b) { return a.size() < b.size(); });
    return apply([&](int x) __attribute__((noinline)) { return x + (int)items.size(); });
}
}
int main(int, char **argv) { return stock::sized(argv[0]); }
"""


def compile_program(folder: Path, source: str, name: str, *options: str) -> str:
    """Path of the program built from `source`, C++ when its name ends in ".cc"."""
    file, stem = folder / name, folder / Path(name).stem
    file.write_text(source)
    subprocess.run(["g++" if name.endswith(".cc") else "gcc", "-g", "-O2", *options, "-o", stem, file], check=True)
    return str(stem)


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="splitlock-symbols-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # as root, debug information that lies beside a file is read by nobody
        yield {
            "pie": compile_program(folder, C_SOURCE, "pie.c", "-pie", "-fPIE"),
            "exec": compile_program(folder, C_SOURCE, "exec.c", "-no-pie"),
            "dwarf4": compile_program(folder, C_SOURCE, "dwarf4.c", "-gdwarf-4"),
            "cxx": compile_program(folder, CXX_SOURCE, "cxx.cc"),
            "folder": str(folder),
        }


def code(path: str) -> list[tuple[int, int, str]]:
    """`(address, size, raw name)` of the functions in a program's .text, as nm has them."""
    rows = (line.split() for line in subprocess.check_output(["nm", "-S", path], text=True).splitlines())
    return [(int(r[0], 16), int(r[1], 16), r[3]) for r in rows if len(r) == 4 and r[2] in "tTwW"]


def address_of(path: str, name: str) -> int:
    rows = (line.split() for line in subprocess.check_output(["nm", path], text=True).splitlines())
    return next(int(r[0], 16) for r in rows if r[-1] == name and len(r) == 3)


def addr2line(path: str, addresses: list[int]) -> list[list[tuple[str, str]]]:
    """The (function, "path:line") chain of each address, innermost first."""
    output = subprocess.run(
        ["addr2line", "-aCfi", "-e", path],
        input="\n".join(map(hex, addresses)),
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    chains: list[list[tuple[str, str]]] = []
    lines = iter(output.splitlines())
    for line in lines:
        if re.fullmatch("0x[0-9a-f]{16}", line):
            chains.append([])
        else:
            chains[-1].append((line, re.sub(r" \(discriminator \d+\)", "", next(lines))))
    return chains


@pytest.mark.parametrize("kind", ["pie", "exec", "dwarf4", "cxx"])
def test_every_address_as_addr2line_has_it(programs: dict[str, str], kind: str) -> None:
    path = programs[kind]
    # Only what has debug information: the start-up code of libc has none here.
    without = ("_start", "_dl_", "deregister", "register", "__do", "frame")
    known = [f for f in code(path) if not f[2].startswith(without)]
    addresses = [a for start, size, _ in known for a in range(start, start + size)]
    deepest = 0
    with Symbols(path) as image:
        for address, expected in zip(addresses, addr2line(path, addresses), strict=True):
            frames = image.frames(address)
            assert [f.source for f in frames] == [source for _, source in expected], hex(address)
            outer = expected[-1][0]
            for frame, (name, _) in zip(frames, expected, strict=True):
                # Without a linkage name addr2line gives the outermost function's name for what is
                # inlined into it, and at times the bare name for the outermost.
                bare = re.split("[<(]", name)[0]
                assert frame.function == name or (name == outer if frame.inlined else bare in (frame.function or ""))
            assert [f.inlined for f in frames] == [True] * (len(frames) - 1) + [False]
            deepest = max(deepest, len(frames))
    assert len(addresses) > 100
    assert deepest >= 3


def test_relative_path_is_given_as_compiled(tmp_path: Path) -> None:
    (tmp_path / "here.c").write_text(C_SOURCE)
    subprocess.run(["gcc", "-g", "-gdwarf-5", "-O2", "here.c", "-o", "here"], cwd=tmp_path, check=True)
    path = str(tmp_path / "here")
    source = Symbols(path).frames(address_of(path, "worker"))[-1].source
    assert source in ("here.c:19", f"{tmp_path}/here.c:19")


def test_demangled_names(programs: dict[str, str]) -> None:
    path = programs["cxx"]
    with Symbols(path) as image:
        names = {image.frames(start)[-1].function for start, _, name in code(path) if "stock" in name}
        assert "stock::sized(char const*)" in names
        assert "stock::Box::~Box()" in names
        assert any(n and n.startswith("int stock::apply<stock::sized(char const*)::{lambda(int)#2}>") for n in names)
        items = address_of(path, "_ZN5stock5itemsB5cxx11E")
        assert image.data(items + 8) == ("stock::items[abi:cxx11]", 8, ".bss")
    assert symbols._plain("_ZdlPv@@GLIBCXX_3.4") == "operator delete(void*)"
    assert symbols._plain("@odd") == "@odd"


@pytest.mark.parametrize("kind", ["pie", "exec"])
def test_data(programs: dict[str, str], kind: str) -> None:
    path = programs[kind]
    with Symbols(path) as image:
        assert image.data(address_of(path, "counter")) == ("counter", 0, ".data")
        assert image.data(address_of(path, "table") + 63) == ("table", 63, ".bss")
        assert image.data(address_of(path, "label")) == ("behind", 0, ".data")
        assert image.data(address_of(path, "behind") + 4) == ("behind", 4, ".data")
        worker = address_of(path, "worker")
        with open(path, "rb") as file:
            section = ELFFile(file).get_section_by_name(".text")
            assert section is not None
            text = section["sh_addr"]
        assert image.data(worker) == ("", worker - text, ".text")
        assert image.section(worker) == ".text"
        assert image.data(7) is None
        assert image.section(1 << 63) is None
        assert image.data(-1) is None
        assert image.data(1 << 64) is None
        assert image.frames(1 << 64) == []
        assert image.frames(address_of(path, "table")) == []


def test_thread_local_is_no_data(programs: dict[str, str]) -> None:
    path = programs["pie"]
    assert Symbols(path).data(address_of(path, "per_thread")) is None  # an offset, not an address


def test_stripped(programs: dict[str, str]) -> None:
    path = programs["folder"] + "/stripped"
    whole = compile_program(Path(programs["folder"]), C_SOURCE, "dynamic.c", "-rdynamic")
    subprocess.run(["strip", "-o", path, whole], check=True)
    with Symbols(path) as image:
        assert image.frames(address_of(whole, "worker") + 4) == [Frame("worker", None, False)]
        assert image.frames(address_of(whole, "hidden")) == []
        assert image.data(address_of(whole, "table") + 4) == ("table", 4, ".bss")
        name, _, section = image.data(address_of(whole, "counter")) or ("", 0, "")
        assert (name, section) == ("", ".data")


def test_debug_information_in_a_file_of_its_own(programs: dict[str, str]) -> None:
    folder, whole = programs["folder"], programs["pie"]
    debug, path = f"{folder}/apart.debug", f"{folder}/apart"
    subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    subprocess.run(["objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", whole, path], check=True)
    address = address_of(whole, "hidden")
    with Symbols(path) as image, Symbols(whole) as same:
        assert image.frames(address) == same.frames(address) != []
        assert image.data(address_of(whole, "counter")) == ("counter", 0, ".data")


@pytest.mark.parametrize("options", [["--remove-section=.debug_aranges"], ["--compress-debug-sections"]])
def test_other_layouts(programs: dict[str, str], options: list[str]) -> None:
    # Without .debug_aranges is how LLVM leaves a program.
    path = programs["folder"] + "/layout"
    subprocess.run(["objcopy", *options, programs["cxx"], path], check=True)
    with Symbols(path) as image, Symbols(programs["cxx"]) as same:
        for start, size, _ in code(path):
            assert image.frames(start + size // 2) == same.frames(start + size // 2)


def test_split_dwarf(programs: dict[str, str]) -> None:
    path = compile_program(Path(programs["folder"]), C_SOURCE, "split.c", "-gsplit-dwarf")
    start, size, _ = next(f for f in code(path) if f[2] == "worker")
    with Symbols(path) as image:
        chains = {tuple(f.function for f in image.frames(a)) for a in range(start, start + size)}
    assert ("leaf", "twig", "worker") in chains


def test_libc_with_its_debug_package() -> None:
    maps = Path("/proc/self/maps").read_text()
    path = next(line.split()[-1] for line in maps.splitlines() if line.endswith("/libc.so.6"))
    build_id = Elf(Path(path).read_bytes()).build_id() or "  "
    debug = Path(f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug")
    with debug.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        static, arena = ((table.get_symbol_by_name(n) or [])[0]["st_value"] for n in ("_int_malloc", "main_arena"))
    with Symbols(path) as image:
        last = image.frames(static + 8)[-1]
        assert last.function == "_int_malloc"
        assert re.search(r"malloc\.c:\d+$", last.source or "")
        assert image.data(arena + 16) == ("main_arena", 16, ".data")


def test_answers_are_kept_and_survive_close(programs: dict[str, str]) -> None:
    path = programs["pie"]
    address, other = address_of(path, "worker"), address_of(path, "hidden")
    image = Symbols(path)
    frames = image.frames(address)
    frames.clear()  # the caller's own list
    image.close()
    image.close()
    assert image.frames(address) != []
    assert image.frames(other) == []
    assert image.data(other) is None
    assert image.section(other) is None


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01" + bytes(57), None])
def test_no_image(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    for name in (str(path), str(tmp_path), f"{path}\0"):
        with Symbols(name) as image:
            assert (image.frames(4096), image.data(4096), image.section(4096)) == ([], None, None)


def test_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert Symbols(str(tmp_path / "pipe")).frames(0) == []


FUZZ = """
import random, sys
from splitlock.image.symbols import Names

source, path, addresses = sys.argv[1], sys.argv[2], [int(a) for a in sys.argv[3:]]
good = open(source, "rb").read()
rng = random.Random(20220)
for round in range(300):
    data = bytearray(good)
    if round % 6 == 5:
        del data[rng.randrange(1, len(data)):]
    else:
        for _ in range(rng.choice((1, 4, 16, 64, 256))):
            at = rng.randrange(64 if rng.random() < 0.2 else len(data))
            data[at] = rng.choice((0, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    with open(path, "wb") as file:
        file.write(data)
    print(round, flush=True)
    with Names(path) as image:
        for address in addresses:
            image.frames(address), image.data(address), image.section(address)
"""


@pytest.mark.parametrize("with_libdw", [True, False])
def test_malformed_files(programs: dict[str, str], tmp_path: Path, with_libdw: bool) -> None:
    path = programs["pie"]
    addresses = [a for start, size, _ in code(path) for a in (start, start + size // 2)]
    addresses += [address_of(path, name) for name in ("counter", "table", "label")]
    script = FUZZ if with_libdw else "from splitlock.image import _libdw\n_libdw._loaded.append(None)\n" + FUZZ
    # In a process of its own: should libdw crash, the last number printed says on which file.
    done = subprocess.run(
        [sys.executable, "-c", script, path, str(tmp_path / "bad"), *map(str, addresses)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.split()[-1:]) == (0, "", ["299"])


def test_symbol_table_alone(programs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libdw, "load", lambda: None)
    path = programs["cxx"]
    with Names(path) as image:
        start, _, _ = next(f for f in code(path) if f[2] == "_ZN5stock5sizedEPKc")
        assert image.frames(start + 5) == [Frame("stock::sized(char const*)", None, False)]
        assert image.frames(4) == []
        assert image.data(address_of(path, "_ZN5stock5itemsB5cxx11E") + 1) == ("stock::items[abi:cxx11]", 1, ".bss")
        assert image.section(start) == ".text"
        assert image.frames(address_of(path, "_ZN5stock5itemsB5cxx11E")) == []
    with Unwinder(os.getpid()) as unwinder:
        unwinder.refresh()
        assert unwinder.stack(os.getpid()) == []


def test_libdw_of_drgn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drgn").mkdir()
    (tmp_path / "drgn/__init__.py").touch()
    (tmp_path / "drgn.libs").mkdir()
    (tmp_path / "drgn.libs/libelf-0-1.so").touch()
    (tmp_path / "drgn.libs/libdw-0-351e48f3.196.so").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "drgn", raising=False)
    assert list(_libdw._candidates()) == ["libdw.so.1", f"{tmp_path}/drgn.libs/libdw-0-351e48f3.196.so"]
    # What is no library, and a library that is not libdw, are passed over.
    monkeypatch.setattr(
        _libdw, "_candidates", lambda: iter([f"{tmp_path}/drgn.libs/libdw-0-351e48f3.196.so", "libc.so.6"])
    )
    assert list(_libdw._libraries()) == []


def test_imports_little() -> None:
    unwanted = {"typing", "dataclasses", "mmap", "re", "importlib.util", "splitlock.image.elf", "socket", "json"}
    script = (
        f"import sys, splitlock.image.symbols, splitlock.image.apart; print(*sorted({unwanted} & set(sys.modules)))"
    )
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True, env=os.environ)
    assert loaded.strip() == ""


# Unwinding


RIP = 16

STACK_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#define OWN __attribute__((noipa))
static volatile int sink;
OWN void worker(void) { kill(getpid(), SIGSTOP); sink++; }
OWN void middle(void) { worker(); sink++; }
OWN void handler(int n) { worker(); sink += n; }
OWN void interrupted(void) { kill(getpid(), SIGUSR1); sink++; }
OWN void *thread(void *p) { while (write(1, "x", 1)) pause(); return p; }
OWN int deep(int n) { if (n == 0) worker(); else deep(n - 1); return sink++; }
int main(int argc, char **argv)
{
    pthread_t other;
    if (argc < 2) {
        middle();
    } else if (!strcmp(argv[1], "signal")) {
        signal(SIGUSR1, handler);
        interrupted();
    } else if (!strcmp(argv[1], "deep")) {
        deep(100);
    } else if (!strcmp(argv[1], "thread")) {
        pthread_create(&other, 0, thread, 0);
        write(1, "x", 1); /* no longer in clone3, where no stack begins */
        pthread_join(other, 0);
    } else if (!strcmp(argv[1], "jit")) { /* push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret */
        unsigned char *p = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(p, "\x55\x48\x89\xe5\xff\xd7\x5d\xc3", 8);
        ((void (*)(void (*)(void)))p)(middle);
    } else {
        worker();
        void (*plugin)(void (*)(void)) = dlsym(dlopen(argv[1], RTLD_NOW), "plugin");
        plugin(middle);
    }
    sink++;
    return 0;
}
"""
PLUGIN_SOURCE = "int after; void plugin(void (*f)(void)) { f(); after++; }"


def names(pid: int, stack: list[int]) -> list[str]:
    """The physical function at each program counter of a process, "?" where unknown."""
    maps = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in span.split("-"))
        maps.append((start, end, int(offset, 16), path[0] if path else ""))
    found = []
    for pc in stack:
        low, _, before, file = next((m for m in maps if m[0] <= pc < m[1]), (pc, 0, 0, ""))
        if not file.startswith("/"):
            found.append("?")
            continue
        at = pc - low + before
        loads = [s for s in Elf(Path(file).read_bytes()).segments if s.type == PT_LOAD]
        vaddr = next(at - s.offset + s.vaddr for s in loads if s.offset <= at < s.offset + s.filesz)
        with Symbols(file) as image:
            found.append((image.frames(vaddr) or [Frame("?", None, False)])[-1].function or "?")
    return found


def has_chain(found: list[str], *chain: str) -> bool:
    return any(found[i : i + len(chain)] == list(chain) for i in range(len(found)))


@pytest.fixture(scope="module", params=["-pie", "-no-pie"])
def stopper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_program(tmp_path_factory.mktemp("stopper"), STACK_SOURCE, "stopper.c", request.param, "-pthread")


def test_stack_of_nested_calls(stopper: str) -> None:
    with traced(stopper) as pid, Unwinder(pid) as unwinder:
        stack = unwinder.stack(pid)
        found = names(pid, stack)
        assert found[1:4] == ["worker", "middle", "main"], found
        assert "kill" in found[0]
        assert unwinder.stack(pid, 2) == stack[:2]
        assert unwinder.stack(pid, 0) == []
        assert unwinder.stack(pid) == stack


def test_stack_from_the_rip_that_the_caller_set(stopper: str) -> None:
    with traced(stopper) as pid, Unwinder(pid) as unwinder:
        registers = (ctypes.c_uint64 * USER_REGS)()
        libc.ptrace(_libdw.PTRACE_GETREGS, pid, None, registers)
        assert unwinder.stack(pid)[0] == registers[RIP]
        registers[RIP] += 1
        ptrace(PTRACE_SETREGS, pid, registers)
        assert unwinder.stack(pid)[0] == registers[RIP]
        registers[RIP] = 0  # a call of a null pointer
        ptrace(PTRACE_SETREGS, pid, registers)
        assert unwinder.stack(pid)[0] == 0


def test_stack_limit(stopper: str) -> None:
    with traced(stopper, "deep") as pid, Unwinder(pid) as unwinder:
        assert len(unwinder.stack(pid)) == 32
        found = names(pid, unwinder.stack(pid, 1000))
        assert found[1:3] == ["worker", "deep"]
        assert "main" in found


def test_stack_through_a_signal_handler(stopper: str) -> None:
    with traced(stopper, "signal") as pid, Unwinder(pid) as unwinder:
        found = names(pid, unwinder.stack(pid))
        assert has_chain(found, "worker", "handler"), found
        assert has_chain(found, "interrupted", "main"), found


def test_stack_through_code_without_an_image(stopper: str) -> None:
    with traced(stopper, "jit") as pid, Unwinder(pid) as unwinder:
        found = names(pid, unwinder.stack(pid))
        assert has_chain(found, "worker", "middle", "?", "main"), found


def test_refresh_after_dlopen(stopper: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.c").write_text(PLUGIN_SOURCE)
    plugin = str(tmp_path / "plugin.so")
    subprocess.run(["gcc", "-g", "-O2", "-shared", "-fPIC", "-o", plugin, tmp_path / "plugin.c"], check=True)
    with traced(stopper, plugin) as pid, Unwinder(pid) as unwinder:
        assert has_chain(names(pid, unwinder.stack(pid)), "worker", "main")
        ptrace(PTRACE_CONT, pid)
        until_stop(pid, signal.SIGSTOP)
        unwinder.refresh()
        found = names(pid, unwinder.stack(pid))
        assert has_chain(found, "worker", "middle", "plugin", "main"), found


def test_stack_of_another_thread(stopper: str) -> None:
    with subprocess.Popen([stopper, "thread"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"xx"  # from both
        tids = sorted(map(int, os.listdir(f"/proc/{process.pid}/task")))
        try:
            for tid in tids:
                ptrace(PTRACE_ATTACH, tid)
                until_stop(tid, signal.SIGSTOP)
            with Unwinder(process.pid) as unwinder:
                assert "main" in names(process.pid, unwinder.stack(tids[0]))
                found = names(process.pid, unwinder.stack(tids[1]))
                assert "thread" in found, found
                assert "main" not in found
        finally:
            process.kill()
            for tid in reversed(tids):  # the first thread's end is not told before the others' are taken note of
                os.waitpid(tid, WALL)


def test_thread_that_is_not_ours(stopper: str) -> None:
    # libdw itself would abort() at the second attempt.
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with Unwinder(process.pid) as unwinder:
                assert unwinder.stack(process.pid) == []
                assert unwinder.stack(process.pid) == []
        finally:
            process.kill()
    with Unwinder(process.pid) as unwinder:  # no longer there
        unwinder.refresh()
        assert unwinder.stack(process.pid) == []


def test_exception_within_a_callback() -> None:
    def body(handle: int) -> bool:
        raise KeyboardInterrupt

    def call(callback: object) -> None:
        assert callable(callback)
        callback(1, 2)

    with pytest.raises(KeyboardInterrupt):
        _libdw.visit(call, body)

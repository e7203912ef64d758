"""Each cause for which an address cannot be explained, brought about for real, has its own words and a way on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from splitlock.host.explain import reasons
from splitlock.host.explain.based import Based
from splitlock.host.explain.line import explain
from splitlock.host.explain.space import Saved
from splitlock.host.log.heard import Log
from splitlock.host.log.sources import Kmsg
from splitlock.host.root import Root
from splitlock.host.watch import Watch
from splitlock.image import child
from splitlock.linux.log import Line, lines
from splitlock.report.watch import Event

_PROGRAM = """
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
__attribute__((noinline)) void bump(int *counter) { __asm__ volatile("lock addl $1, %0" : "+m"(*counter)); }
int main(int argc, char **argv)
{
    static int counter;
    bump(&counter);
    unsigned char *jit = mmap((void *)0x7700000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(jit, "\\xf0\\xff\\x07\\xc3", 4); /* lock inc dword ptr [rdi]; ret */
    mprotect(jit, 4096, PROT_READ | PROT_EXEC);
    if (argc > 1)
        prctl(PR_SET_NAME, argv[1]);
    write(1, "x", 1);
    char order;
    while (read(0, &order, 1) == 1) {
        if (order != 'u')
            mprotect(jit, 4096, PROT_READ | PROT_WRITE);
        if (order == 'j') {
            memset(jit, 0x90, 4096);
            mprotect(jit, 4096, PROT_READ | PROT_EXEC);
        } else if (order == 'u')
            munmap(jit, 4096);
        write(1, "x", 1);
    }
    return 0;
}
"""
_JIT = 0x7700000000
_REMEDY = (
    "`|sudo|root|damaged|save them|Name another file|look inside|as the kernel wrote it|no memory|made at run time"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="it takes root")


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:  # pytest's own are closed to other users
        place = Path(made)
        place.chmod(0o755)
        (place / "mark.c").write_text(_PROGRAM)
        subprocess.run(["gcc", "-O2", "-g", "-static-pie", "-o", "mark", "mark.c"], cwd=place, check=True)
        yield place / "mark"


def _at(program: Path) -> int:
    listing = subprocess.run(
        ["objdump", "-d", "--disassemble=bump", program], capture_output=True, text=True, check=True
    )
    return int(next(line for line in listing.stdout.splitlines() if "lock" in line).split(":")[0], 16)


@contextmanager
def running(*words: object, user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The program, from when it has done all that."""
    with subprocess.Popen(
        [*map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=user,
        group=user,
        extra_groups=[] if user else None,
    ) as made:
        assert made.stdout
        assert made.stdout.read(1) == b"x"
        yield made
        made.kill()


def order(process: subprocess.Popen[bytes], what: bytes) -> None:
    """Have it do something to its JIT code."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(what)
    process.stdin.flush()
    assert process.stdout.read(1) == b"x"


def line(pid: int, address: int, comm: str = "mark", *, exception: str = "#AC", stamp: str = "") -> Line:
    """What the kernel would print."""
    word = "split_lock" if exception == "#AC" else "bus_lock"
    text = f"{stamp}x86/split lock detection: {exception}: {comm}/{pid} took a {word} trap at address: {address:#x}"
    (made,) = lines(text)
    return made


def base(pid: int, name: str = "/mark") -> int:
    """Where the program's first page is."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return int(next(line for line in maps if name in line).split("-")[0], 16)


def bumped(event: Event) -> bool:
    """Is it the program's own place, with everything that is known of it?"""
    place = event.place
    assert place
    return (
        place.function,
        bool(place.source and place.source.endswith("mark.c:7")),
        place.instruction is not None,
    ) == (
        "bump",
        True,
        True,
    )


def said(event: Event, cause: str, *words: str) -> None:
    """The cause, its own words, and something to do."""
    assert event.cause == cause, event.note
    for word in words:
        assert word in event.note, event.note


def test_gone() -> None:
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    event = explain(line(pid, 0x401000, "game"))
    said(
        event,
        "gone",
        "This line holds an address only",
        f"game/{pid} is gone",
        "sudo splitlock watch",
        "--maps",
        "--image",
    )
    assert "sysctl kernel.split_lock_mitigate=0" in event.note
    assert "split_lock_mitigate" not in explain(line(pid, 0x401000, exception="#DB")).note  # it is for #AC alone


@needs_root
def test_in_a_container_numbers_are_others(program: Path) -> None:
    """The task is there, by another number than the log's, which is the host's."""
    code = (
        "from splitlock.host.explain.line import explain; from splitlock.linux.log import lines; "
        "print(explain(next(lines('#AC: game/4194304 took a split_lock trap at address: 0x401000'))).note)"
    )
    words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "this is a container" in done.stdout
    assert "run it on the host" in done.stdout


def test_another_machines_log() -> None:
    said(
        explain(line(os.getpid(), 0x401000), live=False),
        "gone",
        "splitlock watch --maps SAVED",
        "--image FILE --base ADDR",
    )


def test_the_number_is_another_tasks(program: Path) -> None:
    with running(program) as process:
        said(explain(line(process.pid, 0x10, "game")), "another-task", "is called mark now", f"--pid {process.pid}")


def test_the_number_was_used_again(program: Path) -> None:
    """The same name: but the line is older than the task."""
    with running(program) as process:
        before = f"[{time.clock_gettime(time.CLOCK_MONOTONIC) - 60:12.6f}] "
        event = explain(line(process.pid, base(process.pid) + _at(program), stamp=before))
        said(event, "another-task", "began after this line was written")
        assert event.place is None
        now = f"[{time.clock_gettime(time.CLOCK_MONOTONIC) + 60:12.6f}] "
        assert bumped(explain(line(process.pid, base(process.pid) + _at(program), stamp=now)))


def test_what_dev_kmsg_says_of_the_time(program: Path, tmp_path: Path) -> None:
    """The stamp is a field of the record there. A file stands in for the device."""
    with running(program) as process:
        address = base(process.pid) + _at(program)
        now = int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)
        words = f"x86/split lock detection: #AC: mark/{process.pid} took a split_lock trap at address: {address:#x}"
        for ago, cause in ((-60_000_000, None), (60_000_000, "another-task")):
            (tmp_path / "kmsg").write_text(f"4,0,{now - ago},-;{words}\n")
            (event,) = Watch(Log(Kmsg(str(tmp_path / "kmsg"), follow=False))).events()
            assert event.cause == cause, event


def test_a_renamed_task(program: Path) -> None:
    """The line has the name that the program's file has; and, by the time stamp, any other."""
    with running(program, "worker") as process:
        address = base(process.pid) + _at(program)
        now = f"[{time.clock_gettime(time.CLOCK_MONOTONIC) + 60:12.6f}] "
        for made in (line(process.pid, address), line(process.pid, address, "other", stamp=now)):
            event = explain(made)
            assert bumped(event)
            assert event.note == f"task {process.pid} is called worker now"
            assert event.cause is None


@needs_root
def test_anothers_memory(program: Path, tmp_path: Path) -> None:
    """Without rights: in a process of a user who has none."""
    with running(program) as process:
        address = base(process.pid) + _at(program)
        told = _as_nobody(f"explain(line({process.pid}, {address}))")
        assert told.startswith("not-permitted|")
        assert "CAP_SYS_PTRACE" in told
        assert "sudo" in told
    with running(program, user=65534) as process:
        assert bumped(explain(line(process.pid, base(process.pid) + _at(program))))


def _as_nobody(call: str) -> str:
    """Cause and note of an event, in a process without any rights; what it imports is imported before."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            child.reader()  # started before, too: its interpreter may lie where nobody is let in
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            event = eval(call)
            os.write(writing, f"{event.cause}|{event.note}|{event.place}".encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        told = file.read().decode()
    os.waitpid(pid, 0)
    return told


def test_no_memory() -> None:
    if Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_text() == "kthreadd\n" and os.geteuid() == 0:
        said(explain(line(2, 0x401000, "kthreadd")), "no-memory", "a thread of the kernel's")
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not waited for: a zombie
        said(explain(line(process.pid, 0x401000, "true")), "no-memory", "not waited for")


def test_jit_code(program: Path, tmp_path: Path) -> None:
    """Its bytes are there, then others, then it is data, then nothing; a copy of the maps has no bytes at all."""
    with running(program) as process:
        event = explain(line(process.pid, _JIT))
        assert event.place
        assert (event.place.instruction, event.cause, event.note) == ("lock inc dword ptr [rdi]", None, "")
        saved = Saved(Path(f"/proc/{process.pid}/maps").read_bytes())
        said(explain(line(1, _JIT), saved), "not-saved", "its bytes were not saved", "--pid P")
        for what, cause, words in (
            (b"j", "other-code", "other code lies there now"), (b"d", "not-executable", "not to be run"),
            (b"u", "not-mapped", "nothing is mapped"),
        ):  # fmt: skip
            order(process, what)
            said(explain(line(process.pid, _JIT)), cause, words, "sudo splitlock watch")
    said(explain(line(1, 0x10), saved), "not-mapped", "when the maps were saved")


def test_a_deleted_file(program: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mark"
    shutil.copy(program, copy)
    with running(copy) as process:
        address = base(process.pid) + _at(program)
        copy.unlink()
        maps = Path(f"/proc/{process.pid}/maps").read_bytes()
        event = explain(line(process.pid, address))
        if os.geteuid() == 0:
            assert bumped(event)
        else:
            said(event, "deleted", "was deleted")
        shutil.copy("/bin/true", copy)  # an update
        said(explain(line(1, address), Saved(maps)), "deleted", "had been deleted", "--image")


@needs_root
def test_a_deleted_file_without_rights(program: Path) -> None:
    """The user's own program: its memory is read, its file is not to be had; an exact copy of it is as good."""
    copy = program.parent / "copy" / "mark"
    copy.parent.mkdir()
    shutil.copy(program, copy)
    with running(copy, user=65534) as process:
        address = base(process.pid) + _at(program)
        copy.unlink()
        told = _as_nobody(f"explain(line({process.pid}, {address}))")
        assert told.startswith("deleted|")
        assert "lock add dword ptr [rdi]" in told
        shutil.copy("/bin/true", copy)
        assert _as_nobody(f"explain(line({process.pid}, {address}))").startswith("deleted|")
        shutil.copy(program, copy)
        assert "function='bump'" in _as_nobody(f"explain(line({process.pid}, {address}))")


@needs_root
@pytest.mark.parametrize("how", ["chroot", "namespace", "other namespace, same name"])
def test_other_roots(program: Path, tmp_path: Path, how: str) -> None:
    """In a chroot the path is ours, in another mount namespace it is theirs: what is mapped is found all the same."""
    jail = tmp_path / "jail"
    (jail / "opt").mkdir(parents=True)
    shutil.copy(program, jail / "opt" / "mark")
    if how == "chroot":
        words = ["chroot", str(jail), "/opt/mark"]
    else:
        other = "/opt" if how == "namespace" else "/usr/bin"
        name = "mark" if how == "namespace" else "true"  # here that is another program
        if name == "true":
            shutil.copy(program, jail / "opt" / "true")
        words = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"mkdir -p {other}; mount --bind {jail}/opt {other}; exec {other}/{name}",
        ]
    with running(*words) as process:
        comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
        path = os.readlink(f"/proc/{process.pid}/exe")
        address = base(process.pid, path) + _at(program)
        event = explain(line(process.pid, address, comm))
        assert bumped(event), event
        with pytest.MonkeyPatch.context() as patch:
            _no_map_files(patch)
            event = explain(line(process.pid, address, comm))
            assert bumped(event), event


def _no_map_files(patch: pytest.MonkeyPatch) -> None:
    """As it is without CAP_CHECKPOINT_RESTORE."""
    from splitlock.host.explain import space
    from splitlock.linux import below

    class Below:
        path = staticmethod(below.path)

        @staticmethod
        def opened(directory: str, name: str) -> int:
            if "map_files" in name:
                raise PermissionError(1, "Operation not permitted")
            return below.opened(directory, name)

    patch.setattr(space, "below", Below)


@needs_root
def test_a_link_in_anothers_root_leads_nowhere(program: Path, tmp_path: Path) -> None:
    """The process is another user's, and so is what its root holds: the file of that name is a link to ours."""
    jail = tmp_path / "jail"
    (jail / "opt").mkdir(parents=True)
    shutil.copy(program, jail / "opt" / "mark")
    (tmp_path / "secret").write_text("outside")
    with running("chroot", jail, "/opt/mark") as process, pytest.MonkeyPatch.context() as patch:
        _no_map_files(patch)
        address = base(process.pid) + _at(program)
        (jail / "opt" / "mark").unlink()
        (jail / "opt" / "mark").symlink_to(tmp_path / "secret")
        event = explain(line(process.pid, address))
        said(event, "deleted")
        (jail / "opt" / "mark").unlink()
        os.mkfifo(jail / "opt" / "mark")
        said(explain(line(process.pid, address)), "deleted")


def test_files_of_a_saved_copy(program: Path, tmp_path: Path) -> None:
    with running(program) as process:
        maps = Path(f"/proc/{process.pid}/maps").read_bytes()
        address = base(process.pid) + _at(program)
    made = line(1, address)
    assert bumped(explain(made, Saved(maps)))
    empty = Root(str(tmp_path))
    said(explain(made, Saved(maps, empty)), "no-file", f"{program} is not below {tmp_path}", "--image")
    moved = maps.replace(bytes(program), b"/none/mark")
    said(explain(made, Saved(moved)), "no-file", "/none/mark is not here", "--root DIR")
    place = tmp_path / str(program).lstrip("/")
    place.parent.mkdir(parents=True)
    shutil.copy(program, place)
    assert bumped(explain(made, Saved(maps, empty)))
    place.write_text("a script")
    said(explain(made, Saved(maps, empty)), "no-image", "neither ELF nor PE")
    place.unlink()
    place.symlink_to(place.name)
    said(explain(made, Saved(maps, empty)), "no-file", "its links go round")
    place.unlink()
    os.mkfifo(place)
    said(explain(made, Saved(maps, empty)), "no-file", "not a regular file")
    other = maps.replace(bytes(program), b"/bin/ls")
    said(explain(made, Saved(other)), "other-code", "another version of it ran")


@needs_root
def test_debug_information_is_looked_for_where_the_file_is(program: Path, tmp_path: Path) -> None:
    """A stripped program below --root, and in a chroot; what it was stripped of lies there too, by its build ID."""
    jail = tmp_path / "jail"
    (jail / "opt").mkdir(parents=True)
    shutil.copy(program, jail / "opt" / "mark")
    notes = subprocess.check_output(["readelf", "-n", program], text=True)
    build = re.search(r"Build ID: ([0-9a-f]+)", notes)
    assert build
    place = jail / "usr/lib/debug/.build-id" / build[1][:2] / f"{build[1][2:]}.debug"
    place.parent.mkdir(parents=True)
    subprocess.run(["objcopy", "--only-keep-debug", program, place], check=True)
    subprocess.run(["strip", jail / "opt" / "mark"], check=True)
    with running("chroot", jail, "/opt/mark") as process:
        made = line(process.pid, base(process.pid) + _at(program))
        assert bumped(explain(made))
        maps = Path(f"/proc/{process.pid}/maps").read_bytes().replace(bytes(jail), b"")
        assert bumped(explain(made, Saved(maps, Root(str(jail)))))
        outside = Path(f"/proc/{process.pid}/maps").read_bytes()
        assert bytes(jail) in outside
        assert bumped(explain(made, Saved(outside, Root(str(jail)))))
        place.unlink()
        place.symlink_to(program)  # it leads out
        shutil.copy(jail / "opt" / "mark", jail / "opt" / "other")
        event = explain(made, Saved(maps.replace(b"/opt/mark", b"/opt/other"), Root(str(jail))))
        assert event.place
        assert (event.place.source, event.place.instruction is not None) == (None, True)


def test_addresses_that_no_program_has(program: Path) -> None:
    with running(program) as process:
        for space in (None, Saved(Path(f"/proc/{process.pid}/maps").read_bytes()), Based(str(program), 0)):
            event = explain(line(process.pid, 0xFFFFFFFF81000000), space)
            said(event, "kernel-address", "kernel's half", "runs a virtual machine")
            assert event.guest
            event = explain(line(process.pid, 0xFFFFFFFF81000000, exception="#DB"), space)
            said(event, "kernel-address", "damaged, or made up")
            assert not event.guest
            said(explain(line(process.pid, 0x0100000000000000), space), "no-address", "damaged, or made up")
    shortened = next(lines("x86/split lock detection: #AC: game/12 took a split_lock trap at address:"))
    said(explain(shortened), "no-address", "taken out of the line")


def test_an_image_and_a_base(program: Path) -> None:
    at = _at(program)
    assert bumped(explain(line(1, 0x555555554000 + at), Based(str(program), 0x555555554000)))
    beyond = explain(line(1, 0x7FFFF7000000), Based(str(program), 0x555555554000))
    said(beyond, "outside", f"outside of {program}", "0x555555554000", "--base")
    said(explain(line(1, 0x7FFFF7000000 + at), Based(str(program))), "outside", "can lie anywhere", "bump", "--base")
    said(
        explain(line(1, 0x555555554000), Based(str(program), 0x555555554000)),
        "other-code",
        "another version",
        "build ID",
    )


def test_in_the_middle_of_an_instruction(tmp_path: Path) -> None:
    """45 87 11 is xchg [r9], r10d; from its second byte on it would be xchg [rcx], edx, where no fault can be."""
    source = '.globl f; .type f, @function; f: .byte 0x45, 0x87, 0x11; ret; .size f, .-f; .section .note.GNU-stack,""'
    image = tmp_path / "f.so"
    subprocess.run(
        ["gcc", "-shared", "-nostdlib", "-x", "assembler", "-o", image, "-"], input=source.encode(), check=True
    )
    listed = subprocess.run(["nm", image], capture_output=True, text=True, check=True).stdout
    at = next(int(row.split()[0], 16) for row in listed.splitlines() if row.endswith(" f"))
    right = explain(line(1, 0x10000 + at), Based(str(image), 0x10000))
    assert right.place
    assert right.place.instruction == "xchg [r9], r10d"
    said(explain(line(1, 0x10000 + at + 1), Based(str(image), 0x10000)), "other-code", "another version")


def test_the_texts_are_all_different() -> None:
    """No two causes share a sentence, and each names what to do, or that nothing can be."""
    error = OSError(13, "Permission denied")
    made = [
        reasons.no_address(), reasons.alone(), reasons.gone("a", 1, slowed=True, file=None), reasons.no_memory(1),
        reasons.another("a", 1, "b", younger=True), reasons.another("a", 1, "a", younger=True),
        reasons.not_permitted("a", 1),
        reasons.another("a", 1, "b", younger=False), reasons.memory_unreadable(1), reasons.not_mapped(1),
        reasons.kernel_address("a", guest=True), reasons.kernel_address("a", guest=False), reasons.no_code_address(),
        reasons.not_mapped_then(), reasons.not_executable("f"), reasons.not_saved(), reasons.no_file("f", error, None),
        reasons.no_file("f", FileNotFoundError(2, ""), "/r"), reasons.no_file("f", FileNotFoundError(2, ""), None),
        reasons.no_file_of("f", error, 1), reasons.no_image("f"), reasons.deleted("f", 1), reasons.deleted_then("f"),
        reasons.replaced("f", 1), reasons.other_code("f", 1), reasons.other_code(None, 1), reasons.other_file("f"),
        reasons.other_bytes("f", None), reasons.outside("f", 1, 2), reasons.movable("f", "123", 0, []),
        reasons.movable("f", "123", 1, ["a"]), reasons.movable("f", "123", 2, ["a"]),
    ]  # fmt: skip
    assert len({reason.note for reason in made}) == len(made)
    for reason in made:
        assert re.search(_REMEDY, reason.note)

"""Structures that C and Python share: where Python reads is where the compiler writes.

The oracle is the compiler's DWARF, for all fields there are; of Linux's structures and numbers, its own headers.
entry.S's numbers are held by the agent's layout.c when it is compiled.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from process.agent.layouts import Header, of_format

from splitlock.process.agent import arena, image, memory, named, operands
from splitlock.process.agent.judged import AGENT

INSIDE = Path(AGENT).parent


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Header:
    directory = tmp_path_factory.mktemp("ours")
    return Header(directory, '#include "agent.h"', include=INSIDE)


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("seen_image", memory._IMAGE), ("escape", memory._ESCAPE), ("task", memory._TASK), ("module", memory._MODULE),
        ("find", memory._FIND), ("image", image._HEAD), ("patch", image._PATCH), ("copy", image._PAIR),
        ("hook", image._HOOK), ("text", image._TEXT), ("operand", operands.PACKED),
    ],
)  # fmt: skip
def test_a_structure_as_a_whole(ours: Header, name: str, format_: struct.Struct) -> None:
    assert of_format(format_.format) == [(f.offset, f.size) for f in ours.fields[name]], ours.fields[name]
    assert format_.size == ours.sizes[name]


def test_the_run(ours: Header) -> None:
    head = [(f.offset, f.size) for f in ours.fields["run"] if f.offset < ours.offset("run", "cache")]
    assert of_format(memory._HEAD.format) == head
    places = {
        "cache": memory._CACHE_AT, "images": memory._IMAGES_AT, "escapes": memory._ESCAPES_AT,
        "counters": memory._COUNTERS_AT, "sampled": memory._COUNTERS_AT + 8 * memory.COUNTERS,
        "tasks": memory._TASKS_AT, "samples": memory._SAMPLES_AT, "finds": memory._FINDS_AT, "asked": memory.ASKED_AT,
        "reported": memory._REPORTED_AT, "supervisor": memory._SUPERVISOR_AT, "doors": memory._DOORS_AT,
    }  # fmt: skip
    assert places == {name: ours.offset("run", name) for name in places}
    assert ours.sizes["run"] == memory.SIZE


def test_a_door(ours: Header) -> None:
    assert of_format(memory._DOOR.format) == [(f.offset, f.size) for f in ours.fields["door"]]
    assert ours.offset("door", "tracer") == memory.TRACER_AT
    assert ours.offset("door", "state") == 0
    assert memory.door_at(2) == ours.offset("run", "doors") + 2 * ours.sizes["door"]


def test_the_directories(ours: Header) -> None:
    made = memory.Memory.new("/own", "/of all", 1, memory.Limits(0, 0, 0, 0))
    made.spare("/apart")
    for name, place in {"cache": b"/own", "spare": b"/apart", "shared": b"/of all"}.items():
        at = ours.offset("run", name)
        assert bytes(made._view[at : at + 10]).rstrip(b"\0") == place


def test_a_total_is_the_counter_of_its_name(ours: Header, tmp_path: Path) -> None:
    """Each by itself: the field that is 7 gives the total that is 7."""
    raw = bytearray(memory.SIZE)
    names = {"counters": "counters_used", "tasks": "tasks_used", "samples": "samples_used", "finds": "finds_used"}
    for number, name in enumerate(memory.Totals._fields, 7):
        raw[ours.offset("run", names.get(name, name))] = number
    made = memory.Memory.new(str(tmp_path), "", 1, memory.Limits(0, 0, 0, 0))
    made._view[:] = raw
    assert list(made.totals) == list(range(7, 7 + len(memory.Totals._fields)))


def test_a_sample(ours: Header) -> None:
    head = [(f.offset, f.size) for f in ours.fields["sample"] if f.offset < memory._SAMPLE.size]
    assert of_format(memory._SAMPLE.format) == head
    assert ours.offset("sample", "modules") == memory._SAMPLE.size
    assert ours.offset("sample", "stack") == memory._SAMPLE.size + memory.MODULES * memory._MODULE.size
    assert ours.sizes["sample"] == memory._SAMPLE_SIZE


def test_the_private_page(ours: Header) -> None:
    offsets = [ours.offset("page", name) for name in ("hit", "call", "leave")]
    assert offsets == [arena._HIT, arena._CALL, arena._LEAVE]
    assert ours.sizes["page"] <= arena.PAGE == ours.enumerators["PAGE"]


def test_numbers_that_both_have(ours: Header, tmp_path: Path) -> None:
    known = ours.enumerators
    states = ("FREE", "CLAIMED", "ASKED", "READY", "NOTHING", "REFUSED")
    how = (known["NO_REGISTER"], known["BY_IP"], known["BY_FS"], known["BY_GS"], known["IS_NARROW_ADDRESS"])
    assert how == (operands._NONE, operands._IP, operands._FS, operands._GS, operands._NARROW)
    limits = ("IMAGES", "SAMPLES", "TASKS", "ESCAPES", "MODULES", "COUNTERS", "FINDS")
    assert [getattr(memory, name) for name in states + limits] == [known[name] for name in states + limits]
    assert (known["NAME"], known["CACHE"], known["STACK"]) == (memory._NAME, memory._CACHE, memory._STACK)
    assert list(memory.MODES.values()) == [known[name] for name in ("WARN", "FATAL", "RATELIMIT", "MITIGATE")]
    assert (known["RUN_VERSION"], known["IMAGE_VERSION"]) == (memory.VERSION, named.VERSION)
    source = '#include <stdio.h>\n#include "run.h"\nint main(void) {printf("%llu %llu", RUN_MAGIC, IMAGE_MAGIC);}'
    (tmp_path / "magic.c").write_text(source)
    subprocess.run(["gcc", f"-I{INSIDE}", "-o", tmp_path / "magic", tmp_path / "magic.c"], check=True)
    said = subprocess.run([tmp_path / "magic"], capture_output=True, text=True, check=True).stdout
    assert said == f"{memory.MAGIC} {image.MAGIC}"


def test_a_reason_says_what_its_number_means(ours: Header) -> None:
    """By a word of each that no other has; the enumerator's name is C's."""
    words = {
        "NO_ANSWER": "in time", "NOT_OPENED": "cannot be opened", "NOT_PLACED": "no room", "CHANGED": "another than",
        "NOT_MAPPED": "cannot be mapped", "NO_COUNTERS": "too many", "IS_STATIC": "static", "IS_NARROW": "32-bit",
        "IS_SECURE": "set-user-ID", "OTHER_LINKER": "glibc", "NOT_READ": "read", "IS_MOVED": "mremap",
        "IS_FILTERED": "filter", "IS_SHARED": "shared", "IS_OWN": "mapped by the program",
        "IS_EDITED": "writable", "IS_HIDDEN": "another root",
        "IS_ALONE": "no library", "IS_DISPATCHED": "prctl 59", "NO_HEADERS": "headers lie",
        "IS_UNKNOWN": "binfmt_misc", "IS_SUDDEN": "a moment before", "IS_ANOTHERS": "another splitlock",
        "IS_AUDITOR": "audit module", "NO_ROOM": "no room for the agent",
    }  # fmt: skip
    for name, word in words.items():
        assert word in memory.REASONS[ours.enumerators[name]]
    assert len(memory.REASONS) == max(ours.enumerators[name] for name in words) + 1


def test_no_number_is_there_for_nothing() -> None:
    sources = "\n".join(file.read_text() for file in INSIDE.glob("*.[chS]"))
    names = re.findall(r"\b([A-Z][A-Z0-9_]+) = ", (INSIDE / "kernel.h").read_text())
    assert len(names) > 80
    assert [name for name in names if len(re.findall(rf"\b{name}\b", sources)) < 2] == []


# -- Linux's own ----------------------------------------------------------------------------------

HEADERS = """#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
"""


def _printed(directory: Path, body: str) -> dict[str, int]:
    (directory / "theirs.c").write_text(HEADERS + "int main(void) {\n" + body + "}\n")
    subprocess.run(["gcc", "-w", "-o", directory / "theirs", directory / "theirs.c"], check=True)
    said = subprocess.run([directory / "theirs"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


def test_numbers_of_the_kernels(ours: Header, tmp_path: Path) -> None:
    text = (INSIDE / "kernel.h").read_text()
    names = [name for name in ours.enumerators if name in text and not name.startswith("NR_")]
    body = "".join(f'#ifdef {n}\nprintf("{n} %lld\\n", (long long)({n}));\n#endif\n' for n in names)
    calls = [name for name in ours.enumerators if name.startswith("NR_")]
    body += "".join(f'printf("{n} %d\\n", SYS_{n[3:].lower()});\n' for n in calls)
    theirs = _printed(tmp_path, body)
    assert theirs.items() <= ours.enumerators.items(), theirs.items() - ours.enumerators.items()
    assert len(calls) > 30
    assert len(theirs) > len(calls) + 40


def test_structures_of_the_kernels(ours: Header, tmp_path: Path) -> None:
    registers = [
        "R8",
        "R9",
        "R10",
        "R11",
        "R12",
        "R13",
        "R14",
        "R15",
        "RDI",
        "RSI",
        "RBP",
        "RBX",
        "RDX",
        "RAX",
        "RCX",
        "RSP",
        "RIP",
        "EFL",
    ]
    same = {f"context {r.lower() if r[1].isdigit() else 'eflags' if r == 'EFL' else r[1:].lower()}":
            f"offsetof(ucontext_t, uc_mcontext.gregs[REG_{r}])" for r in registers}  # fmt: skip
    same |= {
        "context mask": "offsetof(ucontext_t, uc_sigmask)",
        "context cr2": "offsetof(ucontext_t, uc_mcontext.gregs[REG_CR2])",
    }
    status = ["dev", "ino", "nlink", "mode", "uid", "gid", "rdev", "size"]
    same |= {f"stat {name}": f"offsetof(struct stat, st_{name})" for name in status}
    same |= {f"stat {t}": f"offsetof(struct stat, st_{t[0]}tim)" for t in ("mtime", "ctime")}
    same |= {f"stat {t}_ns": f"offsetof(struct stat, st_{t[0]}tim.tv_nsec)" for t in ("mtime", "ctime")}
    same |= {
        f"siginfo {ours_}": f"offsetof(siginfo_t, si_{name})"
        for ours_, name in (("signo", "signo"), ("error", "errno"), ("code", "code"))
    }
    elf = {
        "type": "type",
        "machine": "machine",
        "entry": "entry",
        "segments": "phoff",
        "segment_size": "phentsize",
        "segment_count": "phnum",
    }
    same |= {f"elf {ours_}": f"offsetof(Elf64_Ehdr, e_{name})" for ours_, name in elf.items()}
    segment = {
        "type": "type",
        "flags": "flags",
        "offset": "offset",
        "address": "vaddr",
        "file_size": "filesz",
        "memory_size": "memsz",
    }
    same |= {f"segment {ours_}": f"offsetof(Elf64_Phdr, p_{name})" for ours_, name in segment.items()}
    sizes = {
        "stat": "struct stat",
        "siginfo": "siginfo_t",
        "timespec": "struct timespec",
        "elf": "Elf64_Ehdr",
        "segment": "Elf64_Phdr",
    }
    body = "".join(f'printf("{key.replace(" ", "|")} %zu\\n", {what});\n' for key, what in same.items())
    body += "".join(f'printf("sizeof|{name} %zu\\n", sizeof({what}));\n' for name, what in sizes.items())
    body += 'printf("nattch %zu\\n", offsetof(struct shmid_ds, shm_nattch));\n'
    theirs = _printed(tmp_path, body)
    assert theirs.pop("nattch") == memory._NATTCH_AT
    for key, value in theirs.items():
        name, field = key.split("|")
        assert value == (ours.sizes[field] if name == "sizeof" else ours.offset(name, field)), key

#!/usr/bin/env python3
"""What do the commands of "The article, live" print? Writes docs/article-live.md from scripts/article.md.

    scripts/article.py            the page, anew (minutes)
    scripts/article.py 4 7        sections 4 and 7 alone, to standard output

Needs what `make setup` installs, and Debian's sources of packages (kernels, VirtualBox); uses build/kernels and
build/guests as the tests do. In article.md a code block's line `$ COMMAND` is run in build/article, `guest# COMMAND`
inside a booted Debian. The lines `| PATTERN` below it say what is shown of the output: lines that match, or with
`| FIRST .. LAST` all from one to the other (`$`: to the end); what lies between becomes `...`. A pattern that finds
nothing is an error, so the page cannot claim what did not happen.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from guard import ways  # noqa: E402
from guard.guests import gate_payload  # noqa: E402
from guard.machine import QEMU, Machine, kernel  # noqa: E402
from guest import boots, images  # noqa: E402
from modules import debian, virtualbox  # noqa: E402

SOURCE = ROOT / "scripts" / "article.md"
PAGE = ROOT / "docs" / "article-live.md"
PLACE = ROOT / "build" / "article"
COMMAND = re.compile(r" {4}(\$|guest#) (.*)")
_PATTERN = re.compile(r" {4}\| (.*)")
_SECONDS = 300  # for one command
_LIMITED = """\
#include <linux/module.h>
#include <asm/tlbflush.h>
static int __init limited_init(void) { cr4_update_irqsoff(0, 0); return 0; }
module_init(limited_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("needs what the kernel exports to KVM alone");
"""
_DEMO = "demo 30\necho demo: exit status $?"
_NESTED = """
for each in ccp irqbypass kvm kvm-amd; do insmod /$each.ko; done
mount -t tracefs trace /sys/kernel/tracing
echo 1 >/sys/kernel/tracing/events/kvm/kvm_inj_exception/enable
nested 1 unready
head -n 14 /sys/kernel/tracing/trace
"""


def prepare() -> None:
    """Put what the commands name into PLACE."""
    PLACE.mkdir(parents=True, exist_ok=True)
    debian_6_1 = kernel("amd64")
    tree = debian.unpacked("amd64") / "lib" / "modules" / debian_6_1.release
    package = debian.packages("amd64")["amd64"]
    for name, path in (("vmlinux", debian_6_1.image), ("modules", tree), ("linux-image-6.1.deb", package)):
        (PLACE / name).unlink(missing_ok=True)
        (PLACE / name).symlink_to(path)
    programs = ROOT / "tests" / "guest" / "programs"
    sources = ROOT / "tests" / "programs"
    plain = [f"-ffile-prefix-map={path}=." for path in (Path.cwd(), sources)]  # the page names no place of this machine
    demo = boots.compiled(sources / "demo.c", PLACE / "demo", *plain)
    boots.initramfs(PLACE / "demo.cpio", _DEMO, {"demo": demo})
    with tempfile.TemporaryDirectory(dir=PLACE) as name:
        directory = Path(name)
        module = boots.module(programs / "splitmod.c", directory, ways.headers("amd64"))
        boots.initramfs(PLACE / "splitmod.cpio", "insmod /splitmod.ko count=1", {module.name: module})
        nested = boots.compiled(programs / "nested.c", directory / "nested")
        inside = {path: debian.modules("amd64")[path] for path in ("ccp.ko", "irqbypass.ko", "kvm.ko", "kvm-amd.ko")}
        boots.initramfs(PLACE / "nested.cpio", _NESTED, {"nested": nested, **inside})
        start = directory / "run"
        start.write_text("#!/bin/sh\n/payload/demo\n")
        images.disk(PLACE / "clean.img")
        images.disk(PLACE / "cloud.img", {"run": start, "demo": demo})
        if not (PLACE / "vboxdrv.ko").exists():
            (directory / "virtualbox").mkdir()
            unpacked = virtualbox.packages(directory / "virtualbox")
            (unpacked / "usr/lib/virtualbox/VMMR0.r0").rename(PLACE / "VMMR0.r0")
            virtualbox.driver(unpacked, ways.headers("amd64")).rename(PLACE / "vboxdrv.ko")
    new_headers()


def new_headers() -> None:
    """Debian sid's kernel: what it exports, and what building a module for it takes."""
    done = subprocess.run(
        [ROOT / "scripts" / "new-headers.sh", debian.STORE], stdout=subprocess.PIPE, text=True, check=True
    )
    headers = PLACE / "headers-7.2"
    headers.unlink(missing_ok=True)
    headers.symlink_to(done.stdout.strip())
    limited = PLACE / "limited"
    limited.mkdir(exist_ok=True)
    (limited / "limited.c").write_text(_LIMITED)
    (limited / "Makefile").write_text("obj-m := limited.o\n")


def here(command: str) -> str:
    """What a command prints on this machine, to standard output and standard error."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1",
                   "COLUMNS": "80"}  # fmt: skip
    done = subprocess.run(
        command, shell=True, cwd=PLACE, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=_SECONDS, check=False,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


class Inside:
    """A guest that boots when the first command is run in it."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends
        self._machine: Machine | None = None

    def __call__(self, command: str) -> str:
        """What a command prints there."""
        if self._machine is None:
            directory = Path(self._ends.enter_context(tempfile.TemporaryDirectory()))
            guest = Machine(kernel("amd64"), gate_payload(directory, "amd64"))
            self._machine = self._ends.enter_context(guest)
            guest.put("/usr/local/bin/splitlock", b'#!/bin/sh\nexec python3 -m splitlock "$@"\n')
            guest.run("chmod +x /usr/local/bin/splitlock").ok()
        return self._machine.run(f"exec 2>&1; {command}").out


def trim(output: str, patterns: Sequence[str]) -> list[str]:
    """The lines to show of a command's output. Ends the script where a pattern finds nothing."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    kept: set[int] = set()
    for pattern in patterns:
        first, ranged, last = pattern.partition(" .. ")
        starts = [number for number, line in enumerate(lines) if re.search(first, line)]
        if starts and ranged:
            tail = range(starts[0], len(lines))
            ends = [len(lines) - 1] if last == "$" else [number for number in tail if re.search(last, lines[number])]
            starts = list(range(starts[0], ends[0] + 1)) if ends else []
        if not starts:
            raise SystemExit(f"{output}\n{SOURCE.name}: `{pattern}` is nowhere in the above")
        kept.update(starts)
    shown = []
    for number, line in enumerate(lines):
        if number in kept:
            shown.append(line)
        elif not shown or shown[-1] != "...":
            shown.append("...")
    return shown


def filled(source: str, run: Callable[[str, str], str]) -> Iterator[str]:
    """The lines of the page; `run(prompt, command)` says what a command prints."""
    lines = source.splitlines()
    for number, line in enumerate(lines):
        if _PATTERN.fullmatch(line):
            continue
        yield line.replace("MACHINE", made_on())
        if found := COMMAND.fullmatch(line):
            patterns = []
            for below in lines[number + 1 :]:
                if not (pattern := _PATTERN.fullmatch(below)):
                    break
                patterns.append(pattern[1])
            print(found[2], file=sys.stderr)
            yield from (f"    {shown}" for shown in trim(run(found[1], found[2]), patterns))


@cache
def made_on() -> str:
    """The system and QEMU, for people."""
    qemu = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()[3]
    return f"{platform.freedesktop_os_release()['PRETTY_NAME']} with QEMU {qemu}"


def main() -> None:
    """The page, or sections of it."""
    source = SOURCE.read_text()
    if wanted := sys.argv[1:]:
        parts = re.split(r"(?m)^(?=## )", source)
        source = "".join(part for part in parts if part[3:].partition(".")[0] in wanted)
    prepare()
    with ExitStack() as ends:
        inside = Inside(ends)
        page = "\n".join(filled(source, lambda prompt, command: (here if prompt == "$" else inside)(command))) + "\n"
    if wanted:
        print(page, end="")
    else:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()

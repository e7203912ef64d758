#!/usr/bin/env python3
"""What do the commands of "The article, live" print? Writes docs/article-live.md from scripts/article.md.

    scripts/article.py            the page, anew (fifteen machines boot in Bochs, others in QEMU)
    scripts/article.py 4 7        sections 4 and 7 alone, to standard output

Needs what `make setup` installs, the emulator (`make emulator`), and Debian's sources of packages (kernels,
VirtualBox); uses build/kernels and build/guests as the tests do. In article.md a code block's line `$ COMMAND` is run
in build/article, which article_files.py fills. The lines `| PATTERN` below it say what is shown of the output: lines
that match, or with `| FIRST .. LAST` all from one to the other (`$`: to the end); what lies between becomes `...`. A
pattern that finds nothing is an error, so the page cannot claim what did not happen.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from article_files import PLACE, ROOT, emulator, prepare

SOURCE = ROOT / "scripts" / "article.md"
PAGE = ROOT / "docs" / "article-live.md"
COMMAND = re.compile(r" {4}\$ (.*)")
_PATTERN = re.compile(r" {4}\| (.*)")
_QEMU = "qemu-system-x86_64"
_SECONDS = 900  # for one command


def here(command: str) -> str:
    """What a command prints on this machine, to standard output and standard error."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1",
                   "COLUMNS": "80"}  # fmt: skip
    done = subprocess.run(
        command, shell=True, cwd=PLACE, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=_SECONDS, check=False,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")


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


def filled(source: str, run: Callable[[str], str]) -> Iterator[str]:
    """The lines of the page; `run(command)` says what a command prints."""
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
            print(found[1], file=sys.stderr)
            yield from (f"    {shown}" for shown in trim(run(found[1]), patterns))


@cache
def made_on() -> str:
    """The system and the emulators, for people."""
    qemu = subprocess.run([_QEMU, "--version"], capture_output=True, text=True, check=True).stdout.split()[3]
    return f"{platform.freedesktop_os_release()['PRETTY_NAME']} with Bochs {emulator.find().version} and QEMU {qemu}"


def main() -> None:
    """The page, or sections of it."""
    source = SOURCE.read_text()
    if wanted := sys.argv[1:]:
        parts = re.split(r"(?m)^(?=## )", source)
        source = "".join(part for part in parts if part[3:].partition(".")[0] in wanted)
    prepare()
    page = "\n".join(filled(source, here)) + "\n"
    if wanted:
        print(page, end="")
    else:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()

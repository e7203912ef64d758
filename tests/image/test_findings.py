"""What fuzzing and reading the code found in the readers, each as a small program: none of it may come back.

Files that make a reader do the same work over and over, or keep the same bytes again and again, are some 100 KB to 8 MB
large; before they were refused they took from five seconds to hours, or gigabytes.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from fuzz.archives import COMPRESSORS
from fuzz.images import (
    ALLOC,
    ET_EXEC,
    EXEC,
    PROGBITS,
    RELA,
    STRTAB,
    SYMTAB,
    Section,
    elf,
    linked,
    message,
    module,
    signed,
    symbols,
)
from fuzz.mutate import put
from fuzz.targets import clock, limited

from splitlock._errors import ImageError, SplitlockError
from splitlock.image.compressed import expand, stream
from splitlock.image.module import KernelImage
from splitlock.image.package import Failure, Member, members
from splitlock.image.signature import read_signature
from splitlock.modules.audit import Job, audit
from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.verdict import judge
from splitlock.report.scan import Json

CODE = ALLOC | EXEC
SIXTY_FOUR_K = (b"\x90" * 62 + b"\x0f\x30") * 1024
RETURN = Section(".text", PROGBITS, b"\x0f\x30\xc3", CODE)


def sections_in_one_place() -> bytes:
    return elf(
        [Section(".text", PROGBITS, SIXTY_FOUR_K, CODE), *[Section(".t", PROGBITS, flags=CODE, like=".text")] * 1000]
    )


def modinfo_in_one_place() -> bytes:
    info = Section(".modinfo", PROGBITS, b"a=b\0" * 16384, ALLOC)
    return elf([info, *[Section(".modinfo", PROGBITS, flags=ALLOC, like=".modinfo")] * 3000])


def segments_in_one_place() -> bytes:
    raw = elf([Section(".text", PROGBITS, SIXTY_FOUR_K, CODE)], ET_EXEC, headers=False)
    header, rest = put(raw[64:120], 32, 65536, 8), raw[120:]
    raw = raw[:64] + rest
    return put(put(raw, 32, len(raw), 8), 56, 60000, 2) + header * 60000


def much_modinfo() -> bytes:
    return elf([Section(".modinfo", PROGBITS, b"a=\0" * 3_000_000)])


def names_in_one_place() -> bytes:
    """Imports that each begin a byte later in a name of a megabyte: 4 GB of names."""
    table = bytes(24) + b"".join(struct.pack("<IBBHQQ", place, 16, 0, 0, 0, 0) for place in range(1, 4000))
    return elf([Section(".symtab", SYMTAB, table, link=2), Section(".strtab", STRTAB, b"\0" + b"n" * (1 << 20))])


def exports_in_one_place() -> bytes:
    """A linked kernel's exports, in the same way."""
    strings = Section("__ksymtab_strings", PROGBITS, b"n" * (1 << 20), ALLOC)
    count = 20000
    rough = elf([strings, Section("__ksymtab", PROGBITS, bytes(12 * count), ALLOC)], ET_EXEC)
    table = int.from_bytes(rough[40:48], "little") + 64
    start, at = (int.from_bytes(rough[place + 24 : place + 32], "little") for place in (table, table + 64))
    entries = b"".join(struct.pack("<iii", 0, start + n - (at + 12 * n + 4), 0) for n in range(count))
    return elf([strings, Section("__ksymtab", PROGBITS, entries, ALLOC)], ET_EXEC)


def section_names_in_one_place() -> bytes:
    """Of a linked file, so that the reader of call frames looks at all of them."""
    raw = elf([RETURN, Section("names", PROGBITS, b"n" * (1 << 20)), *[Section("x", PROGBITS)] * 15000], ET_EXEC)
    return put(raw, 62, 2, 2)


def names_everywhere() -> bytes:
    """Wherever one looks among the names of sections, .modinfo is there; no section is called so."""
    names = Section("names", PROGBITS, b"\0" * 64 + b".modinfo\0" * 100_000)
    return put(elf([RETURN, names, *[Section("x", PROGBITS)] * 15000]), 62, 2, 2)


def many_of_one_symbol() -> bytes:
    table = bytes(24) + struct.pack("<IBBHQQ", 1, 16, 0, 0, 0, 0) * 20000
    relocations = struct.pack("<QIIq", 10, 2, 1, 0) * 20000
    return elf(
        [RETURN, Section(".rela.text", RELA, relocations, 0, 3, 1), Section(".symtab", SYMTAB, table, link=4),
         Section(".strtab", STRTAB, b"\0pv_ops\0")]
    )  # fmt: skip


def functions_in_many_sections() -> bytes:
    table = bytes(24) + struct.pack("<IBBHQQ", 1, 2, 0, 1, 0, 2) * 100_000
    return elf(
        [
            *[RETURN] * 3000,
            Section(".symtab", SYMTAB, table, link=3002),
            Section(".strtab", STRTAB, b"\0f\0"),
        ]
    )


def many_exports_and_strings() -> bytes:
    strings = [Section("__ksymtab_strings", PROGBITS, b"a\0")] * 3000
    return elf([*strings, Section("__ksymtab", PROGBITS, bytes(12 * 100_000))], ET_EXEC)


def nothing_but_findings() -> bytes:
    return elf([Section(".text", PROGBITS, b"\x0f\x30" * 500_000, CODE)])


def findings_in_many_sections() -> bytes:
    return elf([Section(".text", PROGBITS, b"\x0f\x30" * 50_000, CODE)] * 5)


def nothing_but_candidates() -> bytes:
    return elf([Section(".text", PROGBITS, b"\x0f\x30" * 4_500_000, CODE)])


def version_of_5000_digits() -> bytes:
    """Which Python does not convert."""
    table, strings = symbols(("pv_ops", 16, 0, 0, 0))
    info = Section(".modinfo", PROGBITS, b"vermagic=" + b"9" * 5000 + b".1\0")
    return elf([info, Section(".symtab", SYMTAB, table, link=3), Section(".strtab", STRTAB, strings)])


def hash_of_a_megabyte() -> bytes:
    """An object identifier whose one number has seven million bits."""
    return signed(module(), message(algorithm=b"\xff" * (1 << 20)))


OVERLAP = "the sections are larger than the file (truncated, or they overlap)"
TOO_MANY = "more than 100,000 privileged instructions: this is no kernel code"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (sections_in_one_place, OVERLAP),
        (modinfo_in_one_place, OVERLAP),
        (segments_in_one_place, "segments overlap in the file"),
        (much_modinfo, ".modinfo of 9,000,000 bytes"),
        (names_in_one_place, "names of symbols overlap"),
        (exports_in_one_place, "names of symbols overlap"),
        (section_names_in_one_place, ""),
        (names_everywhere, ""),
        (many_of_one_symbol, ""),
        (functions_in_many_sections, ""),
        (many_exports_and_strings, ""),
        (nothing_but_findings, TOO_MANY),
        (findings_in_many_sections, TOO_MANY),
        (nothing_but_candidates, "more than 4,000,000 places that may be privileged instructions: this is no code"),
        (version_of_5000_digits, ""),
        (hash_of_a_megabyte, ""),
    ],
)
def test_little_time_and_memory(make: Callable[[], bytes], says: str) -> None:
    raw = make()
    said = ""
    with limited(256 << 20), clock():
        try:
            result = scan(raw, text=True)
            for policy in ("refuse", "disable", "kernel-2020"):
                judge(result, load(policy), raw)
        except ImageError as error:
            said = str(error)
    assert said == says


def test_section_names_in_errors() -> None:
    """What names a section in an error is one line."""
    raw = elf([Section("a\nb\x1b", PROGBITS, b"\x90", CODE | 0x800)])
    with pytest.raises(ImageError, match=r"executable section a\?b\? is compressed"):
        _ = KernelImage(raw).code


def test_places_in_the_unwind_table_come_once() -> None:
    raw = linked(orc=True)
    image = KernelImage(raw)
    table = image.header(image.named(b".orc_unwind_ip")[0])[4]
    first, second = struct.unpack_from("<ii", raw, table)
    assert second - first == 34
    (code,) = KernelImage(put(raw, table + 4, first - 4, 4)).code  # both name the first place
    assert code.starts == [0, 49]


def test_a_hash_that_is_none() -> None:
    assert read_signature(signed(b"", message(algorithm=b"\xff" * 65))) == ("Debian Secure Boot CA", "32:A0:28:7F", "")


def test_names_that_reach_beyond_the_signer() -> None:
    """What was remembered of one message was given for another that differs in nothing but the rest of the name."""
    first = bytes.fromhex(
        "307506092a864886f70d010702a06830660201013106300406000500300b06092a864886f70d010701314c304a020101"
        "3026301e310b3009060355040613025859310f300d0603550403061b0c5d303b7807020432a0287f3004060005003088"
        "06032a8648041000000000000000000000000000000000"
    )
    for raw in (first, first[:-1] + b"x"):
        assert read_signature(signed(b"", raw)) == ("", "", "")


def test_errors_of_reading_are_not_called_damage() -> None:
    def read(_size: int) -> bytes:
        raise OSError(5, "Input/output error")

    for kind in ("gzip", "xz", "zstd", "bzip2", "lz4"):
        with pytest.raises(OSError, match="Input/output error") as caught:
            list(stream(read, kind))
        assert not isinstance(caught.value, ImageError)


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd", "bzip2"])
def test_streams_with_nothing_in_them(kind: str) -> None:
    """A megabyte of them took seconds."""
    for part in (b"", b"x"):
        with pytest.raises(ImageError, match="streams with next to nothing in them"):
            expand(COMPRESSORS[kind](part) * 2000, 1 << 20)
    assert len(expand(COMPRESSORS[kind](bytes(2000)) * 2000, 1 << 24)) == 4_000_000


class Cluster(Executor):
    """One that does nothing."""

    def submit(self, _function: Any, /, *_arguments: Any, **_named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(RuntimeError("no route to host"))
        return future


def test_names_that_are_no_text_of_files_that_were_not_scanned(tmp_path: Path) -> None:
    """The report can be written."""
    (tmp_path / os.fsdecode(b"caf\xe9.ko")).write_bytes(module())
    (batch,) = audit([str(tmp_path)], Job(load("refuse"), frozenset()), executor=Cluster())
    (file,) = batch.files
    assert (file.path, file.reason) == (f"{tmp_path}/caf\\xe9.ko", "not scanned: RuntimeError: no route to host")
    assert b"caf\\\\xe9.ko" in Json("refuse").file(file)


@pytest.mark.parametrize("text", ["rule = " + "9" * 5000, "rule = " + "[" * 3000])
def test_policies_that_python_cannot_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SplitlockError, match="no valid TOML") as caught:
        load(str(tmp_path / "own.toml"))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_directories_deeper_than_python_recurses(tmp_path: Path) -> None:
    (tmp_path / "z.ko").write_bytes(module())
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("a.ko").write_bytes(module())
        found = list(members([str(tmp_path)]))
    finally:
        os.fchdir(here)
        os.close(here)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest's own removal recurses
    assert [(type(item), os.path.basename(item.path)) for item in found] == [(Member, "a.ko"), (Member, "z.ko")]


def test_policies_that_never_end() -> None:
    with limited(256 << 20), clock(), pytest.raises(SplitlockError, match="--policy /dev/zero: a megabyte or more"):
        load("/dev/zero")


def test_not_enough_memory(tmp_path: Path) -> None:
    """An error for the one file; the next is read."""
    with open(tmp_path / "a.ko", "wb") as file:
        file.write(module())
        file.truncate(400 << 20)
    (tmp_path / "b.ko").write_bytes(module())
    code = (
        "import resource, sys; from splitlock.commands import main; import splitlock.modules.audit;"
        f"resource.setrlimit(resource.RLIMIT_AS, ({300 << 20}, {300 << 20}));"
        f"sys.exit(main(['scan', '-j', '1', '--format', 'json', '--all', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    files = json.loads(done.stdout)["files"]
    assert [file["verdict"] for file in files] == ["error", "allow"]
    assert files[0]["reason"] == "not enough memory"


def test_files_that_are_none(tmp_path: Path) -> None:
    """Loops, devices, pipes, what the kernel will not let be read: an error each, the rest goes on, exit status 2."""
    good = tmp_path / "good.ko"
    good.write_bytes(module())
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "b.ko").write_bytes(module())
    for name, target in {
        "a.ko": "a.ko", "c.ko": "nowhere", "d": "e", "e": "d", "f.ko": "/proc/self/mem", "g": ".", "h.ko": "/dev/zero",
    }.items():  # fmt: skip
        (tree / name).symlink_to(target)
    os.mkfifo(tree / "i.ko")
    named = {
        "/dev/zero": "not a regular file",
        str(tree / "i.ko"): "not a regular file",
        "/proc/self/mem": "Input/output error",
        str(tree / "a.ko"): "Too many levels of symbolic links",
        str(good / "x"): "Not a directory",
        str(tmp_path / ("n" * 300)): "File name too long",
        "/proc/self/maps": "not an ELF file, a kernel, a module or a package",
    }
    words = [sys.executable, "-m", "splitlock", "scan", "--format", "json", "--all", *named, str(tree), str(good)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    files = json.loads(done.stdout)["files"]
    assert {file["path"]: file["reason"] for file in files[: len(named)]} == named
    assert {os.path.basename(f["path"]): f["reason"] for f in files[len(named) :] if f["verdict"] == "error"} == {
        "a.ko": "Too many levels of symbolic links",
        "c.ko": "No such file or directory",
        "d": "Too many levels of symbolic links",
        "e": "Too many levels of symbolic links",
        "f.ko": "Input/output error",
    }
    assert [os.path.basename(f["path"]) for f in files if f["verdict"] == "allow"] == ["b.ko", "good.ko"]


def test_directories_that_vanish(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.ko").write_bytes(module())
    found = members([str(tmp_path)])
    assert isinstance(next(found), Member)
    (tmp_path / "b" / "m.ko").unlink()
    (tmp_path / "b").rmdir()
    failure, last = found
    assert isinstance(failure, Failure)
    assert failure.reason == "No such file or directory"
    assert isinstance(last, Member)

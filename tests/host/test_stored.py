"""What stands in a log's place: other kinds of files, damaged and truncated ones, bombs. One line, or what was left."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard

from splitlock.commands import main

SPLITLOCK = [sys.executable, "-m", "splitlock", "watch"]
TRAP = b"[ 4100.5] x86/split lock detection: #AC: ledger/901 took a split_lock trap at address: 0x55d0c2a417f2\n"
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress,
    "lz4": partial(lz4.frame.compress, content_checksum=True),
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip


def run(path: Path | str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SPLITLOCK, "--format", "json", path], input=given, capture_output=True, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def told(path: Path, directory: Path) -> tuple[int, dict[str, Any]]:
    """The exit status, and the sum."""
    output = directory / "told"
    status = main(["watch", "--format", "json", "-o", str(output), str(path)])
    return status, json.loads(output.read_text().splitlines()[-1])


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("sosreport/x"))
    return out.getvalue()


OTHERS = {
    "ELF": Path(sys.executable).resolve().read_bytes()[:100_000], "PNG": b"\x89PNG\r\n\x1a\n" + os.urandom(5000),
    "JPEG": b"\xff\xd8\xff\xe0" + os.urandom(5000), "PDF": b"%PDF-1.7\n" + TRAP, "zip": b"PK\x03\x04" + os.urandom(999),
    "tar": _tar(), "tar.gz": gzip.compress(_tar()), "tar.xz": lzma.compress(_tar()), "exe": b"MZ" + os.urandom(999),
    "gpg": b"-----BEGIN PGP MESSAGE-----\n", "lzo": b"\x89LZO\0\r\n\x1a\n" + os.urandom(99),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OTHERS[kind])
    for given in (path, "-"):
        done = run(given, OTHERS[kind])
        assert done.returncode == 2, done.stdout
        if kind != "lzo":  # it is not known what is in it
            assert (done.stdout, done.stderr.count("\n")) == ("", 1)
            assert done.stderr.startswith(f"splitlock: {given}: ")
        else:
            assert "decompress it first" in "".join(json.loads(done.stdout.splitlines()[-1])["doubts"])


@pytest.mark.parametrize("random", [os.urandom(70_000), b"\0" * 70_000, bytes(range(256)) * 300])
def test_what_is_nothing_known_is_not_nothing(random: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" + random)  # not by chance a kind that is known
    status, summary = told(path, tmp_path)
    assert (status, summary["whole"]) == (2, False)


@pytest.mark.parametrize("kind", PACKED)
def test_truncated_and_damaged(kind: str, tmp_path: Path) -> None:
    """What could be read is told, and what could not."""
    path = tmp_path / f"kern.log.{kind}"
    lines = [b"[ 4101.%06d] %s\n" % (number, os.urandom(40).hex().encode()) for number in range(20_000)]
    whole = PACKED[kind](TRAP + b"".join(lines))
    path.write_bytes(whole)
    status, summary = told(path, tmp_path)
    assert (status, summary["traps"], summary["read"]) == (1, 1, 20_001)
    half = len(whole) // 2
    for broken in (whole[:half], whole[:-4], whole[:half] + bytes(64) + whole[half + 64 :]):
        path.write_bytes(broken)
        status, summary = told(path, tmp_path)
        assert summary["doubts"][0].startswith(f"{path}: ")
        assert not summary["whole"]
        assert (status, summary["traps"]) == ((1, 1) if summary["traps"] else (2, 0))


def test_a_bomb_meets_no_limit_of_the_machine(tmp_path: Path) -> None:
    """A line of 100 MiB, in a hundred KiB: read in pieces."""
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + TRAP)
    # not getrusage: its maximum counts what pytest itself had, and the children of the tests before
    code = "import sys; from splitlock.commands import main; main(sys.argv[1:]); print(*open('/proc/self/status'))"
    words = [sys.executable, "-c", code, "watch", "--format", "json", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *_, summary = (line for line in done.stdout.splitlines() if line.startswith("{"))
    assert json.loads(summary)["traps"] == 1
    assert int(done.stdout.split("VmHWM:")[1].split()[0]) < 400 << 10  # KiB


def test_followed_is_text(tmp_path: Path) -> None:
    path = tmp_path / "kern.log.1.gz"
    path.write_bytes(gzip.compress(TRAP))
    done = subprocess.run([*SPLITLOCK, "-f", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "leave out -f" in done.stderr


def test_journals_that_are_none(tmp_path: Path) -> None:
    """Compressed, cut off, without journalctl: never nothing."""
    start = b"LPKSHHRH" + bytes(300)
    packed = tmp_path / "a.journal.zst"
    packed.write_bytes(zstandard.ZstdCompressor().compress(start))
    assert "unpack it to a file first" in run(packed).stderr
    assert "unpack it to a file first" in run("-", start).stderr
    cut = tmp_path / "b.journal"
    cut.write_bytes(start)
    done = run(cut)
    assert done.returncode == 2
    assert done.stderr or json.loads(done.stdout.splitlines()[-1])["doubts"]
    done = subprocess.run(
        [*SPLITLOCK, cut], capture_output=True, text=True, check=False, env={**os.environ, "PATH": str(tmp_path)}
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "journalctl is not installed" in done.stderr

"""The reader of strangers' ELF files is held in by the kernel: what does it get that tries to get out?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from splitlock.commands import main
from splitlock.image import apart, cage, child

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is for x86-64")

# Each by libc's own syscall(), as code would that has taken the process over. (`x`: a file that is there)
_TRIES = """
import ctypes, json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from splitlock.image import cage
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
numbers = {int(n) for n in sys.argv[3].split(",")}
path = ctypes.c_char_p(sys.argv[2].encode())
assert cage.close(libc)
def call(*words):
    return [libc.syscall(*words), ctypes.get_errno()]
said = {str(n): call(n, 0, 0, 0, 0, 0, 0) for n in numbers}
AT = -100
said |= {
    "execve": call(59, path, 0, 0), "execveat": call(322, AT, path, 0, 0, 0), "socket": call(41, 2, 1, 0),
    "fork": call(57), "clone": call(56, 17, 0, 0, 0, 0), "clone3": call(435, 0, 0), "ptrace": call(101, 16, 1, 0, 0),
    "kill": call(62, os.getppid(), 0), "tgkill": call(234, os.getppid(), os.getppid(), 0),
    "creat": call(85, path, 0o644), "unlink": call(87, path), "openat2": call(437, AT, path, 0, 0),
    "exec": call(9, 0, 4096, 5, 0x22, -1, 0), "protect": call(10, 0, 4096, 4), "limit": call(302, 1, 0, 0, 0),
    **{f"open {flags}": call(2, path, flags, 0o644) for flags in (1, 2, 0o100, 0o1000, 0o2000, 0o20200002)},
    **{f"openat {flags}": call(257, AT, path, flags, 0o644) for flags in (1, 2, 0o100, 0o1000, 0o2000, 0o20200002)},
}
free = call(257, AT, path, 0, 0)[0] >= 0 and libc.syscall(9, 0, 4096, 3, 0x22, -1, 0) != -1
libc.write(1, *(lambda b: (b, len(b)))(json.dumps([said, free]).encode()))
libc._exit(0)
"""


def test_nothing_gets_out(tmp_path: Path) -> None:
    """Of all system calls, those that are not named; and of the named ones, what would write or run."""
    (tmp_path / "x").write_bytes(b"as it was")
    named = set(cage._FREE.values()) | {each[0] for each in cage._ASKED} | {cage._TGKILL}
    numbers = [n for n in (*range(335), *range(424, 450)) if n not in named]
    done = subprocess.run(
        [sys.executable, "-c", _TRIES, json.dumps(sys.path), tmp_path / "x", ",".join(map(str, numbers))],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, free = json.loads(done.stdout)
    assert len(said) > 200
    assert {name: answer for name, answer in said.items() if answer != [-1, 1]} == {}
    assert free
    assert (tmp_path / "x").read_bytes() == b"as it was"


def test_the_child_has_it_and_answers() -> None:
    for reader in list(child.readers):
        reader.end("the test")
    found = sorted(
        path for path in Path("/usr/bin").iterdir() if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"
    )
    for path in found[:8]:
        with apart.Symbols(str(path)) as image:
            assert image.section(0x40) is None or image.section(0x40)
            image.frames(0x2000), image.named("main"), image.data(0x4000)
            assert not image.failure, path
    status = Path(f"/proc/{child.readers[0].pid}/status").read_text()
    assert re.findall(r"^Seccomp:\s*(\d)", status, re.M) == ["2"]
    assert child.kept() == [] or os.geteuid() == 0


def test_what_could_not_be_given_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of words, in place of a kernel without it."""
    monkeypatch.setattr(child, "_kept", {})
    monkeypatch.setattr(
        child.Reader, "_exchange", lambda _, words, *__: ["calls", "root"] if words[0] == "open" else []
    )
    with apart.Symbols(sys.executable) as image:
        assert image.frames(1) == []
    assert [("seccomp" in said, "root's" in said) for said in child.kept()] == [(True, False), (False, True)]
    monkeypatch.setattr(child.Reader, "_exchange", lambda *_: ["something"])
    with apart.Symbols(sys.executable) as image:
        assert image.frames(1) == []
        assert image.failure == "its answer makes no sense"


def test_a_command_says_it_in_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(child, "_kept", {"root": None, "network": None})
    assert main(["simulate", "/nowhere.toml"]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("splitlock: The process")] == [
        f"splitlock: {child.KEPT['root']}",
        f"splitlock: {child.KEPT['network']}",
    ]

"""`splitlock guard` as a command: wrong usage, what needs root, judging files, units; and the gate on this kernel.

What only a kernel with BPF LSM and modules can show is in tests/guard/test_guest_*.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from x86.building import assemble

from splitlock.guard import gate, judge, kernel, layout

ROOT = Path(__file__).parents[2]
SPLITLOCK = [sys.executable, "-m", "splitlock"]
Guard = Callable[..., "subprocess.CompletedProcess[str]"]
_MODULE = """.section .modinfo,"a"; .asciz "name=toy"; .asciz "vermagic=6.1.0 SMP"
.section .gnu.linkonce.this_module,"aw"; .zero 64
.text; .globl f; .type f,@function; f: {}; ret; .size f,.-f"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def guard() -> Guard:
    """`guard(argument, ...)`: run it."""

    def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        words = [*SPLITLOCK, "guard", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **more)

    return run


@pytest.fixture
def toys(tmp_path: Path) -> dict[str, Path]:
    """Modules as an assembler makes them."""
    made = {}
    for name, body in (("bad", "vmlaunch"), ("good", "nop"), ("msr", "wrmsr")):
        made[name] = assemble(tmp_path, _MODULE.format(body), name).rename(tmp_path / f"{name}.ko")
    return made


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs, for the fanotify gate."""
    directory = tmp_path / "fs"
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", directory], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield directory
    subprocess.run([*SPLITLOCK, "guard", "stop"], capture_output=True, check=False)
    subprocess.run(["umount", "-l", directory], check=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["start", "--policy", "nothing"], "--policy nothing: no such policy"),
        (["start", "--policy", "/nonexistent.toml"], "--policy /nonexistent.toml: No such file or directory"),
        (["test", "/nonexistent.ko"], "/nonexistent.ko: No such file or directory"),
        (["test", "--policy", "kernel-2020", "/bin/true"], '--policy kernel-2020: decode = "linear"'),
        (["test", "/etc/passwd"], "/etc/passwd: not an ELF file"),
        (["log", "--journal"], "log --journal: only with --follow"),
        (["install", "--root", "/nonexistent"], "install --root /nonexistent: no such directory"),
    ],
)
def test_wrong_usage(guard: Guard, arguments: list[str], says: str) -> None:
    done = guard(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["start", "stop", "status", "log"])
def test_needs_root(command: str) -> None:
    code = f"from splitlock.commands import main; raise SystemExit(main(['guard', '{command}']))"
    words = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "HOME": "/"})
    if "ModuleNotFoundError" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("nobody may not read this Python")
    assert (done.returncode, done.stderr) == (2, f"splitlock: guard {command}: needs root; run it with sudo\n")


def test_help_fits(guard: Guard) -> None:
    for command in ([], ["start"], ["log"], ["test"], ["install"], ["allow"]):
        done = guard(*command, "--help")
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 80


def test_test(guard: Guard, toys: dict[str, Path]) -> None:
    assert (guard("test", toys["good"]).returncode, guard("test", toys["bad"]).returncode) == (0, 1)
    done = guard("test", "--format", "json", toys["good"], toys["bad"], toys["msr"], "/nonexistent.ko")
    assert done.returncode == 2
    said = [json.loads(line) for line in done.stdout.splitlines()]
    schema = json.loads((ROOT / "docs" / "guard.schema.json").read_text())
    for each in said:
        jsonschema.validate(each, schema)
    assert [(d["verdict"], [f["kind"] for f in d["findings"]]) for d in said] == [
        ("allow", []),
        ("refuse", ["VMLAUNCH"]),
        ("refuse", ["WRMSR"]),
    ]
    assert all(len(each["digest"]) == 64 for each in said)
    done = guard("test", "--policy", "disable", toys["bad"])
    assert done.returncode == 1
    assert "log: x86/split lock detection: disabled due to VMLAUNCH in module: toy" in " ".join(done.stdout.split())
    assert guard("test", "--policy", "disable", toys["msr"]).returncode == 0


def test_compressed_modules_are_judged_by_their_contents(guard: Guard, toys: dict[str, Path]) -> None:
    subprocess.run(["xz", "-k", toys["bad"]], check=True)
    said = [json.loads(guard("test", "--format", "json", f"{toys['bad']}{end}").stdout) for end in ("", ".xz")]
    assert said[0]["digest"] == said[1]["digest"]


@needs_root
def test_a_kernel_that_cannot_be_guarded_is_told_and_nothing_is_left(guard: Guard) -> None:
    """On this kernel, unless it can: then it is brought up and taken down."""
    judge.built(judge.OBJECT)
    if gate.pins():
        pytest.skip("a gate is up on this machine; it is not ours to take down")
    done = guard("start", "--gate", "bpf")
    if done.returncode == 0:
        assert kernel.canary(layout.CANARY) == layout.CANARY_ERRNO
        assert guard("status").returncode == 0
        assert guard("stop").returncode == 0
    else:
        assert done.returncode == 2
        assert done.stderr.startswith("splitlock: ")
        assert done.stderr.count("\n") == 1
    assert kernel.canary(layout.CANARY) != layout.CANARY_ERRNO
    assert gate.pins() == []
    assert guard("status").returncode == 1
    done = guard("stop")
    assert (done.returncode, done.stderr) == (2, "splitlock: the gate is not up\n")


@needs_root
def test_fanotify_gate(guard: Guard, watched: Path, toys: dict[str, Path], tmp_path: Path) -> None:
    if gate.pins():
        pytest.skip("a gate is up on this machine")
    log = watched / "guard.jsonl"  # what the gate opens itself is a question to the gate
    bad = shutil.copy(toys["bad"], watched)
    done = guard("start", "--gate", "fanotify", "--on", watched, "--log", log)
    assert (done.returncode, done.stderr) == (0, "")
    assert "does not see:" in done.stdout
    assert "init_module" in done.stdout
    again = guard("start")
    assert (again.returncode, again.stderr) == (2, "splitlock: the fanotify gate is up; splitlock guard stop first\n")
    status = guard("status")
    assert status.returncode == 0
    assert max(map(len, status.stdout.replace(str(watched), "/watched").splitlines())) <= 80
    assert "blind to" in status.stdout
    refused = subprocess.run(["insmod", bad], capture_output=True, text=True, check=False)
    assert "Operation not permitted" in refused.stderr
    said = [json.loads(line) for line in guard("log", "--format", "json").stdout.splitlines()]
    assert [(d["name"], d["comm"], d["refused"], d["gate"]) for d in said] == [("toy", "insmod", True, "fanotify")]
    assert "REFUSED" in guard("log").stdout
    assert guard("stop").returncode == 0
    assert guard("status").returncode == 1
    again = guard("start", "--gate", "fanotify", "--on", watched, "--log", log)
    found = json.loads(Path("/run/splitlock/guard.json").read_text())
    os.kill(found["pid"], 9)
    for _ in range(50):
        dead = guard("status")
        if dead.returncode == 1:
            break
    assert f"its process, {found['pid']}, is gone: everything is let in" in " ".join(dead.stdout.split())


@pytest.mark.parametrize("options", [[], ["--audit", "--digests"]])
def test_units(guard: Guard, tmp_path: Path, options: list[str]) -> None:
    own = tmp_path / "a policy.toml"
    own.write_text('[[rule]]\nverdict = "refuse"\nkinds = ["vmx"]\n')
    root = tmp_path / "root"
    root.mkdir()
    done = guard("install", "--root", root, "--policy", own, *options)
    assert (done.returncode, done.stderr) == (0, "")
    units = root / "etc/systemd/system"
    text = (units / "splitlock-guard.service").read_text()
    assert " ".join(["guard start --policy", f'"{own}"', *options]) + "\n" in text
    assert "@" not in text
    assert (units / "sysinit.target.wants/splitlock-guard.service").is_symlink()
    names = ["splitlock-guard.service", "splitlock-guard-log.service"]
    words = ["systemd-analyze", "verify", *(str(units / name) for name in names)]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if "splitlock" in line] == []
    assert guard("install", "--root", root, "--uninstall").returncode == 0
    assert list(units.rglob("splitlock*")) == []
    assert guard("install", "--root", root, "--uninstall").returncode == 2
    assert guard("install", "--root", root, "--policy", "kernel-2020").returncode == 2


def test_metrics() -> None:
    code = (
        "import urllib.request; from splitlock.guard import metrics; metrics.serve('127.0.0.1:39417');"
        "print(urllib.request.urlopen('http://127.0.0.1:39417/metrics').read().decode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "\nsplitlock_guard_up " in done.stdout, done.stderr


def test_the_other_verbs_do_not_pay() -> None:
    code = (
        "import sys; from splitlock.commands import main; main(['exports', '--users', 'x', '--modules', '/no']);"
        "print([name for name in sys.modules if 'guard' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"

"""`splitlock advise`: this machine, another's files, and reports; every failure in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from modules.debian import modules, unpacked

from splitlock.report.advise import Report
from splitlock.report.advise_text import render

DOCS = Path(__file__).parents[2] / "docs"


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splitlock", "advise", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host with detection and Debian's real KVM loaded."""
    place = tmp_path_factory.mktemp("root")
    (place / "proc").mkdir()
    (place / "proc/cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nstepping\t: 6\n"
        "flags\t\t: fpu vmx split_lock_detect\n\n"
    )
    (place / "proc/version").write_text("Linux version 6.1.0-56-amd64 (debian)\n")
    (place / "proc/sys/kernel").mkdir(parents=True)
    (place / "proc/sys/kernel/osrelease").write_text("6.1.0-56-amd64\n")
    (place / "proc/cmdline").write_text("root=/dev/sda1\n")
    (place / "proc/modules").write_text("kvm_intel 1 0 - Live 0x0\n")
    kvm = modules("amd64")["kvm-intel.ko"]
    kernel = place / "lib/modules/6.1.0-56-amd64/kernel"
    kernel.mkdir(parents=True)
    (kernel / "kvm-intel.ko").write_bytes(kvm.read_bytes())
    return place


def test_another_root(root: Path) -> None:
    done = run("--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.replace(str(root), "").splitlines())) <= 80
    told = run("--root", root, "--format", "json").stdout
    jsonschema.validate(json.loads(told), json.loads((DOCS / "advise.schema.json").read_text()))
    report = Report.from_json(told)
    assert render(report) == done.stdout
    judged = report.judgement
    assert (judged.split_locks.known, report.linux) == ("yes", "6.1.0-56-amd64")
    assert [(one.name, one.kind, one.loaded) for one in judged.hypervisors] == [("kvm_intel", "kvm", "yes")]
    assert report.command_line == "split_lock_detect=warn"
    assert "[split_lock_warn()]" in run("--root", root, "-v").stdout
    assert run("--root", root, "-q").stdout == ""


def test_a_module_that_may_be_loaded(root: Path, tmp_path: Path) -> None:
    """A hypervisor out of tree: what the mode in effect does to its guests nobody knows, and it is said."""
    source = 'asm(".section .modinfo, \\"a\\"; .asciz \\"name=hyp\\"; .text; vmlaunch");'
    module = tmp_path / "hyp.ko"
    subprocess.run(["gcc", "-x", "c", "-c", "-o", module, "-"], input=source.encode(), check=True)
    done = run("--root", root, "--scan", module)
    assert "run `splitlock probe` in a guest of hyp" in " ".join(done.stdout.split())
    assert done.returncode == 2


def test_a_named_module_is_of_the_other_machine(root: Path, tmp_path: Path) -> None:
    """Whether it is loaded says that machine; and what is loaded there is not told twice."""
    module = tmp_path / "kvm-intel.ko"
    shutil.copy(modules("amd64")["kvm-intel.ko"], module)
    found = Report.from_json(run("--root", root, "--scan", module, "--format", "json").stdout).judgement.hypervisors
    assert [(one.name, one.loaded, one.path is None) for one in found] == [("kvm_intel", "yes", False)] * 2
    (root / "proc/modules").rename(tmp_path / "modules")
    try:
        found = Report.from_json(run("--root", root, "--scan", module, "--format", "json").stdout).judgement.hypervisors
    finally:
        (tmp_path / "modules").rename(root / "proc/modules")
    assert [one.loaded for one in found] == ["unknown"] * 2


def test_killed() -> None:
    """Nothing that scanned for it goes on."""
    command = [sys.executable, "-m", "splitlock", "advise", "--root", str(unpacked("amd64"))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 30
        while not children.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_from_reports(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "splitlock", "status", "--root", str(root), "--format", "json"]
    path = tmp_path / "host.json"
    path.write_bytes(subprocess.run(command, capture_output=True, timeout=300, check=False).stdout)
    (tmp_path / "bad.json").write_text("{}")
    assert "boot with split_lock_detect=warn" in run("--status", path).stdout
    assert "no report of splitlock guest" in run("--status", path, "--guest-report", tmp_path / "bad.json").stderr


@pytest.mark.parametrize("verb", ["advise", "status"])
def test_interrupted(verb: str) -> None:
    """Ctrl-C while thousands of modules are scanned: a valid report, which says so."""
    command = [sys.executable, "-m", "splitlock", verb, "--root", str(unpacked("amd64")), "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text():  # those that scan
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")
    found = json.loads(told)
    jsonschema.validate(found, json.loads((DOCS / f"{verb}.schema.json").read_text()))
    assert found["interrupted"]
    if verb == "advise":
        assert any("the scan was interrupted" in line for line in found["judgement"]["unknown"])
        assert render(Report.from_json(told)).startswith("interrupted: ")
    else:
        assert found["scanned"] < 4000
        assert "the scan was interrupted: not all modules were looked into" in found["checks"]


def test_interrupted_before(root: Path, tmp_path: Path) -> None:
    """A report of a status that was: advice from it knows."""
    command = [sys.executable, "-m", "splitlock", "status", "--root", str(root), "--format", "json"]
    status = json.loads(subprocess.run(command, capture_output=True, timeout=300, check=False).stdout)
    assert not status["interrupted"]
    path = tmp_path / "host.json"
    path.write_text(json.dumps({**status, "interrupted": True}))
    done = run("--status", path)
    assert done.returncode == 0
    assert done.stdout.startswith("interrupted: what follows knows only the modules that were scanned until then\n")


def test_this_machine() -> None:
    done = run()
    assert done.stderr == ""
    assert done.returncode in (0, 1, 2)
    assert done.stdout.startswith(("boot with split_lock_detect=", "nothing to turn on", "whether this kernel can"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--status", "x.json"], "--status x.json: No such file or directory"),
        (["--status", DOCS / "run.md"], "no report of splitlock status"),
        (["--root", "/nowhere"], "--root /nowhere"),
        (["--scan", "/nowhere"], "--scan /nowhere: No such file"),
        (["--guest-report", "x.json"], "--guest-report x.json: No such file"),
        (["--root", "/tmp", "--status", "x"], "not allowed with"),
    ],
)
def test_mistakes(words: list[str | Path], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema":"splitlock/status/1","x":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a":"\\ud800"}',
        "\udcff",
        "",
        "null",
    ],
)
@pytest.mark.parametrize("option", ["--status", "--guest-report"])
def test_no_report_is_one_line(tmp_path: Path, option: str, text: str) -> None:
    """Whatever else it is."""
    (tmp_path / "x.json").write_text(text, errors="surrogateescape")
    done = run(option, tmp_path / "x.json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert (
        f"{option} {tmp_path}/x.json: no report of splitlock {'status' if option == '--status' else 'guest'}: "
        in done.stderr
    )


@pytest.mark.parametrize("kind", ["empty", "text", "fifo", "device", "directory", "ko", "r0", "elf"])
def test_scan_of_no_module_is_an_error(tmp_path: Path, kind: str) -> None:
    """Who names something wants it looked into: what is no module says so, and what to name."""
    path = tmp_path / {"ko": "x.ko", "r0": "VMMR0.r0"}.get(kind, "x")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
        (path / "README").write_text("no module")
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.write_bytes({"empty": b"", "text": b"words\n"}.get(kind, b"\x7fELFgarbage"))
    (tmp_path / "root").mkdir()
    done = run("--root", tmp_path / "root", "--scan", path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"--scan {path}: " in done.stderr
    assert "; name " in done.stderr


@pytest.mark.parametrize(
    ("vendor", "release", "reason"),
    [
        ("AuthenticAMD", "6.8.0", "AMD's processors have no split-lock detection"),
        ("GenuineIntel", "5.4.0", "Linux 5.4.0 has no split-lock detection"),
        ("GenuineIntel", "6.8.0", "/proc/cpuinfo has no flag split_lock_detect"),
    ],
)
def test_the_first_lines_say_what_they_mean(tmp_path: Path, vendor: str, release: str, reason: str) -> None:
    """For somebody who is no kernel developer: no name of an exception without what it is for."""
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text(
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: 60\nstepping\t: 6\nflags\t\t: fpu\n\n"
    )
    (tmp_path / "proc/sys/kernel/osrelease").write_text(f"{release}\n")
    (tmp_path / "proc/cmdline").write_text("ro\n")
    advised = " ".join(run("--root", tmp_path).stdout.split())
    beginning = "nothing to turn on: this kernel cannot detect split locks on this processor ("
    assert advised.startswith(f"{beginning}{reason}")
    command = [sys.executable, "-m", "splitlock", "status", "--root", str(tmp_path)]
    told = " ".join(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())
    for text in (advised, told.partition("what each mode")[0]):
        for exception, name in (("#AC", "split-lock detection (#AC)"), ("#DB", "bus-lock detection (#DB)")):
            assert text.index(exception) == text.index(name) + name.index(exception)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "nothing"])
@pytest.mark.parametrize("option", ["--status", "--guest-report"])
def test_a_report_is_a_regular_file(tmp_path: Path, option: str, kind: str) -> None:
    """Nothing is waited for."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    done = run(option, path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"splitlock: {option} {path}: ")
    assert done.stderr.endswith("; name a report in JSON\n")


def test_a_report_through_a_pipe(root: Path) -> None:
    """As the shell's <(splitlock status --format json) gives it."""
    splitlock = f"{sys.executable} -m splitlock"
    script = f"{splitlock} advise --status <({splitlock} status --no-scan --root {root} --format json)"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("boot with split_lock_detect=")

"""`splitlock scan` on Debian's own modules: verdicts, formats, exit statuses, terminals, interruptions."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from modules.debian import packages

from splitlock.image.package import Member, members
from splitlock.report.scan import Report

ROOT = Path(__file__).parents[2]
SPLITLOCK = [sys.executable, "-m", "splitlock"]
WANTED = {"kvm-intel", "kvm-amd", "kvm", "ptp_kvm", "intel-uncore"}
Scan = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def package() -> Path:
    """Debian's kernel package for clouds, the smallest."""
    return packages("cloud-amd64")["cloud-amd64"]


@pytest.fixture(scope="session")
def modules(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with some 150 of its modules, the interesting ones among them."""
    directory = tmp_path_factory.mktemp("modules")
    for number, member in enumerate(members([str(package)])):
        assert isinstance(member, Member)
        name = Path(member.member or "").name
        if name.endswith(".ko") and (number % 8 == 0 or name.removesuffix(".ko") in WANTED):
            (directory / name).write_bytes(member.data)
    return directory


@pytest.fixture
def scan() -> Scan:
    """`scan(argument, ...)`: run it."""

    def run(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        words = [*SPLITLOCK, "scan", *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, **more)

    return run


def test_debian_is_clean(scan: Scan, modules: Path) -> None:
    done = scan(modules)
    assert (done.returncode, done.stderr) == (0, "")
    assert "allow    kvm_intel: SLD-aware: imports handle_guest_split_lock\n" in done.stdout
    assert "allow    kvm_amd: in-tree\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert (
        f"{len(list(modules.iterdir())):,} files scanned, policy refuse: {len(list(modules.iterdir())):,} allowed"
        in " ".join(done.stdout.split())
    )


def test_policies(scan: Scan, modules: Path, tmp_path: Path) -> None:
    done = scan("--policy", "disable", modules)
    assert done.returncode == 1
    assert "disable  kvm_intel: VMLAUNCH" in done.stdout
    assert "log: x86/split lock detection: disabled due to VMLAUNCH in module: kvm_intel" in " ".join(
        done.stdout.split()
    )
    assert scan("--policy", "kernel-2020", modules).returncode == 0
    done = scan("--policy", "break:handle_guest_split_lock", "-q", modules)
    assert done.returncode == 1
    assert "kvm_intel: Unknown symbol handle_guest_split_lock (err -2)" in done.stdout
    own = tmp_path / "own.toml"
    own.write_text('[[rule]]\nverdict = "refuse"\nkinds = ["svm"]\n')
    done = scan("-q", "--policy", own, modules)
    assert done.returncode == 1
    assert "refuse   kvm_amd: " in done.stdout
    assert "kvm_intel" not in done.stdout


def test_json(scan: Scan, modules: Path) -> None:
    done = scan("--format", "json", "--all", modules)
    report = Report.from_json(done.stdout)
    jsonschema.validate(json.loads(done.stdout), json.loads((ROOT / "docs" / "scan.schema.json").read_text()))
    assert len(report.files) == len(list(modules.iterdir())) == report.summary.files
    assert report.summary.complete
    by_name = {file.name: file for file in report.files}
    kvm = by_name["kvm_intel"]
    assert kvm.sld_aware
    assert kvm.intree
    assert not kvm.sld_safe
    assert kvm.depends == ["kvm"]
    assert kvm.vermagic
    assert kvm.vermagic.startswith("6.1.0")
    launch = [finding for finding in kvm.findings if finding.kind == "VMLAUNCH"]
    assert [(f.section, f.certainty, f.function) for f in launch] == [(".noinstr.text", "exact", "__vmx_vcpu_run")]
    assert by_name["kvm_amd"].verdict == "allow"
    assert report.summary.kinds["VMRUN"].files == 1


def test_kinds(scan: Scan, modules: Path) -> None:
    done = scan("--format", "json", "--kinds", "svm,VMLAUNCH,MOV CR*", modules)
    report = Report.from_json(done.stdout)
    assert {file.name for file in report.files} == {"kvm_intel", "kvm_amd"}
    svm = {"VMRUN", "VMLOAD", "VMSAVE", "STGI", "CLGI", "INVLPGA"}
    assert set(report.summary.kinds) == {"VMLAUNCH", "MOV CR2", "MOV CR4"} | svm
    # what is not reported is judged all the same
    assert scan("--kinds", "svm", "--policy", "disable", "-q", modules).returncode == 1
    done = scan("--kinds", "vmx,foo", modules)
    assert (done.returncode, done.stderr.startswith("splitlock: --kinds foo: ")) == (2, True)
    assert "POPF" in scan("--kinds", "all", modules / "kvm.ko").stdout


def test_sarif(scan: Scan, modules: Path, tmp_path: Path) -> None:
    schema = json.loads((ROOT / "tests" / "report" / "sarif-2.1.0-used.schema.json").read_text())
    target = tmp_path / "scan.sarif"
    done = scan("--format", "sarif", "-o", target, "--policy", "disable", modules)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    log = json.loads(target.read_text())
    jsonschema.validate(log, schema)
    levels = {result["ruleId"]: result["level"] for result in log["runs"][0]["results"]}
    assert levels["VMLAUNCH"] == "warning"
    assert levels["VMRUN"] == "note"


def test_any_number_of_processes_gives_the_same(scan: Scan, modules: Path) -> None:
    one, two, three = (scan("--format", "json", "--all", "-j", n, modules).stdout for n in "123")
    assert one == two == three


def test_package_as_its_files(scan: Scan, package: Path, modules: Path) -> None:
    report = Report.from_json(scan("--format", "json", package).stdout)
    files = {Path(file.member or "").name: file for file in report.files}
    from_files = Report.from_json(scan("--format", "json", modules).stdout)
    for file in from_files.files:
        same = files[Path(file.path).name]
        assert (same.sha256, same.findings, same.verdict) == (file.sha256, file.findings, file.verdict)
    assert report.summary.error == 0
    kernel = next(file for name, file in files.items() if name.startswith("vmlinuz"))
    assert (kernel.verdict, kernel.reason) == ("allow", "the kernel itself: no module loader sees it")


def test_what_cannot_be_read_is_an_error_and_the_rest_goes_on(scan: Scan, modules: Path, tmp_path: Path) -> None:
    whole = (modules / "kvm-intel.ko").read_bytes()
    (tmp_path / "a-truncated.ko").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b-32bit.ko").write_bytes(whole[:4] + b"\x01" + whole[5:])
    (tmp_path / "c-endian.ko").write_bytes(whole[:5] + b"\x02" + whole[6:])
    (tmp_path / "d-empty.ko").write_bytes(b"")
    (tmp_path / "e-whole.ko").write_bytes(whole)
    done = scan("--format", "json", tmp_path, tmp_path / "missing.ko")
    report = Report.from_json(done.stdout)
    assert done.returncode == 2
    assert [file.verdict for file in report.files] == ["error"] * 4 + ["allow", "error"]
    assert all(file.reason for file in report.files)
    assert report.files[-1].reason == "No such file or directory"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "nothing"], "--policy nothing: no such policy"),
        (["--frobnicate"], "unrecognized option --frobnicate"),
        (["-j", "0"], "0: not a number of processes"),
        (["-o", "/nonexistent/report"], "-o /nonexistent/report: No such file or directory"),
        (["--kinds", ","], "--kinds: names no kind"),
    ],
)
def test_wrong_usage(scan: Scan, arguments: list[str], says: str) -> None:
    done = scan(*arguments, "/bin/true")
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_paths_before_and_after_options(scan: Scan, modules: Path) -> None:
    done = scan(modules / "kvm.ko", "-q", modules / "kvm-amd.ko", "--format", "json", "--all", modules / "ptp_kvm.ko")
    assert [file.name for file in Report.from_json(done.stdout).files] == ["kvm", "kvm_amd", "ptp_kvm"]


def test_an_interrupted_scan_leaves_a_valid_report(package: Path, tmp_path: Path) -> None:
    for jobs in ("1", "2"):
        target = tmp_path / "report.json"
        words = [*SPLITLOCK, "scan", "--format", "json", "--all", "-j", jobs, "-o", str(target), *[str(package)] * 12]
        child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + 60
        while not (target.exists() and '"path"' in target.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert child.stderr is not None
        assert child.stderr.read() == ""
        assert child.wait(20) == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(child.pid, 0)  # nobody is left
        report = Report.from_json(target.read_text())
        assert not report.summary.complete
        assert report.files
        target.unlink()


def test_an_interrupted_write_is_whole(modules: Path) -> None:
    """Ctrl-C while the pipe is full, as a pager leaves it."""
    words = [*SPLITLOCK, "scan", "--format", "json", "--all", "-j", "2", str(modules)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, 4096)
        filled: list[int] = []
        deadline = time.monotonic() + 60
        while len(filled) < 5 or filled[-5:] != filled[-1:] * 5 or filled[-1] < 1000:  # until it waits for us
            assert time.monotonic() < deadline
            filled += struct.unpack("i", fcntl.ioctl(child.stdout, termios.FIONREAD, bytes(4)))
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
        told, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, b"")
    assert not Report.from_json(told).summary.complete


def _on_a_terminal(words: list[str], env: dict[str, str]) -> str:
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, env)
    seen = b""
    while True:
        try:
            more = os.read(fd, 65536)
        except OSError:
            break
        if not more:
            break
        seen += more
    os.waitpid(pid, 0)
    os.close(fd)
    return seen.decode()


def test_terminal(package: Path, modules: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    seen = _on_a_terminal([*SPLITLOCK, "scan", "-j", "1", str(package)], env)
    assert "scanning" in seen  # longer than a moment: a progress bar
    assert "kvm_intel: SLD-aware" in seen
    quick = _on_a_terminal([*SPLITLOCK, "scan", str(modules / "kvm-intel.ko")], env)
    assert quick.startswith("\x1b[32mallow\x1b[0m    kvm_intel: SLD-aware")
    assert "scanning" not in quick
    plain = _on_a_terminal([*SPLITLOCK, "scan", str(modules / "kvm-intel.ko")], env | {"NO_COLOR": "1"})
    assert "\x1b" not in plain


def test_the_other_verbs_do_not_pay(tmp_path: Path) -> None:
    code = (
        "import sys; from splitlock.commands import main; status = main(['run', '--', '/bin/true']);"
        "ours = ('splitlock.modules', 'splitlock.commands.scan', 'splitlock.commands.exports', 'rich');"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "[]\n"
    shown = subprocess.run([*SPLITLOCK, "--help"], capture_output=True, text=True, check=False).stdout
    for verb in ("run", "scan", "exports"):
        assert f"\n    {verb} " in shown


def test_dask_cluster(scan: Scan, modules: Path, tmp_path: Path) -> None:
    distributed = importlib.import_module("distributed")  # untyped
    hidden = tmp_path / "modules"
    shutil.copytree(modules, hidden)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        remote = scan("--format", "json", "--all", "--dask", cluster.scheduler_address, hidden)
    assert remote.stdout == scan("--format", "json", "--all", hidden).stdout
    assert remote.returncode == 0
    done = scan("--dask", "tcp://127.0.0.1:9", hidden)
    assert done.returncode == 2
    assert done.stderr.startswith("splitlock: --dask tcp://127.0.0.1:9: ")


def test_help_fits(scan: Scan) -> None:
    done = scan("--help")
    assert "examples:" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(("verb", "status"), [("scan", 2), ("exports", 2), ("run", 125)])
def test_a_mistake_of_ours_is_no_finding(verb: str, status: int) -> None:
    """One line that says what and where; 1 would be a finding."""
    words = {"run": ["--", "true"], "exports": ["--users", "vmap"]}.get(verb, [])
    code = (
        f"import sys, splitlock.commands.{verb} as verb\n"
        "def mistaken(_): raise ValueError('a mistake\\nof ours')\n"
        f"verb.run = mistaken; sys.argv[1:] = {[verb, *words]!r}\n"
        "from splitlock._start import entry; entry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    assert "please report it: ValueError: a mistake of ours (__init__.py:" in line

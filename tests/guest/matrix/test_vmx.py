"""`splitlock matrix --vmx`: real kernels and KVM on a processor with VMX and split-lock detection, held to tables.

The tables are written by hand: from arch/x86/kvm/vmx/vmx.c (handle_exception_nmi(), vmx_guest_inject_ac()),
arch/x86/kernel/cpu/bus_lock.c (handle_guest_split_lock()), and Intel's SDM, volume 3 (interrupts 8 and 17).
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import jsonschema
import pytest
from guest.matrix.conftest import command, measured
from modules.debian import ROOT, packages

from splitlock._errors import SplitlockError
from splitlock.guest.bochs import emulator
from splitlock.report.matrix_vmx import Cell, Report

SCHEMA = json.loads((ROOT / "docs" / "matrix-vmx.schema.json").read_text())
MODES = ("off", "warn", "fatal", "unaware")
SMALL = ("real", "kernel", "kernel_idt", "user_idt", "am_idt", "ac_idt", "asked", "asked_idt", "wrmsr_idt")
KVM = """
real          completed     completed     sigbus        derailed
kernel        completed     completed     sigbus        triple-fault
kernel_idt    completed     completed     sigbus        handled
user_idt      completed     completed     sigbus        handled
am_idt        completed     completed     sigbus        handled
ac_idt        completed     completed     sigbus        handled
asked         triple-fault  triple-fault  triple-fault  triple-fault
asked_idt     handled       handled       handled       handled
wrmsr_idt     gp            gp            gp            gp
"""
BLIND = """
forward kernel      completed  triple-fault  triple-fault  triple-fault
forward kernel_idt  completed  handled       handled       handled
through kernel      completed  triple-fault  triple-fault  triple-fault
through kernel_idt  completed  handled       handled       handled
off kernel          completed  completed     completed     completed
off kernel_idt      completed  completed     completed     completed
handle kernel       completed  completed     sigbus        sigbus
handle kernel_idt   completed  completed     sigbus        sigbus
"""
LINUX = """
linux_user    completed     completed     sigbus        livelock
linux_module  completed     completed     sigbus        oops
"""
PREFIX = "x86/split lock detection: #AC: "


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    try:
        emulator.find()
    except SplitlockError as error:
        pytest.skip(str(error))


def expected(table: str, hypervisor: str = "") -> dict[tuple[str, str, str], str]:
    """A table's outcomes by hypervisor, guest and mode."""
    found = {}
    for line in table.strip().splitlines():
        *names, off, warn, fatal, unaware = line.split()
        name, guest = names if not hypervisor else (hypervisor, *names)
        found.update({(name, guest, mode): word for mode, word in zip(MODES, (off, warn, fatal, unaware), strict=True)})
    return found


def report(target: Path, *words: object, timeout: float = 900) -> tuple[int, Report]:
    """The command's exit status and report."""
    line = command("--vmx", "--format", "json", "-o", target, *words)
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.stderr == ""
    jsonschema.validate(json.loads(target.read_text()), SCHEMA)
    return done.returncode, Report.from_json(target.read_bytes())


def cells(told: Report) -> dict[tuple[str, str, str], Cell]:
    return {(cell.hypervisor, cell.guest, cell.mode): cell for cell in told.cells}


def check_warn(cell: Cell) -> None:
    """What KVM's host says of a guest that it keeps waiting: the VMM, and the guest's own instruction."""
    assert len(cell.log) == cell.warnings == 1
    assert cell.log[0].startswith(f"{PREFIX}vmm/")
    assert cell.log[0].endswith(" took a split_lock trap at address: 0x1000")
    assert cell.executed == 1


def check_fatal(cell: Cell) -> None:
    """The VMM gets KVM_EXIT_EXCEPTION, and SIGBUS with BUS_ADRALN and no address; nothing was executed."""
    assert (cell.exit, cell.error, cell.executed) == (1, 0, 0)
    assert cell.signal is not None
    assert (cell.signal.number, cell.signal.code, cell.signal.address) == (signal.SIGBUS, 1, "0x0")


def check_side(cell: Cell) -> None:
    """The processor's account: an exit for each, and what was injected is what reached the guest."""
    side = cell.processor
    assert side is not None
    if cell.mode == "off" or cell.guest in ("asked", "asked_idt", "wrmsr_idt"):  # not because of a split lock
        assert side.traps == 0
        return
    assert (side.place, side.traps, side.exits) == ("guest", 1, 1)
    assert side.cpl == (3 if cell.guest in ("user_idt", "am_idt", "ac_idt") else 0)
    assert bool(side.injected) == (cell.mode == "unaware")
    assert side.triple_faults == (cell.outcome == "triple-fault")


def check_kvm(found: dict[tuple[str, str, str], Cell]) -> None:
    """More of each small guest's cell than its outcome."""
    fatal_lines = []
    for (hypervisor, guest, mode), cell in found.items():
        if hypervisor != "kvm" or guest not in SMALL:
            continue
        check_side(cell)
        if cell.outcome == "handled":  # a fault: error code 0, and the instruction itself is where it was
            assert (cell.error, cell.at_instruction, cell.executed) == (0, True, 0)
        if cell.outcome == "triple-fault":
            assert (cell.exit, cell.executed) == (8, 0)  # KVM_EXIT_SHUTDOWN
        if cell.outcome == "sigbus":
            check_fatal(cell)
            fatal_lines += cell.log
        if (mode, cell.outcome) == ("warn", "completed"):
            check_warn(cell)
        elif mode != "fatal":
            assert cell.log == []
    assert len(fatal_lines) == any(mode == "fatal" for _, _, mode in found)  # once a boot: pr_warn_once()
    assert all(" fatal split_lock trap at address: 0x1000" in line for line in fatal_lines)


def test_two_modes(tmp_path: Path) -> None:
    """A kernel that knows, and one that does not."""
    package = packages("cloud-amd64")["cloud-amd64"]
    status, told = report(
        tmp_path / "report",
        "--kernels",
        package,
        "--hypervisors",
        "kvm",
        "--modes",
        "warn",
        "unaware",
        "--guests",
        *SMALL,
    )
    found = cells(told)
    assert {key: cell.outcome for key, cell in found.items()} == {
        key: word for key, word in expected(KVM, "kvm").items() if key[2] in ("warn", "unaware")
    }
    check_kvm(found)
    assert status == 0, [cell.differs for cell in told.cells]
    assert [boot.split_lock_detect for boot in told.boots] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["old", "amd64", "xz", "new"])
def test_all(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything, with four kernels: 5.10, 6.1, 6.12, 7.x."""
    if kind == "old":
        packages("old-headers")
        monkeypatch.setenv("CC", "gcc")  # Debian 11's own is not to be had here
        words = ["--kernels", str(packages("old")["old"])]
    else:
        words = measured(kind)
    if kind == "new":
        packages("new-modules")
    status, told = report(tmp_path / "report", *words, timeout=3000)
    found = cells(told)
    outcomes = {key: cell.outcome for key, cell in found.items() if cell.outcome != "impossible"}
    assert outcomes == expected(KVM, "kvm") | expected(BLIND) | expected(LINUX, "kvm")
    check_kvm(found)
    impossible = {(cell.hypervisor, cell.guest) for cell in told.cells if cell.outcome == "impossible"}
    guests = {*SMALL, "linux_user", "linux_module"} - {"kernel", "kernel_idt"}
    assert impossible == {(way, guest) for way in ("forward", "through", "off", "handle") for guest in guests}
    assert status == 0, [(cell.hypervisor, cell.guest, cell.mode, cell.differs) for cell in told.cells if cell.differs]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--vmx", "--kinds", "user"), "--kinds: not with --vmx"),
        (("--vmx", "--processors", "ac"), "--processors: not with --vmx"),
        (("--hypervisors", "kvm"), "--hypervisors: only with --vmx"),
        (("--vmx", "--modes", "mitigate=0"), "--modes mitigate=0: with --vmx there are off, warn, fatal, unaware"),
        (("--modes", "unaware"), "--modes unaware: without --vmx there are off, warn, mitigate=0, fatal, ratelimit:N"),
    ],
)
def test_options(words: tuple[str, ...], said: str) -> None:
    """What belongs to one of the two machines is refused with the other."""
    done = subprocess.run(command("--kernels", "/boot", *words), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr

"""KVM in KVM on the processor of `--vmx`: a guest's split lock and one of a guest's guest are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from guest import boots
from guest.conftest import PROGRAMS, SHARED, Run
from modules.debian import unpacked, vmlinuz

_KERNEL = "cloud-amd64"
_KVM = ("irqbypass.ko", "kvm.ko", "kvm-intel.ko")  # in the order in which they load
_LOAD = "\n".join(f"insmod /{name}" for name in _KVM)
_WORDS = "earlyprintk=ttyS0,keep quiet panic=-1 nokaslr mitigations=off pci=off acpi=off noreplace-smp reboot=p"
_DEMO, _NESTED = 3, 1  # split locks


def _ran(
    guest: Run, directory: Path, inside: str, *words: str, append: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of a host whose KVM runs Linux, whose KVM runs what `inside` says; and its sites by their places."""
    kvm = {path.name: path for path in unpacked(_KERNEL).rglob("*.ko") if path.name in _KVM}
    for source in (SHARED / "demo.c", PROGRAMS / "nested.c", PROGRAMS / "linuxvm.c"):
        boots.compiled(source, directory / source.stem)
    files = {**kvm, "demo": directory / "demo", "nested": directory / "nested"}
    script = f"exec >/dev/kmsg 2>&1\ndmesg -n 8\n{_LOAD}\n{inside}\nreboot -f"
    second = boots.initramfs(directory / "second", script, files)
    files = {**kvm, "linuxvm": directory / "linuxvm", "vmlinuz": vmlinuz(_KERNEL), "second": second}
    script = f"{_LOAD}\nlinuxvm /vmlinuz /second '{_WORDS}'\nsleep 9"
    first = boots.initramfs(directory / "first", script, files)
    status, report = guest(
        "--vmx", *words, "--kernel", vmlinuz(_KERNEL), "--initrd", first, "-m", "768M", "--append",
        f"console=ttyS0 quiet noreplace-smp {append}", "--duration", 900, timeout=1000,
    )  # fmt: skip
    assert status == 1
    assert "virtual machine: restarts" in report["console"], report["console"][-3000:]
    of = {site["processor"]["place"]: site for site in report["sites"]}
    assert len(report["sites"]) == len(of)
    for site in of.values():
        assert (site["where"], site["comm"]) == ("nested", "linuxvm")
        assert site["processor"]["hypervisor"] == {"module": "kvm_intel"}
    assert (of["nested guest"]["mode"], of["nested guest"]["address"]) == (16, "0x1000")  # programs/nested.c
    return report, of


@pytest.mark.slow
@pytest.mark.usefixtures("emulator")
def test_warn(guest: Run, tmp_path: Path) -> None:
    """The host keeps both waiting, as both are its guests; each program has its split locks, and each its level."""
    inside = f"demo {_DEMO}\nnested {_NESTED}"
    report, of = _ran(guest, tmp_path, inside, append="split_lock_detect=warn")
    assert "nested guest: exit reason 5, counter 1, #AC 0" in report["console"]  # KVM_EXIT_HLT
    assert f"requests served: {_DEMO}" in report["console"]
    assert set(of) == {"guest", "nested guest"}
    assert (of["guest"]["hits"], of["nested guest"]["hits"]) == (_DEMO, _NESTED)
    for site in of.values():
        assert 0 < site["processor"]["exits"] <= site["hits"]  # detection is off for two jiffies after each
        assert (site["processor"]["injected"], site["processor"]["triple_faults"]) == (0, 0)
    assert of["guest"]["inside"]["comm"] == "demo"


@pytest.mark.slow
@pytest.mark.usefixtures("emulator")
def test_unaware(guest: Run, tmp_path: Path) -> None:
    """A host that does not know hands the exception to its guest, and that, which does not know either, to its own."""
    report, of = _ran(guest, tmp_path, "nested 1 unready", "--forward-ac")
    assert "nested guest: exit reason 8, counter 0, #AC 0" in report["console"]  # KVM_EXIT_SHUTDOWN
    assert set(of) == {"nested guest"}
    site = of["nested guest"]
    assert (site["hits"], site["traps"], site["answers"]) == (0, 1, ["triple fault"])
    processor = site["processor"]
    assert (processor["exits"], processor["injected"], processor["triple_faults"]) == (1, 1, 1)

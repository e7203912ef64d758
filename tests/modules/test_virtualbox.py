"""VirtualBox's real files, from Debian sid's contrib: a driver without VMX, and the hypervisor that it loads."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from modules.debian import packages
from modules.toys import make, unpack

from splitlock.modules.scan import Scan, scan

pytestmark = pytest.mark.slow

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages virtualbox and virtualbox-dkms, found through package lists of the test's own."""
    place = tmp_path_factory.mktemp("virtualbox")
    wanted = ["Created-By: Packages", "Origin: Debian", "Component: main"]
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]
    known = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    archives = [uri for uri in known if "security" not in uri]
    if not archives:
        pytest.skip("no Debian archive among this machine's sources")
    for directory in ("lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    (place / "sources").write_text(f"deb [signed-by={KEYRING}] {archives[0]} sid contrib\n")
    settings = {
        "Dir::Etc::sourcelist": place / "sources", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": place / "lists", "Dir::Cache": place / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    for words in (["update"], ["download", "virtualbox", "virtualbox-dkms"]):
        done = subprocess.run([*apt, *words], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no VirtualBox to be had: {done.stderr.strip()}")
    for package in place.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, place], check=True)
    return place


def counted(result: Scan) -> Counter[str]:
    """Exact instructions by kind, the registers of each class together."""
    exact = [f.kind for f in result.findings if f.certainty == "exact" and f.evidence == "instruction"]
    return Counter(kind[:6] if kind.startswith("MOV ") else kind for kind in exact)


def test_the_hypervisor_is_no_module(unpacked: Path) -> None:
    result = scan((unpacked / "usr/lib/virtualbox/VMMR0.r0").read_bytes())
    assert (result.type, result.modinfo, result.signer) == (3, {}, None)
    assert result.imports >= {"SUPR0ChangeCR4", "SUPR0EnableHwvirt"}
    found = counted(result)
    assert all(found[kind] for kind in ("VMXON", "VMLAUNCH", "VMRESUME", "VMREAD", "VMRUN", "MOV CR", "MOV DR", "LTR"))
    if "7.2." in next(unpacked.glob("virtualbox_*.deb")).name:  # what facts say of it
        expected = {
            "VMLAUNCH": 64, "VMRESUME": 64, "VMXON": 3, "VMREAD": 824, "VMRUN": 32, "MOV CR": 69, "MOV DR": 35,
            "LGDT": 3, "LIDT": 1, "LTR": 3, "WRMSR": 182,
        }  # fmt: skip
        assert {kind: found[kind] for kind in expected} == expected


def test_its_driver_holds_no_vmx_and_is_flagged(unpacked: Path, tmp_path: Path) -> None:
    headers = unpack(list(packages("headers").values()), tmp_path)
    (source,) = (unpacked / "usr/src").glob("virtualbox-*/vboxdrv")
    make(headers, source, jobs=os.cpu_count() or 1)
    result = scan((source / "vboxdrv.ko").read_bytes())
    assert counted(result).keys() == {"RDMSR", "WRMSR"}
    others = {(f.kind, f.evidence) for f in result.findings if f.evidence != "instruction"}
    assert others == {
        ("FOREIGN-CODE", "imports apply_to_page_range, register_kprobe, vmap"),
        ("MOV CR4", "relocation cr4_update_irqsoff"),
    }
    assert "intree" not in result.modinfo

"""What is in Debian's kernels, audited straight from their packages, against the tables and against binutils.

Where Debian has a newer kernel than a table is of, a warning says so, and the comparison with objdump and readelf is
what remains: it is made in any case, for each module in which something is found and for a sample of the others.
"""

from __future__ import annotations

import os
import random
import subprocess
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from modules import binutils
from modules.debian import packages, unpacked, vmlinuz
from modules.tables import TABLES, Counts, Table

from splitlock.image.bzimage import vmlinux
from splitlock.modules.audit import Job, audit
from splitlock.modules.paravirt import CR4_WRITER, SYMBOL, layout_for
from splitlock.modules.policy import OTHERS, load
from splitlock.modules.scan import scan
from splitlock.report.scan import File
from splitlock.x86.privileged import DEFAULT, GROUPS

MISLEADING = ("bnx2x", "e752x_edac")  # hold the bytes of VMLAUNCH, but not the instruction
SAMPLE = 100
RELATIVE = {"R_X86_64_PC32", "R_X86_64_PLT32"}  # to the end of the field, 4 bytes on

every_kernel = pytest.mark.parametrize("kind", TABLES)


class Audited(NamedTuple):
    """What an audit says of a package: of its modules by name, and of the other files."""

    modules: dict[str, File]
    others: list[File]


@cache
def audited(kind: str) -> Audited:
    """A package, audited once under the policy `refuse`, with all that is looked for by default."""
    package = str(packages(kind)[kind])
    found = Audited({}, [])
    for batch in audit([package], Job(load("refuse"), DEFAULT | frozenset(OTHERS), every=True)):
        assert not batch.clean
        for file in batch.files:
            assert (file.path, file.verdict) == (package, "allow"), file
            name, dot, _ = os.path.basename(file.member or "").partition(".ko")
            if dot:
                assert file.name == name.replace("-", "_")
                found.modules[name] = file
            else:
                found.others.append(file)
    return found


@cache
def files(kind: str) -> dict[str, Path]:
    """The package's modules by name, as dpkg-deb unpacks them: compressed where they are."""
    paths = (unpacked(kind) / "lib" / "modules").rglob("*.ko*")
    return {path.name.partition(".ko")[0]: path for path in paths if path.is_file()}


def counted(modules: dict[str, File], *, operations: bool = False) -> Counts:
    """Kinds of the instructions, or operations through pv_ops and the like, and how often each module has them."""
    found: Counts = {}
    for name, file in modules.items():
        for finding in file.findings:
            if (finding.evidence != "instruction") is operations:  # "relocation pv_ops+0xc0 (write_msr)"
                what = finding.evidence.split()[-1].strip("()") if operations else finding.kind
                by_module = found.setdefault(what, {})
                by_module[name] = by_module.get(name, 0) + 1
    return found


@every_kernel
def test_the_table(kind: str) -> None:
    modules = audited(kind).modules
    assert modules.keys() == files(kind).keys()
    assert all(file.intree and not file.sld_safe for file in modules.values())
    assert [name for name, file in modules.items() if file.sld_aware] == ["kvm-intel"]
    assert {finding.certainty for file in modules.values() for finding in file.findings} == {"exact"}
    reasons: dict[str, int] = {}
    for file in modules.values():
        reasons[file.reason] = reasons.get(file.reason, 0) + 1
    del reasons["nothing found"]
    found = Table(
        "_".join(packages(kind)[kind].name.split("_")[:2]),
        len(modules),
        counted(modules),
        counted(modules, operations=True),
        reasons,
    )
    # true of newer kernels too
    assert found.operations[CR4_WRITER].keys() == {"kvm-intel"}
    for group, name in (("vmx", "kvm-intel"), ("svm", "kvm-amd")):
        assert {module for each in GROUPS[group] for module in found.instructions.get(each, ())} == {name}
    if found.package == TABLES[kind].package:
        assert found == TABLES[kind]
    else:
        warnings.warn(
            f"the table is of {TABLES[kind].package}; {found.package} was compared with binutils only", stacklevel=1
        )


def as_binutils_list_them(kind: str, names: Iterable[str], directory: Path) -> None:
    """Section, offset and kind of each instruction as objdump has them, each use of pv_ops as readelf has it."""
    modules, paths = audited(kind).modules, files(kind)

    def check(name: str) -> None:
        file, path = modules[name], paths[name]
        if path.suffix == ".xz":
            plain = directory / f"{name}.ko"
            with plain.open("wb") as out:
                subprocess.run(["xz", "-dc", path], stdout=out, check=True)
            path = plain
        instructions, relocations = [], []
        for finding in file.findings:
            if finding.evidence == "instruction":
                instructions.append((finding.section, int(finding.offset or "", 16), finding.kind))
            else:
                relocations.append((finding.section, finding.evidence.split()[1]))
        assert sorted(instructions) == binutils.instructions(path), name
        assert sorted(relocations) == operations(path, file.vermagic or ""), name
        if path.parent == directory:
            path.unlink()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # they wait for binutils
        list(pool.map(check, names))


def operations(path: Path, vermagic: str) -> list[tuple[str, str]]:
    """The relocations in code against the members of pv_ops that matter, and against the function that writes CR4."""
    relocations = [r for r in binutils.relocations(path) if r.symbol in (SYMBOL, CR4_WRITER)]
    if not relocations:
        return []
    code = {section.name for section in binutils.sections(path) if "X" in section.flags}
    wanted = layout_for(vermagic)[0].entries
    found = []
    for relocation in relocations:
        place = relocation.addend + (4 if relocation.type in RELATIVE else 0)
        if relocation.section in code and relocation.symbol == CR4_WRITER:
            found.append((relocation.section, CR4_WRITER))
        elif relocation.section in code and place in wanted:
            found.append((relocation.section, f"{SYMBOL}+{place:#x}"))
    return sorted(found)


@every_kernel
def test_what_is_found_is_what_binutils_list(kind: str, tmp_path: Path) -> None:
    modules = audited(kind).modules
    held = [name for name, file in modules.items() if file.findings]
    assert len(held) > 15
    others = sorted(modules.keys() - set(held))
    misleading = [name for name in MISLEADING if name in others]
    as_binutils_list_them(kind, [*held, *misleading, *random.Random(7).sample(others, SAMPLE)], tmp_path)


@pytest.mark.slow
@every_kernel
def test_every_module(kind: str, tmp_path: Path) -> None:
    as_binutils_list_them(kind, audited(kind).modules, tmp_path)


@every_kernel
def test_the_kernel_itself_comes_along(kind: str) -> None:
    """It is in the package too: judged, but not as a module."""
    (kernel,) = audited(kind).others
    assert (kernel.member, kernel.reason) == (
        f"boot/{vmlinuz(kind).name}",
        "the kernel itself: no module loader sees it",
    )
    assert (kernel.sld_aware, kernel.intree, kernel.vermagic, kernel.signer) == (False, False, None, None)
    kinds = {finding.kind for finding in kernel.findings if finding.certainty == "exact"}
    assert kinds >= {"WRMSR", "RDMSR", "MOV CR3", "MOV CR4", "MOV DR7", "LGDT", "LIDT", "LTR", "SWAPGS", "SYSRET"}
    assert not kinds & {"VMXON", "VMLAUNCH", "VMRESUME", "VMREAD", "VMWRITE", "VMRUN"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "cloud-amd64" else pytest.mark.slow) for kind in TABLES]
)
def test_the_kernel_itself_as_objdump_lists_it(kind: str, tmp_path: Path) -> None:
    """20 MB of code without a symbol."""
    raw = tmp_path / "vmlinux"
    raw.write_bytes(vmlinux(vmlinuz(kind).read_bytes(), 512 << 20))
    starts = {section.name: section.address for section in binutils.sections(raw)}
    found = []
    for each in scan(raw.read_bytes()).findings:
        assert each.section is not None
        assert each.offset is not None
        found.append((each.section, starts[each.section] + each.offset, each.kind))
    assert sorted(found) == binutils.instructions(raw)
    assert len(found) > 300

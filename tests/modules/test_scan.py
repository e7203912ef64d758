"""The scan against what is known of Debian's kernels, against objdump, and on code made to mislead."""

from __future__ import annotations

import random
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from modules.debian import modules, vmlinuz
from x86.building import assemble, function, link, needs_tools, run

from splitlock.image.bzimage import vmlinux
from splitlock.modules.foreign import EXECUTABLE, LOOKUPS, loads_foreign_code
from splitlock.modules.paravirt import KIND, layout_for
from splitlock.modules.scan import Finding, Scan, scan
from splitlock.x86.privileged import DEFAULT, KINDS

# kind: {module: instructions}, of Debian's linux-image-6.1.0-56-amd64 (facts: measured there)
INSTRUCTIONS = {
    "VMLAUNCH": {"kvm-intel": 1}, "VMRESUME": {"kvm-intel": 1}, "VMXON": {"kvm-intel": 1}, "VMXOFF": {"kvm-intel": 2},
    "VMPTRLD": {"kvm-intel": 7}, "VMCLEAR": {"kvm-intel": 10}, "INVEPT": {"kvm-intel": 4}, "INVVPID": {"kvm-intel": 16},
    "VMREAD": {"kvm-intel": 275}, "VMWRITE": {"kvm-intel": 351},
    "VMRUN": {"kvm-amd": 2}, "VMLOAD": {"kvm-amd": 2}, "VMSAVE": {"kvm-amd": 2}, "STGI": {"kvm-amd": 2},
    "CLGI": {"kvm-amd": 1}, "INVLPGA": {"kvm-amd": 1},
    "VMCALL": {"vmwgfx": 12, "psmouse": 10, "ptp_kvm": 3, "ptp_vmw": 1},
    "VMMCALL": {"vmwgfx": 12, "psmouse": 10, "ptp_kvm": 3, "ptp_vmw": 1},
    "MOV CR2": {"kvm-intel": 1}, "LLDT": {"kvm-intel": 1}, "WRMSR": {"kvm-amd": 8, "kvm-intel": 7},
    "RDMSR": {"kvm-amd": 7, "kvm-intel": 2}, "WBINVD": {"kvm": 3, "nettel": 1}, "XSETBV": {"kvm": 2},
    "WRPKRU": {"kvm": 2},
}  # fmt: skip
# operation: (modules, sites)
PARAVIRT = {"write_msr": (12, 151), "set_debugreg": (2, 9), "wbinvd": (1, 3)}
OBJDUMP = re.compile(
    r"\t(?:(?:rep|repz|repnz|data16|rex\.?\w*|[c-gs]s) )*("
    + "|".join(sorted({k.lower().split()[0] for k in DEFAULT} - {"mov"}, key=len, reverse=True))
    + r")[bwlqd]?(?:\s|$)|\tmov +[^#\n]*,%(cr|dr|db)(\d+)"
)


@pytest.fixture(scope="session")
def kernel() -> dict[str, Scan]:
    """All modules of the newest 6.1 amd64 kernel, scanned."""
    return {name.removesuffix(".ko"): scan(path.read_bytes(), digest=False) for name, path in modules("amd64").items()}


def count(kernel: dict[str, Scan], *, evidence: str = "instruction") -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, result in kernel.items():
        for f in result.findings:
            if f.evidence.startswith(evidence):
                by_module = found.setdefault(f.kind, {})
                by_module[name] = by_module.get(name, 0) + 1
    return found


def test_the_table_of_debians_kernel(kernel: dict[str, Scan]) -> None:
    release = next(iter(kernel.values())).modinfo["vermagic"][0].split()[0]
    if release != "6.1.0-56-amd64":
        pytest.skip(f"the table is of 6.1.0-56, not {release}")
    assert len(kernel) == 4023
    assert count(kernel) == INSTRUCTIONS
    assert {f.certainty for result in kernel.values() for f in result.findings} == {"exact"}
    assert sum(len(result.imports) for result in kernel.values()) == 184890
    sections = Counter(f.section for f in kernel["kvm-intel"].findings if f.kind == "VMREAD")
    assert sections[".text.unlikely"] == 82
    assert {f.section for f in kernel["kvm-intel"].findings if f.kind in ("VMLAUNCH", "VMRESUME")} == {".noinstr.text"}
    assert {
        f.section for name in ("vmwgfx", "psmouse", "ptp_vmw") for f in kernel[name].findings if "CALL" in f.kind
    } == {".altinstr_replacement"}


def test_what_paravirt_hides(kernel: dict[str, Scan]) -> None:
    sites: dict[str, Counter[str]] = {}
    for name, result in kernel.items():
        for f in result.findings:
            if f.evidence.startswith("relocation pv_ops"):
                operation = f.evidence.split("(")[1].rstrip(")")
                assert f.kind == KIND[operation]
                sites.setdefault(operation, Counter())[name] += 1
    assert {operation: (len(sites[operation]), sites[operation].total()) for operation in PARAVIRT} == PARAVIRT
    assert not {"write_cr0", "write_cr3", "write_cr4", "load_gdt", "load_idt"} & sites.keys()
    assert count(kernel, evidence="relocation cr4_update_irqsoff") == {"MOV CR4": {"kvm-intel": 2}}


def test_foreign_code(kernel: dict[str, Scan]) -> None:
    assert not any(result.imports & (LOOKUPS | EXECUTABLE) for result in kernel.values())
    # what vboxdrv.ko 7.2 imports, as far as it matters here
    assert loads_foreign_code(
        frozenset({"cr4_update_irqsoff", "register_kprobe", "apply_to_page_range", "vmap", "_printk"})
    ) == ["apply_to_page_range", "register_kprobe", "vmap"]
    assert loads_foreign_code(frozenset({"vmap", "apply_to_page_range"})) == []
    assert loads_foreign_code(frozenset({"register_kprobe"})) == []
    assert loads_foreign_code(frozenset({"set_memory_x", "_printk"})) == ["set_memory_x"]


def test_facts_beside_the_instructions(kernel: dict[str, Scan]) -> None:
    aware = {name for name, result in kernel.items() if "handle_guest_split_lock" in result.imports}
    assert aware == {"kvm-intel"}
    assert all(result.modinfo["intree"] == ["Y"] and "sld_safe" not in result.modinfo for result in kernel.values())
    assert {result.signer for result in kernel.values()} == {"Build time autogenerated kernel key"}


def objdump(path: Path) -> Counter[str]:
    """Kinds in what objdump prints, and how often. It decodes linearly."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    found: Counter[str] = Counter()
    for match in OBJDUMP.finditer(listing.stdout):
        if match[1]:
            found[match[1].upper()] += 1
        else:
            found[f"MOV {'CR' if match[2] == 'cr' else 'DR'}{match[3]}"] += 1
    return found


def agrees_with_objdump(name: str, path: Path, result: Scan) -> None:
    assert Counter(f.kind for f in result.findings if f.evidence == "instruction") == objdump(path), name


@needs_tools
def test_objdump_agrees(kernel: dict[str, Scan]) -> None:
    paths = modules("amd64")
    held = [name for name, result in kernel.items() if result.findings]
    misleading = ["bnx2x", "e752x_edac"]  # raw bytes of VMLAUNCH that are none
    for name in [*held, *misleading, *random.Random(7).sample(sorted(kernel), 20)]:
        agrees_with_objdump(name, paths[f"{name}.ko"], kernel[name])


@pytest.mark.slow
@needs_tools
def test_objdump_agrees_on_every_module(kernel: dict[str, Scan]) -> None:
    for name, path in modules("amd64").items():
        agrees_with_objdump(name, path, kernel[name.removesuffix(".ko")])


def members(btf: bytes, wanted: str) -> dict[int, str]:
    """{offset: name} of a structure's pointers, from BPF type information (kernel: Documentation/bpf/btf.rst)."""
    _, _, _, header, type_at, type_size, string_at, _ = struct.unpack_from("<HBBIIIII", btf)
    at, end, strings = header + type_at, header + type_at + type_size, header + string_at

    def name(place: int) -> str:
        return btf[strings + place : btf.index(b"\0", strings + place)].decode()

    types: list[tuple[int, int, int, int, int]] = [(0, 0, 0, 0, 0)]  # name, kind, members, size or type, where they are
    each = {3: 12, 4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    while at < end:
        place, info, size = struct.unpack_from("<III", btf, at)
        kind, number = info >> 24 & 31, info & 0xFFFF
        types.append((place, kind, number, size, at + 12))
        at += 12 + {1: 4, 3: 12, 14: 4, 17: 4}.get(kind, each.get(kind, 0) * number)

    def walk(kind: int, base: int, said: str) -> dict[int, str]:
        _, what, number, below, where = types[kind]
        if what not in (4, 5):
            return walk(below, base, said) if what in (8, 9, 10, 11) else {base: said}
        found: dict[int, str] = {}
        for index in range(number):
            place, inner, bits = struct.unpack_from("<III", btf, where + 12 * index)
            found |= walk(inner, base + (bits & 0xFFFFFF) // 8, name(place) if name(place) != "func" else said)
        return found

    return walk(next(i for i, t in enumerate(types) if t[1] == 4 and name(t[0]) == wanted), 0, "")


@pytest.mark.parametrize(("kind", "version"), [("amd64", "6.1.0"), ("xz", "6.12.0")])
def test_the_layout_of_pv_ops_is_the_kernels_own(kind: str, version: str, tmp_path: Path) -> None:
    raw = tmp_path / "vmlinux"
    raw.write_bytes(vmlinux(vmlinuz(kind).read_bytes(), 512 << 20))
    run("objcopy", "-O", "binary", "-j", ".BTF", raw, tmp_path / "btf")
    own = members((tmp_path / "btf").read_bytes(), "paravirt_patch_template")
    layout, certain = layout_for(version)
    assert certain
    assert {at: name for at, name in own.items() if name in KIND} == {
        at: operation.evidence.split("(")[1].rstrip(")") for at, operation in layout.entries.items()
    }


def test_layouts_of_other_versions_are_a_guess() -> None:
    assert [layout_for(version)[1] for version in ("", "5.10.0", "6.1.0", "6.12.117+deb12", "6.13.1", "6.18.0")] == [
        False, False, True, True, False, False,
    ]  # fmt: skip
    assert "wbinvd" not in str(layout_for("6.18.1 SMP")[0].entries)


def look(directory: Path, source: str, kinds: frozenset[str] = DEFAULT) -> list[Finding]:
    findings: list[Finding] = scan(assemble(directory, source).read_bytes(), kinds).findings
    return findings


def said(findings: list[Finding]) -> list[tuple[str, str, str | None]]:
    return [(f.kind, f.certainty, f.function) for f in findings]


HIDE = ".byte 0x48, 0xb8\n"  # movabs rax, what follows


@needs_tools
def test_exact_and_possible(tmp_path: Path) -> None:
    assert said(look(tmp_path, function("one", "vmlaunch; ret"))) == [("VMLAUNCH", "exact", "one")]
    # data before the function
    padded = function("two", "vmlaunch; nop; nop; nop; nop; nop; ret")
    assert said(look(tmp_path, HIDE + padded)) == [("VMLAUNCH", "exact", "two")]
    # data within it
    hidden = function("three", f"{HIDE}vmlaunch; nop; nop; nop; nop; nop; ret")
    assert look(tmp_path, hidden) == []
    jumped = function("four", f"jmp 1f; {HIDE}1: vmlaunch; nop; nop; nop; nop; nop; ret")
    assert said(look(tmp_path, jumped)) == [("VMLAUNCH", "possible", "four")]
    # undecodable bytes on the way
    broken = function("five", ".byte 0x06; vmlaunch; ret")
    assert said(look(tmp_path, broken)) == [("VMLAUNCH", "possible", "five")]
    # a symbol that is none: the sweep from the function before finds what it was to hide
    liar = ".byte 0xb8, 0, 0; .type seven, @function; seven: .byte 0x48, 0xb8; vmlaunch; nop; nop; nop; nop; nop; ret"
    assert said(look(tmp_path, function("six", liar))) == [("VMLAUNCH", "possible", "seven")]
    # no function over it: from the section's start
    assert said(look(tmp_path, "nop; vmcall; ret")) == [("VMCALL", "exact", None)]
    # in a gap between functions: when all of it is code, up to where the next one starts
    eight = function("eight", "ret")
    for data, certainty in (("", "exact"), (".byte 0x06, 0x07", "possible")):
        gap = f"nop; vmcall; ret\n{data}\n"
        assert said(look(tmp_path, gap + eight)) == [("VMCALL", certainty, None)]
        assert said(look(tmp_path, eight + gap)) == [("VMCALL", certainty, None)]
        assert said(look(tmp_path, eight + gap + function("nine", "ret"))) == [("VMCALL", certainty, None)]


@needs_tools
def test_sections(tmp_path: Path) -> None:
    for section, flags in (
        (".noinstr.text", "ax"),
        (".text.unlikely", "ax"),
        (".altinstr_replacement", "ax"),
        ("odd", "awx"),
    ):
        (finding,) = look(tmp_path, f'.section {section}, "{flags}"\nvmlaunch\n')
        assert (finding.section, finding.offset, finding.certainty) == (section, 0, "exact")
    assert look(tmp_path, '.section .rodata, "a"\nvmlaunch\n') == []
    assert look(tmp_path, '.section .bss, "awx", @nobits\n.skip 100\n') == []


@needs_tools
def test_kinds_asked_for(tmp_path: Path) -> None:
    source = function("one", "vmlaunch; hlt; popfq; iretq; wrmsr; mov cr4, rax; ret")
    assert [f.kind for f in look(tmp_path, source)] == ["VMLAUNCH", "WRMSR", "MOV CR4"]
    everything = look(tmp_path, source, frozenset(KINDS))
    assert [f.kind for f in everything] == ["VMLAUNCH", "HLT", "POPF", "IRET", "WRMSR", "MOV CR4"]
    assert [f.kind for f in look(tmp_path, source, frozenset({"WRMSR"}))] == ["WRMSR"]


@needs_tools
def test_pv_ops(tmp_path: Path) -> None:
    vermagic = '.section .modinfo, "a"\n.asciz "vermagic=6.1.0-56-amd64 SMP"\n.asciz "name=toy"\n.text\n'
    calls = function(
        "one",
        "call [rip+pv_ops+0xc0]; call qword ptr [pv_ops+0x20]; jmp [rip+pv_ops+0x28]; mov rax, [rip+pv_ops+0x10]; "
        "call [rip+pv_ops+0xf8]; cmp qword ptr [rip+pv_ops+0xc0], 1; ret",
    )
    found = look(tmp_path, vermagic + calls)
    assert [(f.kind, f.certainty, f.instruction) for f in found] == [
        ("WRMSR", "exact", "call qword ptr [pv_ops+0xc0]"),
        ("MOV CR0", "exact", "call qword ptr [pv_ops+0x20]"),
        ("MOV CR4", "exact", "jmp qword ptr [pv_ops+0x28]"),
        ("MOV DRn", "possible", "mov rax, [pv_ops+0x10]"),
    ]
    assert {f.certainty for f in look(tmp_path, calls)} == {"possible"}  # for which kernel?


@needs_tools
def test_malformed_text(tmp_path: Path) -> None:
    raw = assemble(tmp_path, "nop\n.byte 0x06\nret\n").read_bytes()
    assert scan(raw).malformed is None
    assert scan(raw, text=True).malformed == "no instruction at .text+0x1"
    cut = assemble(tmp_path, "nop\n.byte 0x48, 0xb8\n").read_bytes()
    assert scan(cut, text=True).malformed == "no instruction at .text+0x1"


@needs_tools
def test_linked_files(tmp_path: Path) -> None:
    source = function("one", "vmlaunch; ret") + function("two", "mov cr4, rax; ret")
    made = link(tmp_path, source)
    assert said(scan(made.read_bytes()).findings) == [("VMLAUNCH", "exact", "one"), ("MOV CR4", "exact", "two")]
    run("strip", "-s", made)
    result = scan(made.read_bytes())
    assert [(f.kind, f.certainty) for f in result.findings] == [("VMLAUNCH", "exact"), ("MOV CR4", "exact")]
    assert (result.name, result.signer, result.type, len(result.sha256 or "")) == (None, None, 3, 64)


def test_the_kernel_itself() -> None:
    found = Counter(
        f.kind for f in scan(vmlinux(vmlinuz("amd64").read_bytes(), 512 << 20)).findings if f.certainty == "exact"
    )
    assert found["WRMSR"] > 20
    assert found["MOV CR4"] > 2
    assert not found.keys() & {"VMLAUNCH", "VMRUN", "VMXON"}

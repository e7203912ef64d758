"""The policy kernel-2020 on assembled modules: what the posted patches would have done, instruction by instruction."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlock.modules.policy import load
from splitlock.modules.scan import scan
from splitlock.modules.sweep import sweep
from splitlock.modules.verdict import Verdict, judge

Assemble = Callable[..., bytes]

VMX = "module: Module has VMX instructions and is not marked 'sld_safe', boot with: 'split_lock_detect=off': toy"
REGISTERS = "module: Module writes to CRn or DRn, please use the proper accessors: toy"
MALFORMED = "module: Module text malformed: toy"


@pytest.fixture
def assemble(tmp_path: Path) -> Assemble:
    """`assemble(text, "key=value", ..., section=".text")`: the object file, with a .modinfo like a module's."""

    def build(text: str, *modinfo: str, section: str = ".text") -> bytes:
        source = tmp_path / "toy.S"
        info = "".join(f'.asciz "{entry}"\n' for entry in ("name=toy", *modinfo))
        source.write_text(
            f'.section .modinfo,"a"\n{info}.section {section},"ax"\n.globl f\n.type f,@function\n'
            f"f:\n{text}\nret\n.size f,.-f\n"
        )
        subprocess.run(["cc", "-c", "-o", tmp_path / "toy.o", source], check=True)
        return (tmp_path / "toy.o").read_bytes()

    return build


def judged(data: bytes, policy: str = "kernel-2020") -> Verdict:
    return judge(scan(data), load(policy), data)


@pytest.mark.parametrize(
    "instruction",
    [
        "vmcall", "vmlaunch", "vmresume", "vmxoff", "vmread %rax, (%rdi)", "vmwrite (%rdi), %rax",
        "vmptrld (%rdi)", "vmptrst (%rdi)", "vmclear (%rdi)", "vmxon (%rdi)", "insertq %xmm1, %xmm0",
    ],
)  # fmt: skip
def test_vmx_needs_sld_safe(assemble: Assemble, instruction: str) -> None:
    answer = judged(assemble(f"nop\n{instruction}"))
    assert (answer.verdict, answer.log) == ("refuse", VMX)
    assert judged(assemble(instruction, "sld_safe=N")).verdict == "allow"  # the key counts, not its value
    assert judged(assemble(instruction, "intree=Y")) == ("allow", "in-tree: not looked at", "", frozenset())


@pytest.mark.parametrize("instruction", ["mov %rax, %cr2", "mov %rax, %cr4", "mov %rax, %cr8", "mov %rax, %db7"])
def test_register_writes_whatever_the_flags(assemble: Assemble, instruction: str) -> None:
    answer = judged(assemble(instruction, "sld_safe=Y"))
    assert (answer.verdict, answer.log) == ("refuse", REGISTERS)
    assert judged(assemble(instruction, "intree=Y")).verdict == "allow"


@pytest.mark.parametrize(
    "instruction",
    [
        "invept (%rdi), %rax", "invvpid (%rdi), %rax", "vmfunc", "vmrun", "vmmcall", "wrmsr", "lgdt (%rdi)", "lmsw %ax",
        "clts", "mov %cr4, %rax", "mov %db7, %rax", "rdrand %eax", "rdseed %rax", "rdpid %rax", "cmpxchg16b (%rdi)",
        "xsaves (%rdi)", "sgdt (%rdi)",
    ],
)  # fmt: skip
def test_the_rest_is_let_in(assemble: Assemble, instruction: str) -> None:
    assert judged(assemble(instruction)).verdict == "allow"


def test_text_only(assemble: Assemble) -> None:
    for section in (".noinstr.text", ".text.unlikely", ".init.text"):
        data = assemble("vmlaunch", section=section)
        assert judged(data).verdict == "allow"
        assert judged(data, "refuse").verdict == "refuse"


def test_data_puts_it_out_of_step(assemble: Assemble) -> None:
    # 48 B8: `movabs` swallows the eight bytes behind it; a symbol says where the function really starts.
    hidden = ".byte 0x48, 0xb8\n.globl g\n.type g,@function\ng:\nvmlaunch\nnop\nnop\nnop\nnop\nnop\nret\n.size g,.-g"
    data = assemble(hidden)
    assert [kind for kind, _ in sweep(data)] == []
    assert judged(data).verdict == "allow"
    assert judged(data, "refuse").verdict == "refuse"


def test_malformed_text_is_refused(assemble: Assemble) -> None:
    data = assemble("nop\n.byte 0x06\nvmlaunch", "sld_safe=Y")
    answer = judged(data)
    assert (answer.verdict, answer.log) == ("refuse", MALFORMED)
    assert list(sweep(data)) == [("MALFORMED", 1)]
    assert judged(assemble(".byte 0x06", "intree=Y")).verdict == "allow"


def test_the_first_instruction_decides(assemble: Assemble) -> None:
    assert judged(assemble("mov %rax, %cr0\nvmxon (%rdi)")).log == REGISTERS
    assert judged(assemble("vmxon (%rdi)\nmov %rax, %cr0")).log == VMX
    assert judged(assemble("vmxon (%rdi)\nmov %rax, %cr0", "sld_safe=Y")).log == REGISTERS
    assert judged(assemble("vmxon (%rdi)\n.byte 0x06")).log == VMX


def test_immediates_are_no_instructions(assemble: Assemble) -> None:
    assert judged(assemble("and $0xf, %edx\nadd %eax, %edx")).verdict == "allow"  # 83 E2 0F 01 C2
    assert judged(assemble("movabs $0xc2010f, %rax")).verdict == "allow"


def test_linear_policies_need_the_file(assemble: Assemble) -> None:
    data = assemble("nop")
    with pytest.raises(TypeError, match="needs the file"):
        judge(scan(data), load("kernel-2020"))

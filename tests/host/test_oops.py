"""What is said of an oops: held against objdump, nm and arithmetic, on real kernels' dumps and on made ones."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
from host.dumps import DATA, HERE, read, real

from splitlock.host.oops.explanation import explain
from splitlock.report.oops_text import oops_lines


# From the consoles, by hand: the register that the instruction names, its displacement, the sum's last six bits.
@pytest.mark.parametrize(
    ("name", "instruction", "address", "past"),
    [
        ("6.1-module", "lock inc dword ptr [rdi+0x3d]", 0xFFFFFFFFC0203400 + 0x3D, 1),
        ("6.1-timer", "lock inc dword ptr [rdi+0x3d]", 0xFFFFFFFFC0203400 + 0x3D, 1),
        ("6.12-module", "lock inc dword ptr [rdi+0x3d]", 0xFFFFFFFFC02035C0 + 0x3D, 1),
        ("6.12-skb", "lock inc dword ptr [rax+0x20]", 0xFFFF888004FC569E + 0x20, 2),
        ("7.2-skb", "lock inc dword ptr [rdx+0x20]", 0xFFFF88800604C69E + 0x20, 2),
        ("7.2-timer", "lock inc dword ptr [r12+0x3d]", 0xFFFFFFFFC0201040 + 0x3D, 1),
        ("xdp-7.1.8", "lock inc dword ptr [rax+0x20]", 0xFF33735342D478DE + 0x20, 2),
    ],
)
def test_real_kernels(name: str, instruction: str, address: int, past: int) -> None:
    oops = real(name)
    assert oops.instruction is not None
    assert oops.operand is not None
    assert oops.instruction.text == instruction
    assert (oops.operand.address, oops.operand.size, oops.operand.past) == (f"{address:#x}", 4, past)
    assert oops.fits == "yes"
    # the code before the instruction, too, decodes to it: objdump's word
    code = read((DATA / f"oops-{name}.txt").read_text()).code[42:]
    assert disassembled(code) == instruction


def disassembled(code: bytes) -> str:
    """The first instruction, by objdump, in our spelling."""
    raw = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
    file = raw / f"oops-{code.hex()[:24]}"
    file.write_bytes(code)
    try:
        command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn", str(file)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        file.unlink()
    (text,) = re.findall(r"^ +0:\t(.*?) *$", out, re.M)
    return re.sub(r"(,)(?=\S)", ", ", text.replace("DWORD PTR", "dword ptr").replace("QWORD PTR", "qword ptr"))


def test_where_the_machine_stopped() -> None:
    for name in ("6.1-timer", "6.12-timer", "7.2-timer"):
        oops = real(name)
        assert oops.interrupt
        assert oops.panic == "Fatal exception in interrupt"
        assert "The whole machine stopped" in " ".join(oops.means)
        assert oops.says.startswith("the Linux kernel stopped the machine: the function splitoops_get of the module")
    assert "was killed" in " ".join(real("6.1-module").means)


def test_whose_it_is() -> None:
    oops = real("6.12-module")
    assert (oops.whose, oops.foreign) == ("foreign module", ["splitoops"])
    assert oops.report.startswith("who makes the module splitoops (from outside Linux, unsigned)")
    oops = real("7.2-skb")  # the kernel's own function, called by such a module
    assert (oops.whose, oops.foreign) == ("kernel", ["splitoops"])
    assert "suspect that module first" in oops.means[0]


def test_a_tool_is_not_to_blame_for_what_it_is_asked_to_do() -> None:
    oops = real("7.2-mutex")
    assert oops.place is not None
    assert oops.blamed is not None
    assert oops.operand is not None
    assert (oops.place.function, oops.blamed.function) == ("mutex_lock", "splitoops_init")
    assert (oops.operand.size, oops.operand.past) == (8, 4)
    assert oops.whose == "foreign module"
    assert "bug in the module splitoops" in oops.means[0]
    assert "mutex_lock only does what it is asked to" in oops.means[0]
    for name in ("6.12-skb", "7.2-skb", "xdp-7.1.8"):
        assert real(name).blamed == real(name).place


@pytest.mark.parametrize(
    ("symbol", "tool"),
    [
        ("_raw_spin_lock", True), ("_raw_spin_lock_irqsave", True), ("native_queued_spin_lock_slowpath", True),
        ("__mutex_lock.constprop.0", True), ("mutex_unlock", True), ("down_read", True), ("up", True),
        ("rwsem_down_write_slowpath", True), ("refcount_dec_and_lock", True), ("skb_clone", False),
        ("update_load", False), ("download", False), ("complete_all", True), ("queue_work_on", False),
    ],
)  # fmt: skip
def test_what_a_tool_is(symbol: str, tool: bool) -> None:
    text = f"Split lock detected\nRIP: 0010:{symbol}+0x1/0x9\nCall Trace:\n caller+0x1/0x2\n"
    oops = explain(read(text), HERE)
    assert oops.blamed is not None
    assert oops.blamed.function == ("caller" if tool else symbol)


def test_off_hides_it_is_always_said() -> None:
    for path in DATA.glob("oops-*.txt"):
        assert any("split_lock_detect=off hides it" in said for said in explain(read(path.read_text()), HERE).means)


def test_no_code_in_the_log_is_said_with_the_way() -> None:
    oops = real("6.1-no-code")
    assert (oops.instruction, oops.operand, oops.fits) == (None, None, "unknown")
    assert any("--module splitoops.ko" in missing for missing in oops.missing)


# Made dumps

NAMES = ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))


def made(code: bytes, registers: dict[str, int], *, before: bytes = b"\x90" * 4, more: str = "") -> str:
    """A dump with this code at its place."""
    shown = " ".join(f"{byte:02x}" for byte in before) + f" <{code[0]:02x}> " + " ".join(f"{b:02x}" for b in code[1:])
    values = " ".join(f"{_name(name)}: {value:016x}" for name, value in registers.items())
    return (
        "Oops: Split lock detected\n: 0000 [#1] SMP NOPTI\n"
        "CPU: 3 UID: 0 PID: 42 Comm: prog Not tainted 6.12.9-amd64 #1 Debian 6.12.9-1\n"
        f"RIP: 0010:some_function+0x10/0x40\nCode: {shown}\nRSP: 0018:ffffc90000403b08 EFLAGS: 00000202\n{values}\n"
        f"{more}Call Trace:\n <TASK>\n caller+0x5/0x10\n </TASK>\nModules linked in: hid\n---[ end trace 0 ]---\n"
    )


def _name(register: str) -> str:
    return f"R{int(register[1:]):02d}" if register[1:].isdigit() else register.upper()


def assembled(tmp_path: Path, lines: list[str]) -> list[bytes]:
    """The bytes of instructions in Intel's syntax, by as and objdump."""
    source, target = tmp_path / "a.s", tmp_path / "a.o"
    source.write_text(".intel_syntax noprefix\n" + "\n".join(lines) + "\n")
    subprocess.run(["as", "--64", "-o", target, source], check=True)
    out = subprocess.run(["objdump", "-d", "-w", target], capture_output=True, text=True, check=True).stdout
    return [bytes.fromhex(raw) for raw in re.findall(r"^ +[0-9a-f]+:\t((?:[0-9a-f]{2} )+)", out, re.M)]


def test_addresses_of_all_forms(tmp_path: Path) -> None:
    """Base, index, scale, displacement, GS; 2, 4 and 8 bytes; crossing and not: by the arithmetic of the manual."""
    chance = random.Random(23)
    lines, expected = [], []
    for _ in range(400):
        base, index = chance.sample(NAMES, 2)
        scale, size = chance.choice((1, 2, 4, 8)), chance.choice((2, 4, 8))
        displacement = chance.choice((0, 1, 0x20, 0x7F, 0x80, 0x1234, -1, -0x40, -0x5678))
        segment = chance.choice(("", "", "", "gs:"))
        registers = {name: chance.randrange(1 << 64) for name in NAMES}
        kind = {2: "word", 4: "dword", 8: "qword"}[size]
        operand = f"{kind} ptr {segment}[{base}+{index}*{scale}{displacement:+#x}]"
        lines.append(chance.choice((f"lock inc {operand}", f"lock bts {operand}, 3", f"lock not {operand}")))
        address = registers[base] + scale * registers[index] + displacement + (0xFFFF888012340000 if segment else 0)
        expected.append((registers, address % (1 << 64), size))
    codes = assembled(tmp_path, lines)
    assert len(codes) == len(lines)
    for text, code, (registers, address, size) in zip(lines, codes, expected, strict=True):
        dump = made(
            code, registers, more="FS:  0000000000000000(0000) GS:ffff888012340000(0000) knlGS:0000000000000000\n"
        )
        oops = explain(read(dump), HERE)
        past = max(0, address % 64 + size - 64)
        assert oops.operand is not None, text
        assert (oops.operand.address, oops.operand.past) == (f"{address:#x}", past), text
        assert oops.fits == ("yes" if past else "no"), text
        assert past or any("does not fit" in said for said in oops.means)


def test_a_register_that_is_missing(tmp_path: Path) -> None:
    (code,) = assembled(tmp_path, ["lock inc dword ptr [r13+rbx*4]"])
    oops = explain(read(made(code, {"rbx": 5})), HERE)
    assert oops.operand is not None
    assert (oops.operand.address, oops.fits) == (None, "unknown")
    assert "R13" in oops.operand.why


def test_gs_whose_base_is_missing(tmp_path: Path) -> None:
    (code,) = assembled(tmp_path, ["lock inc dword ptr gs:[rax]"])
    oops = explain(read(made(code, {"rax": 62})), HERE)
    assert oops.operand is not None
    assert oops.operand.address is None
    assert "GS" in oops.operand.why


def test_an_instruction_that_cannot_raise_it(tmp_path: Path) -> None:
    (code,) = assembled(tmp_path, ["mov rax, [rbx]"])
    oops = explain(read(made(code, {"rbx": 62})), HERE)
    assert (oops.fits, oops.operand) == ("no", None)
    assert any("does not fit" in said for said in oops.means)


def test_bytes_that_are_no_instruction() -> None:
    oops = explain(read(made(b"\xf0\xf0\xf0\xf0" + b"\xc3" * 17, {"rdi": 62})), HERE)
    assert (oops.instruction, oops.operand, oops.fits) == (None, None, "no")
    assert "(bad)" not in "".join(oops_lines(oops))


def test_a_locked_instruction_that_cannot_split(tmp_path: Path) -> None:
    (code,) = assembled(tmp_path, ["lock cmpxchg16b [rdi]"])  # raises #GP where it is not aligned: the SDM
    oops = explain(read(made(code, {"rdi": 62})), HERE)
    assert oops.fits == "no"
    assert not any("not a locked one" in said for said in oops.means)


def test_reasons_are_true() -> None:
    text = made(b"\xf0\xff\x07" + b"\xc3" * 18, {"rdi": 62})
    for lost, words in (("<f0>", "no byte is marked"), ("Code:", "no line that begins with Code:")):
        oops = explain(read("\n".join(line.replace("<f0>", "f0") if lost == "<f0>" else line for line in
                                      text.splitlines() if lost != "Code:" or "Code:" not in line)), HERE)  # fmt: skip
        assert any(words in missing for missing in oops.missing), lost
    backwards = (DATA / "oops-6.12-module.txt").read_text().splitlines()[::-1]
    missing = " ".join(explain(read("\n".join(backwards)), HERE).missing)
    assert "journalctl -r" in missing
    assert "no line with RIP" not in missing


def test_code_that_is_cut_within_the_instruction() -> None:
    oops = explain(read(made(b"\xf0\xff", {"rdi": 62})), HERE)
    assert (oops.instruction, oops.fits) == (None, "unknown")
    assert any("cut" in missing for missing in oops.missing)


def test_a_kernel_of_32_bits_is_decoded_as_such() -> None:
    text = (
        "Split lock detected\n: 0000 [#1] SMP\nEIP: bump+0x9/0x20 [drv]\nCode: 90 <f0> ff 40 3e 40 c3\n"
        "EAX: f8a01000 EBX: 00000000 ECX: 00000001 EDX: c1234560\nESI: 0 EDI: 00000000 EBP: c9b7fd80 ESP: c9b7fd78\n"
    )
    oops = explain(read(text), HERE)
    assert oops.bits == 32
    assert oops.operand is not None
    assert (oops.operand.address, oops.operand.past) == ("0xf8a0103e", 2)


def test_a_kernel_without_detection() -> None:
    oops = explain(read("alignment check: 0000 [#1] SMP PTI\nRIP: 0010:f+0x1/0x2\n"), HERE)
    assert not oops.detected
    assert any("before 5.7" in said and "hypervisor" in said for said in oops.means)
    assert "host" in oops.report


def test_a_virtual_machine_s_kernel_is_told_of_its_host() -> None:
    said = real("6.12-module").means
    assert any(
        "virtual machine (QEMU)" in each and "whatever this kernel's split_lock_detect= is" in each for each in said
    )
    bare = (DATA / "oops-6.12-module.txt").read_text().replace("QEMU Standard PC (i440FX + PIIX, 1996)", "LENOVO 21MN")
    assert not any("virtual machine" in each for each in explain(read(bare), HERE).means)


def test_a_bpf_program_is_named_by_its_own_name() -> None:
    text = "Oops: Split lock detected\nRIP: 0010:bpf_prog_6deef7357e7b4530_count_it+0x4c/0x60\n"
    oops = explain(read(text), HERE)
    assert "BPF program count_it" in oops.means[0]
    assert "bpftool" in oops.report


def test_nothing_is_made_up_of_nothing() -> None:
    oops = explain(read("Split lock detected\n"), HERE)
    assert (oops.place, oops.instruction, oops.operand, oops.fits) == (None, None, None, "unknown")
    assert len(oops.missing) >= 2
    assert oops_lines(oops)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("6.12.9+deb13-amd64 #1 Debian 6.12.9-1", "reportbug"),
        ("7.0.0-30-generic #30-Ubuntu SMP", "ubuntu-bug"),
        ("6.17.7-200.fc43.x86_64 #1", "bugzilla.redhat.com"),
        ("6.9.0", "your distribution's kernel"),
    ],
)
def test_whom_to_tell(version: str, words: str) -> None:
    text = made(b"\xf0\xff\x07", {"rdi": 62}).replace("6.12.9-amd64 #1 Debian 6.12.9-1", version)
    assert words in explain(read(text), HERE).report


def test_modules_from_outside_are_named_to_who_reports_it() -> None:
    text = (DATA / "oops-xdp-7.1.8.txt").read_text().replace("Tainted: G S  ", "Tainted: P S O")
    text = text.replace("Modules linked in:", "Modules linked in: nvidia(PO) hid nvidia_drm(PO) vboxdrv(OE)")
    oops = explain(read(text), HERE)
    assert oops.outside == ["nvidia", "nvidia_drm", "vboxdrv"]
    assert (oops.foreign, oops.whose) == ([], "kernel")
    assert "without modules from outside Linux: nvidia, nvidia_drm, vboxdrv" in oops.report


# Text


@pytest.mark.parametrize("path", sorted(DATA.glob("oops-*.txt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("verbose", [False, True])
def test_text_fits_a_terminal(path: Path, verbose: bool) -> None:
    lines = oops_lines(explain(read(path.read_text()), HERE), verbose=verbose)
    assert all(len(line) <= 80 for line in lines if " " in line.strip())
    assert any("Report it to" in line for line in lines)

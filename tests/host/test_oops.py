"""What is said of an oops: held against objdump, nm and arithmetic, on real kernels' dumps and on made ones."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
from modules.debian import vmlinuz

from splitlock._errors import SplitlockError
from splitlock.host.causes import Causes
from splitlock.host.oops import explain
from splitlock.host.oops_files import Files
from splitlock.linux.oops import Collector, Dump, head
from splitlock.report.oops import Oops
from splitlock.report.oops_text import cause_lines, oops_lines

DATA = Path(__file__).parents[1] / "linux" / "data"
HERE = Files(root=None)  # this machine's own files are not looked at


def read(text: str) -> Dump:
    """The only dump in a text."""
    found: list[Collector] = []
    for line in text.splitlines():
        if head(line):
            found.append(Collector(line))
        elif found:
            found[-1].feed(line)
    (one,) = found
    return one.dump


def real(name: str) -> Oops:
    """One of a guest's, explained from its text alone."""
    return explain(read((DATA / f"oops-{name}.txt").read_text()), HERE)


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


# Files

MODULE = """\
static const char name[] __attribute__((section(".modinfo"), used)) = "name=fakedrv";
static const char magic[] __attribute__((section(".modinfo"), used)) = "vermagic=6.12.9-amd64 SMP preempt";
struct __attribute__((packed)) ring { char head[61]; unsigned users; char rest[99]; };
struct ring fixed __attribute__((aligned(64)));
void first(void) { asm volatile("nop; nop"); } /* libdw does not take an address of 0 */
static inline __attribute__((always_inline)) void count(struct ring *ring)
{
    asm volatile("lock incl %0" : "+m"(ring->users)); /* THE LINE */
}
__attribute__((noinline)) void by_pointer(struct ring *ring) { count(ring); }
__attribute__((noinline)) void at_home(void) { count(&fixed); }
void init_module(struct ring *ring) { by_pointer(ring); at_home(); }
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A relocatable file that says of itself what a module does."""
    place = tmp_path_factory.mktemp("module")
    (place / "fakedrv.c").write_text(MODULE)
    flags = ["-O2", "-g", "-c", "-fno-pic", "-mcmodel=kernel", "-fcf-protection=none"]
    subprocess.run(["gcc", *flags, "-o", place / "fakedrv.ko", place / "fakedrv.c"], check=True)
    return place / "fakedrv.ko"


def locked(module: Path, function: str) -> tuple[int, int]:
    """The offset of a function's locked instruction, and the function's size: by objdump and nm."""
    out = subprocess.run(["objdump", "-d", "-w", module], capture_output=True, text=True, check=True).stdout
    body = out.split(f"<{function}>:\n")[1].split("\n\n")[0]
    first = int(re.match(r" *([0-9a-f]+):", body)[1], 16)  # type: ignore[index]
    at = int(re.search(r"^ *([0-9a-f]+):\t.*lock", body, re.M)[1], 16)  # type: ignore[index]
    symbols = subprocess.run(["nm", "-S", module], capture_output=True, text=True, check=True).stdout
    return at - first, int(re.search(rf"^\w+ (\w+) T {function}$", symbols, re.M)[1], 16)  # type: ignore[index]


def dumped(
    module: Path, function: str, registers: str = "RDI: ffff888000001000", code: str = "", name: str = "fakedrv"
) -> str:
    """A dump as of that module's function, without code as a rule."""
    offset, size = locked(module, function)
    where = f"{function}+{offset:#x}/{size + 15 & ~15:#x} [{name}]"  # kallsyms counts up to the next function
    return (
        f"Oops: Split lock detected\n: 0000 [#1] SMP\n"
        f"CPU: 3 UID: 0 PID: 42 Comm: prog Tainted: G           O        6.12.9-amd64 #1 Debian 6.12.9-1\n"
        f"RIP: 0010:{where}\n{code or 'Code: Unable to access opcode bytes at 0xffffffffc0201000.'}\n{registers}\n"
        f"Call Trace:\n <TASK>\n do_one_initcall+0x5b/0x320\nModules linked in: fakedrv(O)\n---[ end trace 0 ]---\n"
    )


def test_the_module_s_file_has_the_code(module: Path) -> None:
    oops = explain(read(dumped(module, "by_pointer")), Files(modules=(str(module),), root=None))
    assert oops.instruction is not None
    assert oops.operand is not None
    assert (oops.instruction.text, oops.instruction.found_in) == ("lock inc dword ptr [rdi+0x3d]", str(module))
    assert (oops.operand.address, oops.operand.past, oops.fits) == ("0xffff88800000103d", 1, "yes")
    line = MODULE.splitlines().index('    asm volatile("lock incl %0" : "+m"(ring->users)); /* THE LINE */') + 1
    assert oops.place is not None
    assert str(oops.place.source).endswith(f"fakedrv.c:{line}")
    assert [each.function for each in oops.place.inlined] == ["count"]
    assert oops.missing == []


def test_data_of_the_module_s_own_is_named(module: Path) -> None:
    oops = explain(read(dumped(module, "at_home")), Files(modules=(str(module),), root=None))
    assert oops.instruction is not None
    assert oops.operand is not None
    assert oops.instruction.text == "lock inc dword ptr [fixed+0x3d]"  # the file's own bytes have no address yet
    assert (oops.operand.what, oops.operand.address, oops.operand.past) == ("fixed+0x3d", None, 1)
    assert oops.fits == "yes"  # it is aligned to a line, wherever it lies


def test_a_module_of_another_kernel_is_not_used(module: Path) -> None:
    text = dumped(module, "by_pointer").replace("6.12.9-amd64", "6.12.10-amd64")
    oops = explain(read(text), Files(modules=(str(module),), root=None))
    assert oops.instruction is None
    assert any("6.12.9-amd64" in missing and "not used" in missing for missing in oops.missing)


def test_dumps_of_two_kernels_in_one_log(module: Path) -> None:
    files = Files(modules=(str(module),), root=None)
    other = explain(read(dumped(module, "by_pointer").replace("6.12.9-amd64", "6.12.10-amd64")), files)
    right = explain(read(dumped(module, "by_pointer")), files)
    assert (other.instruction is None, right.instruction is None, right.missing) == (True, False, [])


def test_code_of_the_dump_that_is_not_the_file_s(module: Path) -> None:
    """Another build of the same module: its lines would be lies."""
    code = "Code: 90 <f0> ff 87 00 01 00 00 c3"
    oops = explain(read(dumped(module, "by_pointer", code=code)), Files(modules=(str(module),), root=None))
    assert oops.instruction is not None
    assert oops.instruction.found_in == "the log"
    assert oops.place is not None
    assert oops.place.source is None
    assert any("another build" in missing for missing in oops.missing)


def test_a_directory_of_debug_files(module: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "fakedrv.ko").write_bytes(module.read_bytes())
    (tmp_path / "deep" / "other.ko").write_bytes(b"no module")
    oops = explain(read(dumped(module, "by_pointer")), Files(debug=str(tmp_path), root=None))
    assert oops.place is not None
    assert oops.place.source is not None


def test_this_machine_s_own_files(module: Path, tmp_path: Path) -> None:
    import zstandard

    place = tmp_path / "lib/modules/6.12.9-amd64/updates/dkms"
    place.mkdir(parents=True)
    (place / "fakedrv.ko.zst").write_bytes(zstandard.compress(module.read_bytes()))
    oops = explain(read(dumped(module, "by_pointer")), Files(root=str(tmp_path)))
    assert oops.instruction is not None  # its code; lines of a compressed file libdw cannot read
    assert oops.instruction.found_in.endswith("fakedrv.ko.zst")


@pytest.mark.parametrize("release", ["6.1/../../../../tmp", "../x", "6.1..", "6.1\x00", "6.1;id"])
def test_a_log_s_release_never_leads_elsewhere(module: Path, tmp_path: Path, release: str) -> None:
    asked: list[str] = []
    files = Files(root=str(tmp_path))
    files._tried = asked.append  # type: ignore[method-assign,assignment]
    explain(read(dumped(module, "by_pointer").replace("6.12.9-amd64", release)), files)
    assert asked == []


@pytest.mark.parametrize("option", ["vmlinux", "modules"])
def test_a_file_that_is_none(tmp_path: Path, option: str) -> None:
    (tmp_path / "text").write_text("no kernel")
    for name in ("text", "missing"):
        path = str(tmp_path / name)
        with pytest.raises(SplitlockError, match=re.escape(path)):
            Files(vmlinux=path, root=None) if option == "vmlinux" else Files(modules=(path,), root=None)


KERNEL = """\
const char banner[] = "Linux version 6.12.9-amd64 (debian-kernel@lists.debian.org) #1 SMP";
struct inner { int pad[7]; unsigned users; };
struct outer {
    char head[61]; unsigned count; struct inner *in; struct inner own[3];
    union { long both; struct { unsigned low, high; }; }; unsigned char *start; unsigned long end;
} __attribute__((packed));
struct outer fixed __attribute__((aligned(64)));
#define LOCKED(lvalue) asm volatile("lock incl %0" : "+m"(lvalue))
__attribute__((noinline)) void member(int unused, struct outer *o) { LOCKED(o->count); }
__attribute__((noinline)) void deeper(struct outer *o) { LOCKED(o->in->users); }
__attribute__((noinline)) void element(struct outer *o) { LOCKED(o->own[1].users); }
__attribute__((noinline)) void unnamed(struct outer *o) { LOCKED(o->high); }
__attribute__((noinline)) void sum(struct outer *o) { LOCKED(*(unsigned *)(o->start + o->end + 32)); }
__attribute__((noinline)) void global(void) { LOCKED(fixed.count); }
void _start(void) { member(1, 0); deeper(0); element(0); unnamed(0); sum(0); global(); }
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linked file with what a vmlinux has: banner, symbols, lines, types."""
    place = tmp_path_factory.mktemp("kernel")
    (place / "k.c").write_text(KERNEL)
    flags = ["-O2", "-g", "-gbtf", "-nostdlib", "-static", "-fno-pic", "-mcmodel=kernel", "-fcf-protection=none",
             "-Wl,-Ttext=0xffffffff81000000", "-Wno-address-of-packed-member"]  # fmt: skip
    subprocess.run(["gcc-12", *flags, "-o", place / "vmlinux", place / "k.c"], check=True)
    return place / "vmlinux"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("member", "o->count (struct outer)"),
        ("deeper", "o->in->users (struct inner)"),
        ("element", "o->own[1].users (struct outer)"),
        ("unnamed", "o->high (struct outer)"),
        ("sum", ("o->start + o->end + 0x20", "o->end + o->start + 0x20")),
        ("global", "fixed+0x3d"),
    ],
)
def test_the_kernel_s_types(kernel: Path, function: str, words: str | tuple[str, ...]) -> None:
    text = dumped(kernel, function).replace(" [fakedrv]", "")
    oops = explain(read(text), Files(vmlinux=str(kernel), root=None))
    assert oops.operand is not None
    assert oops.operand.what in words
    assert oops.place is not None
    assert str(oops.place.source).endswith(f"k.c:{KERNEL[: KERNEL.index(f'void {function}(')].count(chr(10)) + 1}")
    if function == "global":  # KASLR moves it by whole lines
        assert (oops.operand.address, oops.operand.past, oops.fits) == (None, 1, "yes")


def test_a_kernel_of_another_release_is_not_used(kernel: Path) -> None:
    text = dumped(kernel, "member").replace(" [fakedrv]", "").replace("6.12.9-amd64", "6.12.8-amd64")
    oops = explain(read(text), Files(vmlinux=str(kernel), root=None))
    assert oops.operand is None
    assert any("6.12.9-amd64" in missing for missing in oops.missing)


def test_debian_s_kernel_names_the_structure() -> None:
    """A boot image has no lines, but the kernel's names and types."""
    image = vmlinuz("amd64")
    dump = read((DATA / "oops-6.1-skb.txt").read_text())
    if image.name != f"vmlinuz-{dump.release}":
        pytest.skip(f"the dump is of {dump.release}, Debian has {image.name} now")
    oops = explain(dump, Files(vmlinux=str(image), root=None))
    assert oops.operand is not None
    assert oops.operand.what == "skb->end + skb->head + 0x20"  # skb_shinfo(skb)->dataref
    assert any(f"linux-image-{dump.release}-dbg" in missing for missing in oops.missing)


# Causes


def cause(oops: Oops) -> list[str]:
    """Names of the known causes that fit."""
    return [found.name for found in Causes().of_oops(oops)]


def test_the_known_causes_fit_what_they_were_found_with() -> None:
    # the call trace of netbirdio/netbird 7331, Debian's 7.1.8
    text = (
        "Oops: Split lock detected\nCPU: 9 UID: 1000 PID: 97729 Comm: Bun Pool 1  Not tainted 7.1.8+deb13-amd64\n"
        "RIP: 0010:skb_clone+0x154/0x1e0\nCall Trace:\n <IRQ>\n raw_local_deliver+0x1ed/0x2c0\n"
        " ip_protocol_deliver_rcu+0x54/0x1c0\n ip_local_deliver_finish+0x85/0x100\n"
    )
    oops = explain(read(text), HERE)
    assert cause(oops) == ["xdp-on-loopback"]
    assert oops.interrupt
    assert "The program Bun Pool 1 only happened to be running" in oops.means[0]
    assert cause(explain(read(text.replace(" raw_local", " ? raw_local")), HERE)) == []
    assert cause(real("7.2-skb")) == []  # the same function, from elsewhere
    assert cause(real("xdp-7.1.8")) == ["xdp-on-loopback"]  # the bug itself, in a guest
    razer = "Split lock detected\nRIP: 0010:razer_raw_event+0x34d/0x5b0 [razerkbd]\n"
    assert cause(explain(read(razer), HERE)) == ["openrazer-keyboard"]


@pytest.mark.parametrize(
    ("register", "address", "past"),
    [  # what two users published: netbirdio/netbird 7295, and a workstation that died of a test's name server queries
        (0xFFFF88DDCA5E781F, 0xFFFF88DDCA5E783F, 3),
        (0xFFFF893B5292699E, 0xFFFF893B529269BE, 2),
    ],
)
def test_users_registers(register: int, address: int, past: int) -> None:
    text = (
        "Oops: Split lock detected\n: 0000 [#1] SMP NOPTI\nRIP: 0010:skb_clone+0x159/0x1e0\nCode: 90 <f0> ff 42 20 90\n"
        f"RDX: {register:016x} RSI: 0000000000000820 RDI: 0000000000000000\n"
        "Call Trace:\n <IRQ>\n raw_v4_input+0x9c/0x1e0\n"
    )
    oops = explain(read(text), HERE)
    assert oops.operand is not None
    assert (oops.operand.address, oops.operand.past, oops.fits) == (f"{address:#x}", past, "yes")
    assert cause(oops) == ["xdp-on-loopback"]


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        ("CHTTPClientThre", "steam-client"), ("CJobMgr::m_Work", "steam-client"), ("osu!.exe", "osu-in-wine"),
        ("bambustu_main", "bambu-network-plugin"), ("EMT-3", "virtualbox-on-kvm"), ("dosemu2.bin", "dosemu2"),
        ("remake", "remake"),
    ],
)  # fmt: skip
def test_causes_by_task(comm: str, name: str) -> None:
    assert [found.name for found in Causes().of_task(comm)] == [name]


def test_a_task_of_nobody() -> None:
    assert Causes().of_task("java") == []
    assert Causes().of_task("*") == []


GOOD = '[[cause]]\nname = "mine"\ncomms = ["prog"]\nwhat = "w"\nfix = "f"\nlinks = ["https://example.org/1"]\n'


def test_more_causes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text(GOOD)
    found = Causes([str(tmp_path / "more.toml")]).of_task("prog")
    assert [each.name for each in found] == ["mine"]
    assert cause_lines(found[0])[0].strip() == "known cause: w"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("comms =", "coms ="), "coms"),
        (('comms = ["prog"]\n', ""), "fits nothing"),
        (("https://", "http://"), "no link"),
        (('["https://example.org/1"]', "[]"), "no links"),
        (('fix = "f"\n', ""), "fix"),
        (('"mine"', '"steam-client"'), "steam-client"),
        (('what = "w"', "what = 3"), "what"),
        (("[[cause]]", "[[causes]]"), "cause"),
        (('what = "w"', "what = "), "more.toml"),
    ],
)
def test_a_file_of_causes_is_checked_strictly(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "more.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(SplitlockError, match=re.escape(words)) as caught:
        Causes([str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Text


@pytest.mark.parametrize("path", sorted(DATA.glob("oops-*.txt")), ids=lambda path: path.stem)
@pytest.mark.parametrize("verbose", [False, True])
def test_text_fits_a_terminal(path: Path, verbose: bool) -> None:
    lines = oops_lines(explain(read(path.read_text()), HERE), verbose=verbose)
    assert all(len(line) <= 80 for line in lines if " " in line.strip())
    assert any("Report it to" in line for line in lines)

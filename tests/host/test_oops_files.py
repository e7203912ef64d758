"""Files that tell more of an oops: held against objdump, nm, and the source that they were made of."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from host.dumps import DATA, read
from modules.debian import vmlinuz

from splitlock._errors import SplitlockError
from splitlock.host.oops.explanation import explain
from splitlock.host.oops.files import Files

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
    union { unsigned long flags; struct inner *listener; };
} __attribute__((packed));
struct outer fixed __attribute__((aligned(64)));
#define LOCKED(lvalue) asm volatile("lock incl %0" : "+m"(lvalue))
__attribute__((noinline)) void member(int unused, struct outer *o) { LOCKED(o->count); }
__attribute__((noinline)) void deeper(struct outer *o) { LOCKED(o->in->users); }
__attribute__((noinline)) void element(struct outer *o) { LOCKED(o->own[1].users); }
__attribute__((noinline)) void unnamed(struct outer *o) { LOCKED(o->high); }
__attribute__((noinline)) void either(struct outer *o) { LOCKED(o->listener->users); }
__attribute__((noinline)) void sum(struct outer *o) { LOCKED(*(unsigned *)(o->start + o->end + 32)); }
__attribute__((noinline)) void global(void) { LOCKED(fixed.count); }
void _start(void) { member(1, 0); deeper(0); element(0); unnamed(0); either(0); sum(0); global(); }
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
        ("either", "o->listener->users (struct inner)"),
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

"""The kernel bug of docs/kernel-bug-xdp.md on real kernels: is it seen, named and explained, and where is it gone?

What is expected comes from elsewhere: from a model of the kernel's pool of pages, from the registers and bytes in the
oops, from Debian's changelog.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from guest import boots
from guest.conftest import PROGRAMS, Run
from modules.debian import ROOT, STORE, packages, unpacked, vmlinuz

pytestmark = pytest.mark.slow

_LINE, _PAGE = 64, 4096
_REGISTERS = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")  # as instructions number them
_RELEASES = {  # of Debian's kernels with the bug: where they come from
    "6.12": ("bookworm", "linux-image-6.12.113+deb12-cloud-amd64"),
    "7.1": ("trixie-backports", "linux-binary-7.1.8+deb13-cloud-amd64"),  # one that netbird's users had
}
# Without tsc=unstable the kernel changes the code of sched_clock_cpu() late in its boot, while the other CPU runs it.
# QEMU 7.2 on a busy machine now and then executes an int3 there that is gone already; the kernel panics.
_APPEND = "console=ttyS0 tsc=unstable"
_BOTH = pytest.mark.parametrize(("release", "qemu"), [("6.12", "7.2"), ("6.12", "10.0"), ("7.1", "10.0")],
                                indirect=["qemu"])  # fmt: skip

# two ends of a cable with one address of hardware: nobody asks whose an address is, no packet is but the program's
_VETH = """
insmod /veth.ko
ip link add name v0 type veth
unshare -n sleep 1000 &
sleep 1
ip link set veth0 netns $!
for end in v0 veth0; do
    inside=; [ $end = v0 ] || inside="nsenter -t $! -n"
    $inside ip link set $end address 02:00:00:00:00:01
    $inside ip link set $end mtu 9000
    $inside ip link set $end arp off
    $inside ip addr add 10.9.0.$([ $end = v0 ] && echo 1 || echo 2)/24 dev $end
    $inside ip link set $end up
done
exec /xdp /proc/$!/ns/net
"""


@cache
def _package(release: str, name: str) -> Path:
    """A package's contents, of another Debian release. Skips the test where the archive has it no longer."""
    target = STORE / f"unpacked-{name}"
    if not target.exists():
        place = STORE / "other" / name
        place.mkdir(parents=True, exist_ok=True)
        script, lists = ROOT / "scripts" / "apt-from.sh", STORE / "other" / release
        command: list[str | Path] = [script, release, lists, "download", name]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
        found = list(place.glob("*.deb"))
        if done.returncode or not found:
            pytest.skip(f"no {name}: {done.stderr.strip()}")
        subprocess.run(["dpkg-deb", "-x", found[0], target], check=True)
    return target


@cache
def _kernel(release: str) -> Path:
    """A boot image with the bug."""
    (image,) = _package(*_RELEASES[release]).rglob("vmlinuz*")
    return image


@pytest.fixture(scope="session")
def xdp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs of the program alone."""
    place = tmp_path_factory.mktemp("xdp")
    boots.compiled(PROGRAMS / "xdp.c", place / "init")
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
    done = subprocess.run(command, cwd=place, input=b"init\n", capture_output=True, check=True)
    (place / "initrd").write_bytes(done.stdout)
    return place / "initrd"


class _Pool:
    """The pool that generic XDP takes memory from, one page at a time.

    page_pool_alloc() in include/net/page_pool/helpers.h and page_pool_alloc_frag_netmem() in net/core/page_pool.c, as
    they are before dc0df5a0c62c: what is asked for is rounded up to nothing.
    """

    used = _PAGE  # bytes of the page that is shared out

    def take(self, size: int) -> tuple[int, int]:
        """Where in its page a piece lies, and its size."""
        if 2 * size > _PAGE:
            return 0, _PAGE
        offset = 0 if self.used + size > _PAGE else self.used
        self.used = offset + size
        if self.used + size > _PAGE:
            size = _PAGE - offset
            self.used = _PAGE
        return offset, size


def _predicted() -> list[int]:
    """Where in its page skb_shared_info.dataref lies, of the packets of xdp.c whose dataref crosses a line.

    skb_pp_cow_data() in net/core/skbuff.c: 256 bytes of room, the packet with its headers (14 + 20 + 8), and at the end
    skb_shared_info, 320 bytes with dataref at 32; what does not fit into a page goes into pieces of its own.
    """
    pool, found = _Pool(), []
    for length in (part for long in range(3400, 5000) for part in (long, 1)):
        left = length + 42
        head = min(left, _PAGE - 256 - 320)
        offset, size = pool.take(256 + -(-head // 64) * 64 + 320)
        dataref = offset + size - 320 + 32
        if dataref % _LINE > _LINE - 4:
            found.append(dataref)
        left -= head
        while left:
            piece = min(left, _PAGE)
            pool.take(piece)
            left -= piece
    return found


def _operand(console: str) -> int:
    """The operand's address by hand: the dump's bytes are `lock inc dword ptr [register + byte]`; its register."""
    (number, modrm, byte), *_ = re.findall(
        r"Code: [^\r\n]*<f0> (?:(4[0-9a-f]) )?ff ([0-9a-f]{2}) ([0-9a-f]{2})", console
    )
    kind, form, register = int(modrm, 16) >> 6, int(modrm, 16) >> 3 & 7, int(modrm, 16) & 7
    assert (kind, form) == (1, 0)  # a byte is added; inc
    assert register != 4  # no further byte tells of an index
    names = [*_REGISTERS, *(f"R{number:02}" for number in range(8, 16))]
    name = names[register + 8 * (int(number or "0", 16) & 1)]
    value, *_ = re.findall(rf"\b{name}: ([0-9a-f]{{16}})", console)
    return int(value, 16) + int.from_bytes(bytes.fromhex(byte), "little", signed=True)


def _boot(guest: Run, release: str, xdp: Path, *words: object, append: str = "") -> tuple[int, dict[str, Any]]:
    kernel = ["--kernel", _kernel(release), "--initrd", xdp, "--append", f"{_APPEND} {append}"]
    return guest(*kernel, *words, "--duration", 200, timeout=260)


def _done(report: dict[str, Any], packets: int = 6400) -> None:
    """Each packet came at both sockets as it was sent."""
    assert f"xdp: all done, {packets} packets, 0 changed" in report["console"], report["console"][-3000:]


def _told(place: Path, kernel: Path, console: str) -> dict[str, Any]:
    """What `splitlock watch` makes of a console with one oops."""
    (place / "console").write_text(console)
    command = [sys.executable, "-m", "splitlock", "watch", "--no-follow", "--vmlinux", kernel, "--format", "json"]
    done = subprocess.run([*map(str, command), place / "console"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    (event,) = [event for event in map(json.loads, done.stdout.splitlines()) if event.get("oops")]
    return dict(event)


@_BOTH
def test_seen(guest: Run, release: str, qemu: str, xdp: Path) -> None:
    """Every split lock that the model foretells, and no other, in the kernel: once up and once down each."""
    status, report = _boot(guest, release, xdp, "--qemu", qemu)
    wanted = _predicted()
    assert len(wanted) == 54
    _done(report)
    assert (status, report["hits"], report["ready"]) == (1, 2 * len(wanted), False)
    up, down = sorted(report["sites"], key=lambda site: str(site["instruction"]))
    assert (up["where"], up["hits"], up["operand_size"]) == ("kernel", len(wanted), 4)
    assert (down["where"], down["hits"], down["operand_size"]) == ("kernel", len(wanted), 4)
    assert up["instruction"].startswith("lock inc dword ptr [")
    assert down["instruction"].startswith("lock xadd [")
    for site in (up, down):
        assert int(site["operand_address"], 16) % _PAGE == wanted[0]
    assert (up["function"], down["function"]) == ("skb_clone", "skb_release_data")


@_BOTH
def test_oops(guest: Run, release: str, qemu: str, xdp: Path, tmp_path: Path) -> None:
    """On a processor that traps split locks the first one is the end."""
    status, report = _boot(guest, release, xdp, "--qemu", qemu, "--sld", "--until", "end Kernel panic")
    console = report["console"]
    assert status == 1
    (site,) = report["sites"]
    assert (site["where"], site["hits"], site["traps"]) == ("kernel", 0, 1)
    assert site["answers"] == ["oops", "panic"]
    assert re.search(r"Oops: Split lock detected\r?\n.*: 0000 \[#1\]", console)
    assert "Kernel panic - not syncing: Fatal exception in interrupt" in console

    address = _operand(console)
    past = address % _LINE + 4 - _LINE  # bytes on the next line
    called = re.search(r"RIP: 0010:(\w+)\+(0x[0-9a-f]+)/0x[0-9a-f]+\r?\n", console)
    assert called
    assert called[1] == "skb_clone"
    assert (address % _PAGE, past) == (_predicted()[0], 2)
    assert int(site["operand_address"], 16) == address
    assert (site["function"], site["offset"]) == called.groups()

    told = _told(tmp_path, _kernel(release), console)
    oops = told["oops"]
    assert (oops["place"]["function"], oops["place"]["offset"], oops["place"]["module"]) == (*called.groups(), None)
    assert (oops["whose"], oops["interrupt"], oops["panic"]) == ("kernel", True, "Fatal exception in interrupt")
    operand = oops["operand"]
    assert (int(operand["address"], 16), operand["size"], operand["past"], oops["fits"]) == (address, 4, past, "yes")
    assert operand["what"] == "skb->end + skb->head + 0x20"  # skb_shinfo(skb)->dataref: include/linux/skbuff.h
    assert oops["frames"][0]["function"] == "raw_local_deliver"
    assert [cause["name"] for cause in told["causes"]] == ["xdp-on-loopback"]


@pytest.mark.parametrize(("word", "hits"), [("whole", 0), ("bare", 0), ("deaf", 0), ("tap", 54)])
def test_what_it_takes(guest: Run, xdp: Path, word: str, hits: int) -> None:
    """Without one of the three there is nothing, but a packet socket does as well as a raw one."""
    status, report = _boot(guest, "6.12", xdp, append=f"-- {word}")
    _done(report, 3200 if word == "deaf" else 6400)
    assert (status, report["hits"]) == (int(hits > 0), 2 * hits)


def test_between_containers(guest: Run, xdp: Path, tmp_path: Path) -> None:
    """veth, what containers have: it copies packets in the same way, though its XDP is its own."""
    (compressed,) = _package(*_RELEASES["6.12"]).rglob("veth.ko.xz")
    (tmp_path / "veth.ko").write_bytes(lzma.decompress(compressed.read_bytes()))
    files = {"veth.ko": tmp_path / "veth.ko", "xdp": xdp.with_name("init")}
    initramfs = boots.initramfs(tmp_path / "initramfs", _VETH, files)
    command = ["--kernel", _kernel("6.12"), "--initrd", initramfs, "--append", f"{_APPEND} ipv6.disable=1"]
    status, report = guest(*command, "--duration", 200, timeout=260)
    _done(report)
    assert (status, report["hits"]) == (1, 2 * len(_predicted()))
    assert {site["function"] for site in report["sites"]} == {"skb_clone", "skb_release_data"}


def test_off(guest: Run, xdp: Path) -> None:
    """`off`: the kernel takes them all, and nothing tells of it. What the packets hold is right all the same."""
    status, report = _boot(guest, "6.12", xdp, "--sld", append="split_lock_detect=off")
    _done(report)
    assert (status, report["hits"], report["detection"]["traps"]) == (1, 2 * len(_predicted()), 0)
    assert "Split lock" not in report["console"]


def _changelog(kind: str) -> str:
    """What Debian says of a kernel's changes."""
    found = list(unpacked(kind).rglob("changelog*.gz"))
    if not found:  # 7.x has a package for it
        name = packages(kind)[kind].name.split("_")[0].replace("linux-binary-", "linux-base-")
        found = list(_package("sid", name).rglob("changelog.Debian.gz"))
    return gzip.decompress(found[0].read_bytes()).decode()


@pytest.mark.parametrize(("kind", "qemu"), [("amd64", "7.2"), ("xz", "7.2"), ("new", "10.0")], indirect=["qemu"])
def test_fixed(guest: Run, xdp: Path, kind: str, qemu: str) -> None:
    """A kernel whose changelog has the fix takes none."""
    assert "page_pool: keep frag_offset aligned for odd-sized requests" in _changelog(kind)
    command = ["--kernel", vmlinuz(kind), "--initrd", xdp, "--append", _APPEND, "--qemu", qemu]
    status, report = guest(*command, "--duration", 200, timeout=260)
    _done(report)
    assert (status, report["hits"], report["ready"]) == (0, 0, True)

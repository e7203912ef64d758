"""Packages and compressed files: the same bytes as their own tools give, damage contained, memory flat.

The kernel packages are Debian's own, through apt; .rpm files are made by rpmbuild from a few of the same modules.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from fuzz.archives import legacy_lz4
from modules.debian import packages

from splitlock._errors import SplitlockError
from splitlock.image import package
from splitlock.image.archive import Stream, tar
from splitlock.image.compressed import expand
from splitlock.image.module import KernelImage
from splitlock.image.package import Failure, Member, members

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": lambda data: zstandard.compress(data, 3),
    "bz2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "lz4": legacy_lz4,
}


def found(*paths: Path | str, **more: int) -> dict[str, bytes]:
    """Names and contents, where nothing may fail."""
    result = {}
    for item in members(map(str, paths), **more):
        assert isinstance(item, Member), item
        result[item.member or item.path] = item.data
    return result


def failures(*paths: Path | str, **more: int) -> list[Failure]:
    return [item for item in members(map(str, paths), **more) if isinstance(item, Failure)]


def kernel(kind: str) -> str:
    """The path of a kernel package."""
    return str(packages(kind)[kind])


@pytest.fixture(scope="module")
def modules() -> dict[str, bytes]:
    """A dozen real modules, by file name."""
    raw = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", kernel("cloud-amd64")], stdout=subprocess.PIPE, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        chosen = [info for info in archive if info.name.endswith(".ko") and info.size < 100_000][::60][:12]
        return {os.path.basename(info.name): archive.extractfile(info).read() for info in chosen}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["cloud-amd64", "xz"])
def test_deb_as_dpkg_unpacks_it(kind: str, tmp_path: Path) -> None:
    """Every ELF file of the package, the same bytes; .ko.xz decompressed as xz(1) does."""
    path = kernel(kind)
    subprocess.run(["dpkg-deb", "-x", path, str(tmp_path)], check=True)
    names = [p for p in tmp_path.rglob("*") if p.is_file() and ".ko" in p.name]
    compressed = [str(p) for p in names if p.suffix == ".xz"]
    if compressed:
        subprocess.run(["xz", "-d", *compressed], check=True)
    expected = {str(p.relative_to(tmp_path)): p for p in names}
    sums = {
        name: hashlib.sha256((p if p.exists() else p.with_suffix("")).read_bytes()).digest()
        for name, p in expected.items()
    }
    got = {}
    for item in members([path]):
        assert isinstance(item, Member), item
        assert item.path == path
        assert item.member
        got[item.member] = hashlib.sha256(item.data).digest()
    boot = [name for name in got if "vmlinu" in name]
    assert len(boot) == 1
    assert {name: got[name] for name in sums} == sums
    assert len(sums) > 1000
    others = got.keys() - sums.keys() - set(boot)
    for name in others:
        assert (tmp_path / name).read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize("kind", ["amd64", "cloud-amd64", "xz"])
def test_vmlinuz_holds_the_kernel(kind: str, tmp_path: Path) -> None:
    """xz, lz4 and zstd kernels: an ELF file that readelf reads, with the banner, and what modules import from it."""
    path = kernel(kind)
    data = b""
    imports: set[str] = set()
    exports: set[str] = set()
    for item in members([path]):
        assert isinstance(item, Member)
        assert item.member
        if item.member.startswith("boot/vmlinuz"):
            data = item.data
        elif ".ko" in item.member:
            image = KernelImage(item.data)
            imports |= image.imports
            exports |= image.exports
    release = os.path.basename(path).split("_")[0].removeprefix("linux-image-").encode()
    assert b"Linux version " + release + b" (" in data
    (tmp_path / "vmlinux").write_bytes(data)
    shown = subprocess.run(["readelf", "-SW", tmp_path / "vmlinux"], capture_output=True, text=True, check=True)
    assert not shown.stderr
    assert {".text", ".rodata", "__ksymtab", "__ksymtab_strings"} <= set(shown.stdout.split())
    assert KernelImage(data).exports >= imports - exports
    assert len(imports - exports) > 3000


@pytest.mark.parametrize("ending", list(COMPRESSORS))
def test_compressed_modules(modules: dict[str, bytes], tmp_path: Path, ending: str) -> None:
    for name, data in modules.items():
        (tmp_path / f"{name}.{ending}").write_bytes(COMPRESSORS[ending](data))
    (tmp_path / "readme.gz").write_bytes(gzip.compress(b"not for us"))
    assert found(tmp_path) == {str(tmp_path / f"{name}.{ending}"): data for name, data in modules.items()}
    name, data = next(iter(modules.items()))
    alone = tmp_path / "named-by-the-user"
    alone.write_bytes(COMPRESSORS[ending](data))
    assert found(alone) == {str(alone): data}


@pytest.mark.parametrize("ending", ["gz", "xz", "zst", "bz2"])
def test_streams_behind_one_another(ending: str) -> None:
    """Which is what `cat a.gz b.gz` and parallel compressors leave."""
    data = os.urandom(50_000) + bytes(3_000_000)
    raw = COMPRESSORS[ending](data[:60_000]) + COMPRESSORS[ending](data[60_000:])
    assert expand(raw, 1 << 24) == data
    assert expand(raw + b"\x12\x34\x56\x78", 1 << 24) == data  # a kernel's payload has its size behind it


def rpmbuild(modules: dict[str, bytes], place: Path, payload: str) -> Path:
    """An .rpm with the modules, a long name, a link, a directory."""
    source = place / "source"
    source.mkdir(parents=True)
    for name, data in modules.items():
        (source / name).write_bytes(data)
    spec = place / "kernel.spec"
    spec.write_text(f"""\
Name: kernel-core
Version: 1
Release: 1
Summary: modules
License: GPL
%description
modules
%install
mkdir -p %{{buildroot}}/lib/modules/1/{"long" * 50}
cp {source}/*.ko %{{buildroot}}/lib/modules/1/{"long" * 50}
ln -s nowhere.ko %{{buildroot}}/lib/modules/1/link.ko
echo text > %{{buildroot}}/lib/modules/1/modules.order
%files
/lib/modules
""")
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--nodeps", "--target", "x86_64", f"-D_topdir {place}",
         f"-D_binary_payload {payload}", "-D__os_install_post %{nil}", "-Ddebug_package %{nil}", str(spec)],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(place.rglob("*.rpm"))


@pytest.mark.parametrize("payload", ["w9.gzdio", "w6.xzdio", "w3.zstdio", "w9.bzdio", "w5.lzdio", "w.ufdio"])
def test_rpm(modules: dict[str, bytes], tmp_path: Path, payload: str) -> None:
    """Each compression that rpm has, against rpm2cpio and cpio."""
    path = rpmbuild(modules, tmp_path / "rpm", payload)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(f"rpm2cpio {path} | cpio -id --quiet", shell=True, cwd=out, check=True)
    expected = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.ko") if not p.is_symlink()}
    assert len(expected) == len(modules)
    assert found(path) == expected


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_as_tarfile_reads_it(style: int) -> None:
    """Long names, odd characters, links, devices, empty files."""
    names = ["a", "sub/" * 20 + "x" * 60, "/absolute", "./dot", "empty"]
    names += ["é" * 90, "long/" * 60 + "name"] if style != tarfile.USTAR_FORMAT else []
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=style) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "empty" else 512 * number + number % 3
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
                info = tarfile.TarInfo(f"{number}-{kind!r}")
                info.type, info.linkname = kind, name[:100]
                archive.addfile(info)
    data = raw.getvalue()
    stream = Stream(iter([data[i : i + 700] for i in range(0, len(data), 700)]), 1 << 30)
    got = {name: stream.read(size) for name, size in tar(stream)}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        plain = {i.name: archive.extractfile(i).read() for i in archive if i.isreg()}  # type: ignore[union-attr]
    assert got == {name.removeprefix(".").lstrip("/"): value for name, value in plain.items()}


def test_tar_inside_a_compressed_file(modules: dict[str, bytes], tmp_path: Path) -> None:
    """As other distributions' packages are: .pkg.tar.zst."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in modules.items():
            info = tarfile.TarInfo(f"usr/lib/modules/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path = tmp_path / "linux-6.1-x86_64.pkg.tar.zst"
    path.write_bytes(zstandard.compress(raw.getvalue()))
    assert found(path) == {f"usr/lib/modules/{name}": data for name, data in modules.items()}


# What is wrong with files


def test_one_bad_file_does_not_stop_the_rest(modules: dict[str, bytes], tmp_path: Path) -> None:
    (name, data), (other, second), *_ = modules.items()
    (tmp_path / name).write_bytes(data)
    (tmp_path / f"{other}.xz").write_bytes(lzma.compress(second)[:-100])
    (tmp_path / "empty.ko").write_bytes(b"")
    (tmp_path / "text.ko").write_text("no module\n")
    (tmp_path / "text.txt").write_text("nothing to do with it\n")
    (tmp_path / "zeros.ko.gz").write_bytes(gzip.compress(bytes(5000)))
    (tmp_path / "half.deb").write_bytes(b"!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n")
    (tmp_path / "half.rpm").write_bytes(b"\xed\xab\xee\xdb" + bytes(200))
    os.mkfifo(tmp_path / "fifo.ko")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere", tmp_path / "dangling.ko")
    os.symlink(".", tmp_path / "here")
    os.symlink("/usr/src/no-headers", tmp_path / "build")
    items = list(members([str(tmp_path)]))
    assert [i.path for i in items if isinstance(i, Member)] == [str(tmp_path / name)]
    reasons = {os.path.basename(i.path): i.reason for i in items if isinstance(i, Failure)}
    assert reasons.keys() == {
        f"{other}.xz",
        "empty.ko",
        "text.ko",
        "zeros.ko.gz",
        "half.deb",
        "half.rpm",
        "loop",
        "dangling.ko",
    }
    assert "truncated" in reasons[f"{other}.xz"]
    assert reasons["empty.ko"] == "an empty file"
    assert reasons["loop"] == "Too many levels of symbolic links"
    assert not any("\n" in reason for reason in reasons.values())


def test_files_that_were_named(tmp_path: Path) -> None:
    """Where nothing is to be had from a file that the user named, it says so."""
    (tmp_path / "text").write_text("text")
    os.mkfifo(tmp_path / "fifo")
    paths: list[Path | str] = [tmp_path / "text", tmp_path / "fifo", tmp_path / "missing", "", "a\0b"]
    assert [f.reason for f in failures(*paths)] == [
        "not an ELF file, a kernel, a module or a package",
        "not a regular file",
        "No such file or directory",
        "No such file or directory",
        "no file's name has a NUL in it",
    ]


def test_unreadable(modules: dict[str, bytes], tmp_path: Path) -> None:
    """Without permission: a Failure for the file and for the directory."""
    for name in list(modules)[:2]:
        (tmp_path / name).write_bytes(modules[name])
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    (tmp_path / next(iter(modules))).chmod(0)
    if os.geteuid() == 0:  # who may read everything
        tmp_path.chmod(0o755)
        for parent in tmp_path.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o711)
        os.seteuid(65534)
    try:
        items = list(members([str(tmp_path)]))
    finally:
        if os.geteuid() == 65534:
            os.seteuid(0)
        closed.chmod(0o700)
    assert len([i for i in items if isinstance(i, Member)]) == 1
    assert sorted(i.reason for i in items if isinstance(i, Failure)) == ["Permission denied"] * 2


def test_directories_are_read_once_through_links(modules: dict[str, bytes], tmp_path: Path) -> None:
    """Links out of the tree are followed, as depmod does; a file that comes up by itself comes once."""
    name, data = next(iter(modules.items()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name).write_bytes(data)
    tree = tmp_path / "tree"
    tree.mkdir()
    os.symlink(elsewhere, tree / "a")
    os.symlink(elsewhere, tree / "b")
    os.symlink(elsewhere / name, tree / "file.ko")
    (tree / "own.ko").write_bytes(data)
    os.symlink("own.ko", tree / "weak.ko")
    os.symlink(tree, tree / "round")
    assert sorted(os.path.relpath(p, tree) for p in found(tree)) == [f"a/{name}", "file.ko", "own.ko"]


def test_names_that_are_no_text(modules: dict[str, bytes], tmp_path: Path) -> None:
    data = next(iter(modules.values()))
    (tmp_path / os.fsdecode(b"caf\xe9.ko")).write_bytes(data)
    assert found(tmp_path) == {f"{tmp_path}/caf\\xe9.ko": data}


def apart(statement: str) -> tuple[str, int]:
    """What a statement prints in a process of its own, and that process's peak of memory in KiB."""
    code = f"""
from splitlock.image.package import members
{statement}
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *printed, memory = done.stdout.splitlines()
    return "\n".join(printed), int(memory)


def bomb(kind: str, size: int) -> bytes:
    """`size` zeros, compressed, after an ELF file's first bytes."""
    return COMPRESSORS[kind](b"\x7fELF" + bytes(size))


@pytest.mark.parametrize("ending", list(COMPRESSORS))
def test_bombs(tmp_path: Path, ending: str) -> None:
    """400 MB of zeros in a module: refused at the limit, in little memory."""
    path = tmp_path / f"bomb.ko.{ending}"
    path.write_bytes(bomb(ending, 400 << 20))
    reason, memory = apart(f"print([item.reason for item in members([{str(path)!r}], limit=16 << 20)])")
    assert "decompression bomb" in reason
    assert memory < 150_000


def test_limits_of_a_package(modules: dict[str, bytes], tmp_path: Path) -> None:
    """A member over the limit is a Failure and the next ones come; a package has a limit of its own."""
    raw = io.BytesIO()
    small = next(data for data in modules.values() if len(data) < 50_000)
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in (("a.ko", small), ("big.ko", b"\x7fELF" + bytes(100_000)), ("z.ko", small)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path = tmp_path / "some.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue()))
    items = list(members([str(path)], limit=50_000))
    assert [(i.member, type(i).__name__) for i in items] == [
        ("a.ko", "Member"),
        ("big.ko", "Failure"),
        ("z.ko", "Member"),
    ]
    with tarfile.open(fileobj=(raw := io.BytesIO()), mode="w") as archive:
        info = tarfile.TarInfo("rubbish")
        info.size = 64 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    path.write_bytes(gzip.compress(raw.getvalue()))
    assert "decompression bomb" in failures(path, limit=1 << 20)[0].reason


def test_huge_sizes_in_headers(tmp_path: Path) -> None:
    """Sizes are not believed: neither memory nor time is spent on them."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 60
    (tmp_path / "pax.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    info.type = tarfile.REGTYPE
    info.name = "x.ko"
    (tmp_path / "file.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    head = b"!<arch>\ndebian-binary   0           0     0     100644  4         `\n2.0\n"
    (tmp_path / "negative.deb").write_bytes(head + b"x".ljust(48) + b"-60       `\n" + bytes(100))
    rpm = b"\xed\xab\xee\xdb" + bytes(92) + b"\x8e\xad\xe8\x01\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"
    (tmp_path / "huge.rpm").write_bytes(rpm)
    started = time.process_time()
    items = failures(tmp_path)  # two for file.tar: the member is too large, and then the end is missing
    assert [os.path.basename(f.path) for f in items] == ["file.tar", "file.tar", "huge.rpm", "negative.deb", "pax.tar"]
    assert time.process_time() - started < 1


@pytest.mark.parametrize("cut", [100, 5000, 1_000_000, 20_000_000])
def test_truncated_packages(tmp_path: Path, cut: int) -> None:
    """What is whole still comes, then one Failure."""
    path = tmp_path / "cut.deb"
    with open(kernel("cloud-amd64"), "rb") as whole:
        path.write_bytes(whole.read(cut))
    items = list(members([str(path)]))
    assert [type(item) for item in items].count(Failure) == 1
    assert isinstance(items[-1], Failure)
    assert items[-1].member is None
    assert "truncated" in items[-1].reason


def test_leaving_in_the_middle() -> None:
    """A caller that stops early: no thread is left, no descriptor, and nothing is decompressed to the end."""
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    iterator = members([kernel("amd64")])
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before


def test_memory_is_flat() -> None:
    """Five times the same package take what two take (one takes less: what is left of it is there with the next)."""
    path = kernel("cloud-amd64")
    two, five = (apart(f"for item in members([{path!r}] * {times}): pass")[1] for times in (2, 5))
    assert five < two + 60_000  # threads read ahead, now more, now less; kept, three more would be 430,000
    assert five < 400_000


def test_default_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = os.uname().release
    if os.path.isdir(f"/lib/modules/{release}"):
        assert package.default_paths() == [f"/lib/modules/{release}"]
    else:
        with pytest.raises(SplitlockError, match="no modules there") as info:
            package.default_paths()
        assert info.value.exit_code == 2


# Mutations of whole packages: nothing but Members and Failures comes out, in bounded time and memory


def seeds(modules: dict[str, bytes], place: Path) -> dict[str, bytes]:
    small = dict(sorted(modules.items(), key=lambda item: len(item[1]))[:3])
    result = {}
    for number, payload in enumerate(("w9.gzdio", "w3.zstdio", "w.ufdio")):
        result[f"{number}.rpm"] = rpmbuild(small, place / str(number), payload).read_bytes()
    tree = place / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x>\nDescription: x\n"
    (tree / "DEBIAN" / "control").write_text(control)
    for name, data in small.items():
        (tree / name).write_bytes(data)
        (tree / f"{name}.xz").write_bytes(lzma.compress(data))
    for kind in ("none", "gzip", "xz", "zstd"):
        path = place / f"{kind}.deb"
        subprocess.run(["dpkg-deb", "-b", f"-Z{kind}", str(tree), str(path)], check=True, capture_output=True)
        result[path.name] = path.read_bytes()
    name, module = next(iter(small.items()))
    for ending, compress in COMPRESSORS.items():
        result[f"{name}.{ending}"] = compress(module)
    head = bytearray(0x400)
    head[0x1F1], head[0x1FE:0x200], head[0x202:0x208] = 1, b"\x55\xaa", b"HdrS\x0f\x02"
    compressed = lzma.compress(module)
    struct.pack_into("<II", head, 0x248, 0, len(compressed))
    result["vmlinuz"] = bytes(head) + compressed
    return result


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, mostly near the start; pieces cut out, doubled or swapped for extremes; the end cut off."""
    raw = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = int(len(raw) * chance.random() ** chance.choice((1, 4, 8)))
        choice = chance.randrange(6)
        if choice == 0:
            raw[at : at + 1] = bytes([chance.randrange(256)])
        elif choice == 1:
            raw[at : at + 1] = bytes([(raw[at] if at < len(raw) else 0) ^ 1 << chance.randrange(8)])
        elif choice == 2:
            del raw[at : at + chance.randrange(1, 600)]
        elif choice == 3:
            raw[at:at] = raw[at : at + chance.randrange(1, 600)]
        elif choice == 4:
            raw[at : at + 8] = chance.choice(
                (b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, b"99999999", b"-0000001", b"77777777")
            )
        else:
            del raw[at:]
    return bytes(raw)


def fuzz(modules: dict[str, bytes], place: Path, seconds: float, seed: int) -> int:
    corpus = seeds(modules, place)
    names = sorted(corpus)
    chance = random.Random(seed)
    target = place / "mutant"
    target.mkdir()
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        state = chance.getrandbits(64)
        name = names[state % len(names)]
        path = target / name
        path.write_bytes(mutated(corpus[name], random.Random(state)))
        started = time.process_time()
        try:
            for item in members([str(path)], limit=4 << 20):
                assert isinstance(item, (Member, Failure))
                if isinstance(item, Member):
                    assert item.data[:4] == b"\x7fELF"
                    assert len(item.data) <= 4 << 20
                else:
                    assert item.reason
                    assert "\n" not in item.reason
            assert time.process_time() - started < 10
        except BaseException as error:
            raise AssertionError(f"mutation {state} of {name}: {error!r}") from error
        path.unlink()
        count += 1
    return count


def test_mutations(modules: dict[str, bytes], tmp_path: Path) -> None:
    assert fuzz(modules, tmp_path, 8, 1) > 100


@pytest.mark.slow
def test_mutations_for_long(modules: dict[str, bytes], tmp_path: Path) -> None:
    """SPLITLOCK_FUZZ_SECONDS of them (default: 20 minutes), from a seed that is told."""
    seed = int(os.environ.get("SPLITLOCK_FUZZ_SEED", time.time_ns()))
    print("seed", seed)
    assert fuzz(modules, tmp_path, float(os.environ.get("SPLITLOCK_FUZZ_SECONDS", "1200")), seed)

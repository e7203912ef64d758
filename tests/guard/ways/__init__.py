"""What runs inside a guest to try each way in: ways.py, with loader.c and modules/, built here and kept."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import zstandard
from guard.machine import STORE, need
from modules.debian import packages
from modules.toys import COMPILER, unpack

HERE = Path(__file__).parent
SOURCES = HERE / "modules"
NAMES = sorted(path.stem for path in SOURCES.glob("*.c"))
HEADERS = {"amd64": "headers", "xz": "xz-headers"}  # kernel: its headers, by the names of scripts/kernels.sh


def _kept(name: str, *sources: Path) -> tuple[Path, Path | None]:
    """A directory in build/guests for what is made of `sources`, and where to make it if it is not there."""
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    directory = STORE / f"{name}-{digest}"
    if directory.exists():
        return directory, None
    STORE.mkdir(parents=True, exist_ok=True)
    return directory, Path(tempfile.mkdtemp(dir=STORE))


def _keep(part: Path, directory: Path) -> None:
    try:
        part.rename(directory)
    except OSError:  # another process was quicker
        shutil.rmtree(part)


def headers(kind: str) -> Path:
    """A kernel's headers, unpacked; skips the test where there are none."""
    files = list(packages(HEADERS[kind]).values())
    directory = STORE / f"headers-{files[0].stem}"
    if not directory.exists():
        STORE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=STORE))
        unpack(files, part)
        (makefile,) = part.glob("usr/src/linux-headers-*-amd64/Makefile")
        makefile.write_text(makefile.read_text().replace(str(part), str(directory)))
        _keep(part, directory)
    (found,) = (path for path in directory.glob("usr/src/linux-headers-*-amd64") if path.is_dir())
    return found


def modules(kind: str) -> dict[str, Path]:
    """All modules of ways/modules/ for a kernel of HEADERS, by name."""
    need(COMPILER, "make")
    tree = headers(kind)
    directory, part = _kept(f"ways-{tree.name}", *sorted(SOURCES.glob("*.[ch]")))
    if part:
        for path in SOURCES.glob("*.[ch]"):
            shutil.copy(path, part)
        (part / "Kbuild").write_text("".join(f"obj-m += {name}.o\n" for name in NAMES))
        # no BTF of the modules themselves: that would need pahole
        command = ["make", "-s", f"-j{os.cpu_count()}", "-C", str(tree), f"M={part}", f"CC={COMPILER}",
                   "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        for path in part.iterdir():
            if path.suffix != ".ko":
                path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
        _keep(part, directory)
    return {name: directory / f"{name}.ko" for name in NAMES}


def loader() -> Path:
    """loader.c, compiled statically."""
    directory, part = _kept("loader", HERE / "loader.c")
    if part:
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-static", "-pthread", "-o", part / "loader", HERE / "loader.c"], check=True
        )
        _keep(part, directory)
    return directory / "loader"


def payload(kind: str, release: str, directory: Path) -> None:
    """Put into a payload: /payload/ways with all that ways.py needs, /payload/lib/modules/RELEASE for modprobe."""
    place = directory / "ways"
    place.mkdir(parents=True)
    built = modules(kind)
    for path in built.values():
        shutil.copy(path, place)
    shutil.copy(loader(), place)
    shutil.copy(HERE / "ways.py", place)
    bad = built["way_bad"].read_bytes()
    (place / "way_bad.ko.xz").write_bytes(lzma.compress(bad, check=lzma.CHECK_CRC32))
    (place / "way_bad.ko.gz").write_bytes(gzip.compress(bad))
    (place / "way_bad.ko.zst").write_bytes(zstandard.compress(bad))
    (place / "way_good.ko.xz").write_bytes(lzma.compress(built["way_good"].read_bytes(), check=lzma.CHECK_CRC32))
    # what modprobe and the kernel's own requests find: uncompressed, but for the xz kernel, as there
    tree = directory / "lib" / "modules" / release
    (tree / "extra").mkdir(parents=True)
    for name in ("way_bad", "way_good", "way_needs", "way_asks"):
        data = built[name].read_bytes()
        if kind == "xz":
            (tree / "extra" / f"{name}.ko.xz").write_bytes(lzma.compress(data, check=lzma.CHECK_CRC32))
        else:
            (tree / "extra" / f"{name}.ko").write_bytes(data)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (tree / name).touch()
    subprocess.run(["depmod", "-b", directory, release], check=True, stderr=subprocess.DEVNULL)
    # the two files of the races: they differ in the instruction alone
    armed = built["way_race"].read_bytes()
    code = b"\x0f\x01\xc2" + b"\x90" * 8
    assert armed.count(code) == 1
    (place / "way_race_clean.ko").write_bytes(armed.replace(code, b"\x0f\x1f\x00" + b"\x90" * 8))
    for name, data in {**mutations(bad), "way_section_data": _as_data(built["way_section"].read_bytes())}.items():
        (place / f"{name}.ko").write_bytes(data)


def mutations(bad: bytes) -> dict[str, bytes]:
    """Files that the kernel's loader takes for way_bad, and that a careless reader might not."""
    text = _section(bad, ".text")
    flags, kind = text + 8, text + 4

    def changed(at: int, form: str, value: int) -> bytes:
        data = bytearray(bad)
        struct.pack_into(form, data, at, value)
        return bytes(data)

    (flag_bits,) = struct.unpack_from("<Q", bad, flags)
    return {
        "way_bad_padded": bad + bytes(100_000),
        "way_bad_junk": bad + os.urandom(4097),
        "way_bad_marker": bad + b"~Module signature appended~",
        "way_bad_compressed_flag": changed(flags, "<Q", flag_bits | 0x800),
        "way_bad_odd_type": changed(kind, "<I", 0x6FFF_4242),
        "way_bad_note_type": changed(kind, "<I", 7),
        "way_bad_renamed": _renamed(bad, ".text", ".data"),
        "way_bad_no_functions": _without_functions(bad),
        "way_bad_moved": _moved(bad, 3 << 20),
        "way_bad_truncated": bad[: len(bad) * 2 // 3],
        "way_bad_os_abi": changed(7, "<B", 9),
    }


def _headers(data: bytes) -> tuple[int, int, int]:
    (start,) = struct.unpack_from("<Q", data, 0x28)
    count, names = struct.unpack_from("<HH", data, 0x3C)
    return start, count, names


def _name_at(data: bytes, header: int) -> int:
    start, _, names = _headers(data)
    (strings,) = struct.unpack_from("<Q", data, start + 64 * names + 0x18)
    return int(strings + struct.unpack_from("<I", data, header)[0])


def _section(data: bytes, name: str) -> int:
    """Where the header of a section is."""
    start, count, _ = _headers(data)
    for header in range(start, start + 64 * count, 64):
        at = _name_at(data, header)
        if data[at : data.index(b"\0", at)] == name.encode():
            return header
    raise KeyError(name)


def _as_data(data: bytes) -> bytes:
    """The section of way_section without SHF_EXECINSTR: the kernel maps it so that nothing there can run."""
    at = _section(data, ".way") + 8
    changed = bytearray(data)
    changed[at] &= ~4
    return bytes(changed)


def _renamed(data: bytes, old: str, new: str) -> bytes:
    """A section's header pointed at another section's name."""
    other, header = _section(data, new), _section(data, old)
    changed = bytearray(data)
    changed[header : header + 4] = data[other : other + 4]
    return bytes(changed)


def _without_functions(data: bytes) -> bytes:
    """No symbol is called a function any more (STT_FUNC becomes STT_NOTYPE)."""
    start, size = struct.unpack_from("<QQ", data, _section(data, ".symtab") + 0x18)
    changed = bytearray(data)
    for at in range(start, start + size, 24):
        if changed[at + 4] & 15 == 2:
            changed[at + 4] &= 0xF0
    return bytes(changed)


def _moved(data: bytes, by: int) -> bytes:
    """The code behind everything else in the file, megabytes away, and out of order."""
    header = _section(data, ".text")
    offset, size = struct.unpack_from("<QQ", data, header + 0x18)
    changed = bytearray(data) + bytes(by - len(data) % 16) + data[offset : offset + size]
    changed[offset : offset + size] = b"\x90" * size
    struct.pack_into("<Q", changed, header + 0x18, len(changed) - size)
    return bytes(changed)
